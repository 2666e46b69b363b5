"""A way to the API server that can be cut without either end being told, as when a firewall forgets a connection."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

CHUNK = 65536


class Wire:
    """Listens on a port of its own. A connection that is cut takes what is sent and hands on nothing."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._cut: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """The connections that there are; new ones work."""
        self._cut.update(self._sockets)

    @property
    def connections(self) -> int:
        """How many there have been."""
        return len(self._sockets) // 2

    def close(self) -> None:
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += (client, server)
                for one, other in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=self._forward, args=(one, other)))
                    self._threads[-1].start()

    def _forward(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(CHUNK):
                if one not in self._cut:
                    other.sendall(data)
            if one not in self._cut:
                other.shutdown(socket.SHUT_WR)


@contextmanager
def wire(port: int) -> Iterator[Wire]:
    """One that is gone at the end."""
    with closing(Wire(port)) as running:
        yield running
