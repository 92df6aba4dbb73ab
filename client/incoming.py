"""Work as it arrives on one connection: its announcement, its chunks, and what is held from before."""

from __future__ import annotations

from collections.abc import Iterable

from client.workload import Received
from common.errors import ProtocolError
from common.messages import Chunk, TensorHeader, Work
from common.stream import MemorySink, StreamReceiver


class IncomingWork:
    """Puts the messages of one connection together to complete work. No socket in this class."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[TensorHeader, memoryview]] = {}
        self._open: tuple[Work, StreamReceiver, MemorySink] | None = None

    def lacking(self, work: Work) -> list[TensorHeader]:
        """Tensors that are said to be held, and that this connection has not brought."""
        return [header for header in work.tensors if header.held and not self._holds(header)]

    def provide(self, tensors: Iterable[tuple[TensorHeader, memoryview]]) -> None:
        """Take payloads from elsewhere, which have the checksums of their headers."""
        self._held |= {header.slot: (header, payload) for header, payload in tensors}

    def _holds(self, header: TensorHeader) -> bool:
        return header.slot in self._held and self._held[header.slot][0].checksum == header.checksum

    def announce(self, work: Work) -> tuple[Work, Received] | None:
        """Begin with new work, in place of any that is incomplete; returns it when there is nothing to wait for.

        Raises:
            ProtocolError: ``out_of_order``, when a tensor is said to be held and is not; ``too_large``.
        """
        for header in self.lacking(work):
            raise ProtocolError("out_of_order", f"slot {header.slot!r} is said to be held, but it is not")
        sink = MemorySink(work.tensors)
        self._open = (work, StreamReceiver(work.stream, work.tensors, sink), sink)
        return self._complete()

    def accept(self, chunk: Chunk) -> tuple[Work, Received] | None:
        """Take a chunk; returns the work when it was the last one.

        Chunks of another stream are of a transfer that newer work has replaced, and are ignored.

        Raises:
            ProtocolError: the chunk is wrong, see `StreamReceiver.accept`.
        """
        if self._open is None or chunk.stream != self._open[0].stream:
            return None
        work, receiver, sink = self._open
        for index in receiver.accept(chunk):
            header = work.tensors[index]
            self._held[header.slot] = (header, sink.payload(index))
        return self._complete()

    def _complete(self) -> tuple[Work, Received] | None:
        if self._open is None or not self._open[1].complete:
            return None
        work, _, sink = self._open
        self._open = None
        for index, header in enumerate(work.tensors):
            if not header.nbytes:
                self._held[header.slot] = (header, sink.payload(index))
        # Slots of an earlier plan are of no more use.
        self._held = {header.slot: self._held[header.slot] for header in work.tensors}
        return work, dict(self._held)
