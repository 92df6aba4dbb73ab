"""Acknowledgements that wait for the version that their updates build on.

While a version is still on its way to the disk, the next round's updates may come. Should the server die then, that
version is made again, and may come out otherwise if somebody was late; so clients keep their updates till it is safe.
"""

from __future__ import annotations

from collections.abc import Callable

from common.messages import UpdateAck


class Acknowledgements:
    """Passed on at once, or held until their version is durable.

    Args:
        durable: the newest version on the disk.
        send: tells a client.
    """

    def __init__(self, durable: int, send: Callable[[str, UpdateAck], None]) -> None:
        self._durable = durable
        self._send = send
        self._held: list[tuple[int, str, UpdateAck]] = []

    def give(self, version: int, client_id: str, ack: UpdateAck) -> None:
        """An update of this client counts, on top of this version."""
        if version <= self._durable:
            self._send(client_id, ack)
        else:
            self._held.append((version, client_id, ack))

    def holds_for(self, client_id: str) -> bool:
        """Whether the answer to this client's update is still to come."""
        return any(held_for == client_id for _, held_for, _ in self._held)

    def version_is_durable(self, version: int) -> None:
        """A version and all before it are on the disk."""
        self._durable = version
        held, self._held = self._held, []
        for builds_on, client_id, ack in held:
            self.give(builds_on, client_id, ack)
