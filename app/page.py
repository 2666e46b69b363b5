"""A page for programs, such as Prometheus: plain HTTP, served by threads of this process."""

import logging
import platform
import socket
import threading
from functools import cache
from importlib.metadata import version
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import WSGIApplication

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import ThreadingWSGIServer

log = logging.getLogger(__name__)


def serve(host: str, port: int, application: WSGIApplication) -> None:
    """Listen, and serve in the background. Raises OSError."""
    server = make_server(host, port, application, _Server, _Handler)
    threading.Thread(target=server.serve_forever, daemon=True, name="metrics").start()


@cache
def build_info() -> GaugeMetricFamily:
    """What runs, which every page of metrics tells."""
    info = GaugeMetricFamily("at_least_semaphore_build_info", "What runs; always 1.", labels=["version", "python"])
    info.add_metric([version("at-least-semaphore-pod-hook"), platform.python_version()], 1)
    return info


class _Server(ThreadingWSGIServer):
    """Bounded, as each connection costs a file and a thread of the process that keeps the workers alive."""

    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._room = threading.BoundedSemaphore(16)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # there is no thread to be had, which would have given the room back
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a reader of the metrics is gone", exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = 2  # seconds of silence

    def log_message(self, *_: Any) -> None:
        """Every scrape would be a line."""
