"""The page of a reconciler, by its own code, without one: of a quiet hour in which two pods wait."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic

from prometheus_client import generate_latest

from app.reconciler.metrics import Metrics, Waiting
from app.reconciler.pods import Reader
from tests.harness.stored import SECRET, stored_pod


class Page:
    """With each read, a pod got its slot within 30 s, and the API server refused once."""

    def __init__(self) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        pods = [stored_pod(name, semaphore="batch/full", key="full", created=now) for name in ("first", "second")]
        members = [member for pod in pods if (member := Reader("", (SECRET,)).read(pod))]
        self._metrics = Metrics()
        self._metrics.pods_without_lease = 0
        self._metrics.registry.register(Waiting(lambda: members, monotonic, self._metrics, 1000))

    def read(self) -> str:
        self._metrics.observe_wait(20)
        self._metrics.count_error("api")
        return generate_latest(self._metrics.registry).decode()


@contextmanager
def serving(page: Page) -> Iterator[int]:
    """The port on which it is read meanwhile."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = page.read().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: Prometheus reads it every second."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
