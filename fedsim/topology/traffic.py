"""What an exchange would move over a topology's links, as a strategy says it.

In a simulation every client talks to the one process that keeps the books. In the network that an
algorithm is made for it may not: neighbours send models to one another, and edge servers average
before they pass anything on. A strategy says which of these its exchanges are, and
`fedsim.network` says what crosses which link, and for how long.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.records import Params


@dataclass(frozen=True, kw_only=True)
class ThroughServer:
    """Each client's message and its reply cross all links between it and the server."""


@dataclass(frozen=True, kw_only=True)
class ThroughEdges:
    """Messages and replies cross the link between a client and its edge server, and no other.

    Attributes:
        cloud: What each edge server then sends to the cloud and gets back from it, in names and
            shapes; None if the cloud has no part in this exchange.
    """

    cloud: Params | None = None


@dataclass(frozen=True, kw_only=True)
class AmongNeighbours:
    """Clients have nobody to reply to but their neighbours.

    Attributes:
        copy: What each sends to every neighbour, in names and shapes; None: nothing moves.
    """

    copy: Params | None = None


Traffic = ThroughServer | ThroughEdges | AmongNeighbours


def beside(traffic: Traffic) -> Params | None:
    """Return an example of what is sent beside the clients' own messages, or in their place."""
    if isinstance(traffic, AmongNeighbours):
        return traffic.copy
    return traffic.cloud if isinstance(traffic, ThroughEdges) else None
