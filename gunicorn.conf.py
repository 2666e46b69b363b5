"""How gunicorn runs the webhook: `gunicorn` alone, started beside this file, serves.

Read by gunicorn's first process, and once more on SIGHUP. All settings are variables of the environment, see
the README; they are checked here, before anything listens.
"""

import atexit
import math
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

_OWN_FOLDER = "at-least-semaphore-metrics-"
# prometheus_client looks at this variable when it is imported, which `app` does.
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix=_OWN_FOLDER)

from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics  # noqa: E402

from app import semaphores_on  # noqa: E402
from app.logs import CONFIG  # noqa: E402
from app.metrics import give_back_room, serve_metrics  # noqa: E402
from app.scrape import Scrape  # noqa: E402
from app.server import CertificateError, tls_context  # noqa: E402
from app.settings import Settings, SettingsError  # noqa: E402

_metrics_dir = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])


_first_process = os.getpid()


@atexit.register
def _remove_own_folder():
    # Workers are forked, and come by here as well when they end.
    if os.getpid() == _first_process and _metrics_dir.name.startswith(_OWN_FOLDER):
        shutil.rmtree(_metrics_dir, ignore_errors=True)


try:
    _settings = Settings.from_env(os.environ)
    _tls = tls_context(_settings.cert_file, _settings.key_file)
    _tls.current()
except SettingsError as error:
    sys.exit(f"cannot start: {error}")
except CertificateError as error:
    sys.exit(f"cannot start: CERT_DIR: {error}; mount the TLS Secret there, or name the folder of tls.crt and tls.key")

wsgi_app = "app:create_app()"
worker_class = "app.server.Worker"
workers = _settings.web_concurrency
bind = _settings.bind
# A worker that is silent for longer than its slowest peer and its longest admission take together is stuck.
timeout = graceful_timeout = 10 + math.ceil(_settings.admission_budget_seconds)
control_socket_disable = True
logconfig_dict = CONFIG
if Path("/dev/shm").is_dir():  # noqa: S108  heartbeats of workers, where the root file system is read-only
    worker_tmp_dir = "/dev/shm"  # noqa: S108
certfile = str(_settings.cert_file)
keyfile = str(_settings.key_file)


def ssl_context(conf, default_ssl_context_factory):
    """gunicorn asks at every connection."""
    return _tls.current()


def on_starting(server):
    """Counters of an earlier run, whose folder outlived it, would be added to ours."""
    _metrics_dir.mkdir(parents=True, exist_ok=True)
    for file in [*_metrics_dir.glob("*.db"), *_metrics_dir.glob("*.new")]:
        file.unlink()


def when_ready(server):
    """Before the workers are forked: the metrics are served by gunicorn's first process, in plain HTTP."""
    for listener in server.LISTENERS:
        # A peer that has sent nothing wakes no worker, for some seconds; and who has wakes one once, not twice.
        listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 3)
    host = _settings.bind.rpartition(":")[0].strip("[]")
    # On connections of its own, opened by the first who asks.
    scrape = Scrape(semaphores_on(_settings), _tls, _settings.metrics_semaphores)
    try:
        serve_metrics(host, _settings.metrics_port, scrape)
    except OSError as error:
        sys.exit(f"cannot start: METRICS_PORT: cannot listen on {host}:{_settings.metrics_port}: {error}")


def child_exit(server, worker):
    """Gauges of a process that is gone must not live on, nor what its files have room for."""
    GunicornPrometheusMetrics.mark_process_dead_on_child_exit(worker.pid)
    give_back_room(_metrics_dir, worker.pid)
