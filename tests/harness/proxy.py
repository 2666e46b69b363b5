"""A network that fails on demand: stands before a node, and tells what it saw pass.

It sees what nobody else can: what a node has carried out, whether or not the answer arrived.
"""

import asyncio
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import hiredis

from sidecar.protocol import Address

SLOW_SECONDS = 0.5
DRIP_SECONDS = 0.05


class Fault(StrEnum):
    """What the proxy does to who comes through it."""

    NONE = "none"
    REFUSE = "connections are closed, and new ones at once"
    HANG = "requests are held back"
    HOLD = "answers are held back"
    SLOW = "answers come half a second late"
    DRIP = "answers come byte by byte"
    LOSE_REQUESTS = "the connection is closed by a request that never arrives"
    LOSE_ANSWERS = "the connection is closed by an answer, to a request that was carried out"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A command that went to a node, which carried it out between two instants of time.monotonic().

    If the node's answer was never seen, it may have done so or not, and may yet: `answered` is the connection's end.
    """

    words: tuple[bytes, ...]
    sent: float
    answered: float
    seen: bool
    reply: Any


class Proxy:
    """Listens on a port of its own for one node. `fault` may be set at any time, and holds for all connections."""

    def __init__(self, target: Address, tap: Callable[[Exchange], None] | None = None) -> None:
        self._target, self._tap = target, tap
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1])
        self._fault = Fault.NONE
        self._connections: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._changed, self._end = asyncio.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()

    @property
    def fault(self) -> Fault:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault = fault
        self._loop.call_soon_threadsafe(self._apply)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()

    def _apply(self) -> None:
        if self._fault is Fault.REFUSE:
            for connection in self._connections:
                connection.abort()
        self._changed.set()
        self._changed.clear()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._welcome, sock=self._listener)
        await self._end.wait()
        server.close()
        for connection in list(self._connections):
            connection.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._fault is Fault.REFUSE:
            writer.transport.abort()
            return
        try:
            node_reader, node_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(self, writer, node_writer)
        self._connections.add(connection)
        try:
            await asyncio.gather(connection.requests(reader), connection.answers(node_reader))
        except (OSError, asyncio.CancelledError):  # asyncio's streams would log that the proxy has been closed
            pass
        finally:
            connection.end()
            self._connections.discard(connection)

    async def until_not(self, *faults: Fault) -> None:
        while self._fault in faults:
            await self._changed.wait()

    def saw(self, exchange: Exchange) -> None:
        if self._tap:
            self._tap(exchange)


class _Connection:
    """Two directions, and what was asked and not answered yet."""

    def __init__(self, proxy: Proxy, client: asyncio.StreamWriter, node: asyncio.StreamWriter) -> None:
        self._proxy, self._client, self._node = proxy, client, node
        self._asked: deque[tuple[tuple[bytes, ...], float]] = deque()
        self._requests, self._replies = hiredis.Reader(), hiredis.Reader()

    def abort(self) -> None:
        self._client.transport.abort()
        self._node.transport.abort()

    def end(self) -> None:
        self.abort()
        now = time.monotonic()
        for words, sent in self._asked:
            self._proxy.saw(Exchange(words, sent, now, seen=False, reply=None))

    async def requests(self, reader: asyncio.StreamReader) -> None:
        async for data in _chunks(reader):
            await self._proxy.until_not(Fault.HANG)
            if self._proxy.fault is Fault.LOSE_REQUESTS:
                break
            sent = time.monotonic()
            self._requests.feed(data)
            while (words := self._requests.gets()) is not False:
                self._asked.append((tuple(words), sent))
            self._node.write(data)
            await self._node.drain()
        self.abort()

    async def answers(self, reader: asyncio.StreamReader) -> None:
        async for data in _chunks(reader):
            self._tell(data)
            await self._proxy.until_not(Fault.HOLD, Fault.HANG)
            match self._proxy.fault:
                case Fault.LOSE_ANSWERS:
                    break
                case Fault.SLOW:
                    await asyncio.sleep(SLOW_SECONDS)
                case Fault.DRIP:
                    await self._drip(data)
                    continue
            self._client.write(data)
            await self._client.drain()
        self.abort()

    def _tell(self, data: bytes) -> None:
        self._replies.feed(data)
        while (reply := self._replies.gets()) is not False:
            words, sent = self._asked.popleft()
            self._proxy.saw(Exchange(words, sent, time.monotonic(), seen=True, reply=reply))

    async def _drip(self, data: bytes) -> None:
        for at in range(len(data)):
            if self._proxy.fault is Fault.DRIP:
                await asyncio.sleep(DRIP_SECONDS)
            self._client.write(data[at : at + 1])
            await self._client.drain()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while data := await reader.read(65536):
        yield data


@contextmanager
def proxy(target: Address, tap: Callable[[Exchange], None] | None = None) -> Iterator[Proxy]:
    """A proxy that is gone at the end."""
    running = Proxy(target, tap)
    try:
        yield running
    finally:
        running.close()
