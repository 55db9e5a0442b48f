"""Where a request comes from, as far as the connection can tell."""

import ipaddress
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

_LONGEST_AGENT = 200
# One household or one rented server has a whole /64 of IPv6 to choose from.
_IPV6_PREFIX = 64


@dataclass(frozen=True, slots=True)
class Client:
    """What is at the other end of a request."""

    network: str
    """The address of IPv4 or the /64 of IPv6, as in `2001:db8::/64`."""
    agent: str | None
    """What it calls itself; text for people, at most 200 characters."""


def network_of(host: str | None) -> str:
    """The network that a peer's address belongs to; a word for what is no address."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(
                ipaddress.IPv6Network((int(address), _IPV6_PREFIX), strict=False)
            )
        address = address.ipv4_mapped
    return str(address)


async def _current_client(request: Request) -> Client:
    # async, though nothing is awaited: FastAPI calls any other in a thread. The peer is
    # what a trusted proxy says it is; from anybody else the header changes nothing.
    told = request.headers.get("user-agent", "")
    agent = "".join(filter(str.isprintable, told))[:_LONGEST_AGENT].strip()
    peer = request.client
    return Client(network_of(peer.host if peer else None), agent or None)


CurrentClient = Annotated[Client, Depends(_current_client)]
