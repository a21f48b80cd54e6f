"""How long messages are on their way over the links of a topology, and what each link carries.

    seconds of a client in an exchange = what it receives + operations / flops + what it sends
    one link, one message:  (latency + bytes / bandwidth) / (1 − loss)

A message is passed on once it has come in whole, so that the seconds of the links on its way add
up. A client's own link to its network and the first link of the topology are one way: the slower of
the two carries. Where a share of messages is lost, each is sent until it has come through, which
takes 1 / (1 − loss) transmissions in expectation; times and bytes are these expectations, and no
random draws. Nothing overlaps at a client: it receives, computes, and then sends. That a node and
an edge server pass on at once what they have, and compute for nothing, is assumed.

    through the server   all links between a client and the server, both ways
    through edges        the client's link; where the cloud has its turn, the links between edge
                         servers and the cloud once up and once down, for one model each. The cloud
                         needs all before it answers any, so a client's seconds are followed by its
                         edge server's way up and then by the longest way down
    among neighbours     a client takes in its neighbours' copies one after the other, computes, and
                         sends its own, which queue on its link and then travel side by side:
                         Σ_j bytes / (min(up, bandwidth_j) (1 − loss_j))
                         + max_j latency_j / (1 − loss_j)

Neighbours send to those who were asked, whether or not these answer. An exchange in which nobody
was asked takes no time and moves nothing.

Shapes: N clients, K of an exchange, E edge servers, M links, A arcs (a link in one direction).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fedsim.devices.base import Fleet
from fedsim.errors import ConfigError, ResumeError
from fedsim.topology.base import SERVER, Linked, TopologyPart, edge_of
from fedsim.topology.traffic import AmongNeighbours, ThroughServer, Traffic

if TYPE_CHECKING:
    import networkx as nx

MOST_LINKS = 5000
"""Of a graph with more links, the bytes of each are not kept."""
MOST_OF_A_STAR = 500
"""The same of a star, whose links the footprint of clients tells already."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """What an exchange moves: bytes of each client, and seconds around its computing; `[K]`."""

    down_K: np.ndarray
    up_K: np.ndarray
    before_K: np.ndarray
    after_K: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Links:
    """The links of a graph, each column `[M]`."""

    bandwidth_M: np.ndarray
    latency_M: np.ndarray
    loss_M: np.ndarray

    @classmethod
    def of(cls, values: Iterable[dict[str, float]]) -> Links:
        """Return the links of these attributes."""
        rows = [
            (v.get("bandwidth", np.inf), v.get("latency", 0.0), v.get("loss", 0.0)) for v in values
        ]
        columns = np.array(rows, np.float64).reshape(-1, 3).T
        return cls(bandwidth_M=columns[0], latency_M=columns[1], loss_M=columns[2])

    def seconds(
        self, link_K: np.ndarray, bytes_K: np.ndarray, device_K: np.ndarray | float = np.inf
    ) -> np.ndarray:
        """Return how long messages take over one link each, whose ends are devices so fast."""
        busy_K = bytes_K / np.minimum(self.bandwidth_M[link_K], device_K)
        each_K = (self.latency_M[link_K] + busy_K) / (1 - self.loss_M[link_K])
        return np.where(bytes_K > 0, each_K, 0.0)


class Network:
    """The links of one run's topology.

    Args:
        topology: The part.
        num_clients: N.
        graph: Makes its graph; a star whose links are alike does without.

    Attributes:
        bytes_M: What each link has carried so far, both ways together and with what was sent again,
            in the order of the graph's edges; None where it is not kept.
        why_not: Why it is not, in words.
    """

    def __init__(
        self, topology: TopologyPart, num_clients: int, graph: Callable[[], nx.Graph]
    ) -> None:
        self.kind = topology.kind
        self.num_clients = num_clients
        self._make = graph
        self._alike = topology.link if isinstance(topology, Linked) else None
        count = num_clients if self._plain_star else self.graph.number_of_edges()
        most = MOST_OF_A_STAR if self.kind == "star" else MOST_LINKS
        self.bytes_M = np.zeros(count) if count <= most else None
        self.why_not = "" if count <= most else f"the topology has {count:,} links (most: {most:,})"

    @property
    def _plain_star(self) -> bool:
        return self.kind == "star" and self._alike is not None

    @cached_property
    def graph(self) -> nx.Graph:
        """The topology's graph."""
        return self._make()

    @cached_property
    def links(self) -> Links:
        """All links, in the order of the graph's edges."""
        if self._plain_star and self._alike is not None:
            of_all = Links.of([self._alike])
            return Links(
                bandwidth_M=np.broadcast_to(of_all.bandwidth_M, self.num_clients),
                latency_M=np.broadcast_to(of_all.latency_M, self.num_clients),
                loss_M=np.broadcast_to(of_all.loss_M, self.num_clients),
            )
        return Links.of(values for *_, values in self.graph.edges(data=True))

    @cached_property
    def _number(self) -> dict[frozenset[object], int]:
        return {frozenset(edge): m for m, edge in enumerate(self.graph.edges)}

    @cached_property
    def _first_N(self) -> np.ndarray:
        """Which link each client has to the server or to its edge server."""
        if self._plain_star:
            return np.arange(self.num_clients)
        if self.kind == "peer":
            raise ConfigError(
                "strategy: on a topology of peers nothing passes through a server; override "
                "FedsimStrategy.traffic to say what neighbours send one another"
            )
        ends: list[object] = [SERVER] * self.num_clients
        if self.kind == "hierarchical":
            ends = [self._edges[e] for e in self._edge_N.tolist()]
        return np.array([self._number[frozenset((k, end))] for k, end in enumerate(ends)], np.int64)

    @cached_property
    def _edges(self) -> list[object]:
        return [node for node, role in self.graph.nodes(data="role") if role == "edge"]

    @cached_property
    def _edge_N(self) -> np.ndarray:
        return edge_of(self.graph, self.num_clients)

    @cached_property
    def _trunk_E(self) -> np.ndarray:
        """Which link each edge server has to the cloud."""
        return np.array([self._number[frozenset((edge, SERVER))] for edge in self._edges], np.int64)

    @cached_property
    def _arcs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(from whom, to whom, over which link), each `[A]`."""
        pairs_M2 = np.array(self.graph.edges, np.int64).reshape(-1, 2)
        link_M = np.arange(len(pairs_M2))
        both_A2 = np.concatenate([pairs_M2, pairs_M2[:, ::-1]])
        return both_A2[:, 0], both_A2[:, 1], np.tile(link_M, 2)

    # --- one exchange ------------------------------------------------------------------------

    def passage(
        self,
        traffic: Traffic,
        fleet: Fleet,
        clients: np.ndarray,
        down_K: np.ndarray,
        up_K: np.ndarray,
        size: int = 0,
        *,
        count: bool = False,
    ) -> Passage:
        """Return what an exchange moves, and how long that takes.

        Args:
            traffic: Of which kind it is.
            fleet: The clients' devices.
            clients: Who was asked, ascending, `[K]`.
            down_K: Bytes of each one's message.
            up_K: Of its reply; 0 of one that has not replied.
            size: Bytes of what `traffic` says is sent beside these.
            count: Add the bytes to those that links have carried.
        """
        if isinstance(traffic, AmongNeighbours):
            return self._among_neighbours(fleet, clients, up_K > 0, size, count=count)
        links, first_K = self.links, self._first_N[clients]
        before_K = links.seconds(first_K, down_K, fleet.down_N[clients])
        after_K = links.seconds(first_K, up_K, fleet.up_N[clients])
        if count:
            self._carry(first_K, down_K + up_K)
        if self.kind == "hierarchical":
            trunk_K = self._trunk_E[self._edge_N[clients]]
            if isinstance(traffic, ThroughServer):
                before_K = links.seconds(trunk_K, down_K) + before_K
                after_K = after_K + links.seconds(trunk_K, up_K)
                if count:
                    self._carry(trunk_K, down_K + up_K)
            elif traffic.cloud is not None:
                used_E = self._trunk_E[np.unique(self._edge_N)]
                way_E = links.seconds(used_E, np.full(len(used_E), float(size)))
                up_on_K = links.seconds(trunk_K, np.full(len(trunk_K), float(size)))
                after_K = after_K + up_on_K + way_E.max(initial=0.0)
                if count:
                    self._carry(used_E, np.full(len(used_E), 2.0 * size))
        return Passage(down_K=down_K, up_K=up_K, before_K=before_K, after_K=after_K)

    def _among_neighbours(
        self, fleet: Fleet, clients: np.ndarray, sends_K: np.ndarray, size: int, *, count: bool
    ) -> Passage:
        asked_N = np.zeros(self.num_clients, bool)
        sends_N = np.zeros(self.num_clients, bool)
        asked_N[clients], sends_N[clients] = True, sends_K
        from_A, to_A, link_A = self._arcs
        moves_A = sends_N[from_A] & asked_N[to_A] & (size > 0)
        from_A, to_A, link_A = from_A[moves_A], to_A[moves_A], link_A[moves_A]
        links, N = self.links, self.num_clients
        again_A = 1 - links.loss_M[link_A]
        rate_A = np.minimum(fleet.up_N[from_A], links.bandwidth_M[link_A])
        after_N = np.bincount(from_A, size / rate_A / again_A, minlength=N)
        far_N = np.zeros(N)
        np.maximum.at(far_N, from_A, links.latency_M[link_A] / again_A)
        if count:
            self._carry(link_A, np.full(len(link_A), float(size)))
        down_K = size * np.bincount(to_A, minlength=N)[clients].astype(np.float64)
        return Passage(
            down_K=down_K,
            up_K=size * np.bincount(from_A, minlength=N)[clients].astype(np.float64),
            before_K=down_K / fleet.down_N[clients],
            after_K=(after_N + far_N)[clients],
        )

    def _carry(self, link_K: np.ndarray, bytes_K: np.ndarray) -> None:
        if self.bytes_M is not None:
            sent_K = bytes_K / (1 - self.links.loss_M[link_K])
            self.bytes_M += np.bincount(link_K, sent_K, minlength=len(self.bytes_M))

    # --- the run folder ----------------------------------------------------------------------

    def restore(self, bytes_M: np.ndarray | None) -> None:
        """Go on from what links had carried; None if nobody knows, which then stays so."""
        if bytes_M is None and self.bytes_M is not None:
            self.bytes_M, self.why_not = None, "earlier rounds did not keep what links carried"
        elif bytes_M is not None and self.bytes_M is not None:
            if bytes_M.shape != self.bytes_M.shape:
                raise ResumeError(
                    f"the checkpoint holds what {len(bytes_M)} links have carried, but the "
                    f"topology has {len(self.bytes_M)}; was the code changed?"
                )
            self.bytes_M = bytes_M.copy()

    def describe(self) -> dict[str, list[dict[str, object]]] | None:
        """Return the graph with what its links have carried, as plain data; None if not kept.

        A bandwidth without a limit is null, since JSON knows no infinity.
        """
        if self.bytes_M is None:
            return None
        ends = self.graph.edges(data=True)
        return {
            "nodes": [{"id": n, "role": role} for n, role in self.graph.nodes(data="role")],
            "edges": [
                {
                    "a": a,
                    "b": b,
                    "bytes": carried,
                    "bandwidth": values["bandwidth"] if np.isfinite(values["bandwidth"]) else None,
                    "latency": values["latency"],
                    "loss": values["loss"],
                }
                for (a, b, values), carried in zip(ends, self.bytes_M.tolist(), strict=True)
            ],
        }
