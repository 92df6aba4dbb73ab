"""How often an address may fail to get in: a token bucket per address, in a table that does not grow. Pure."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from typing import Final

#: Addresses remembered; whoever has more than so many can't be limited by address anyway.
MAX_ADDRESSES: Final = 4096
#: A site has a /64 of IPv6 addresses or more, so it counts as one.
_IPV6_SITE_BITS: Final = 64


class FailedAttempts:
    """Counts failures per address; the caller brings the clock.

    An address may fail `per_minute` times at once and, after that, so often in a minute. Addresses that have not
    failed lately take no memory; of more than `addresses` that have, the one that failed longest ago is forgotten.

    Args:
        per_minute: failures allowed, at least 1.
        addresses: how many are remembered.
    """

    def __init__(self, per_minute: int, addresses: int = MAX_ADDRESSES) -> None:
        self._most = per_minute
        self._addresses = addresses
        #: Site to (failures that still count, as of when), the one that failed longest ago first.
        self._failures: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failures)

    def failed(self, address: str, now: float) -> None:
        """Count one failure.

        Args:
            address: an IP address; anything else counts as a name of its own.
            now: seconds on a monotonic clock.
        """
        site = site_of(address)
        # Not counted beyond one more than allowed: the way back is a minute at most, however long it went on.
        self._failures[site] = (min(self._counted(site, now) + 1, self._most + 1), now)
        self._failures.move_to_end(site)
        while len(self._failures) > self._addresses:
            self._failures.popitem(last=False)

    def wait_s(self, address: str, now: float) -> int:
        """Whole seconds that this address has to wait before it may try again; 0 when it may now."""
        site = site_of(address)
        counted = self._counted(site, now)
        if counted <= self._most - 1:
            if not counted:
                self._failures.pop(site, None)
            return 0
        return max(1, math.ceil((counted - self._most + 1) * 60 / self._most))

    def _counted(self, site: str, now: float) -> float:
        counted, then = self._failures.get(site, (0.0, now))
        return max(0.0, counted - (now - then) * self._most / 60)


def site_of(address: str) -> str:
    """What an address counts as: IPv4 as it is (mapped into IPv6 too), IPv6 as its /64 network."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((int(parsed), _IPV6_SITE_BITS), strict=False))
    return str(parsed)
