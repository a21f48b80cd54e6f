"""Any graph of a GraphML file (http://graphml.graphdrawing.org), as networkx and others write it.

A file with a document type or entities is refused: their expansion could take any amount of memory
or read other files, and GraphML needs neither.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

import networkx as nx

from fedsim.errors import ConfigError, DataError
from fedsim.topology.base import Linked

MAX_BYTES = 2**26


@dataclass(frozen=True, kw_only=True)
class GraphML(Linked):
    """Nodes named 0..N-1 are the clients of that index; other names count in the file's order.

    Directions are ignored. An edge's own `bandwidth` (bytes/s), `latency` (s) and `loss` come
    before those given here.

    Attributes:
        path: The file.
    """

    kind = "peer"

    path: str

    def graph(self, num_clients: int, seed: int = 0) -> nx.Graph:
        read = self._read()
        if len(read) != num_clients:
            raise ConfigError(
                f"path: {self.path} has {len(read)} nodes, but there are {num_clients} clients; "
                f"set partition.num_clients={len(read)}"
            )
        names = list(read.nodes)
        if {str(name) for name in names} == {str(k) for k in range(num_clients)}:
            names.sort(key=lambda name: int(str(name)))
        number = {name: k for k, name in enumerate(names)}
        peers = nx.Graph()
        peers.add_nodes_from(range(num_clients), role="client")
        for a, b, own in read.edges(data=True):
            if a != b:
                peers.add_edge(number[a], number[b], **self._link(a, b, own))
        if not nx.is_connected(peers):
            parts = sorted(map(len, nx.connected_components(peers)), reverse=True)
            raise ConfigError(
                f"path: the graph of {self.path} is not connected: it falls into {len(parts)} "
                f"parts, of {', '.join(map(str, parts[:5]))}{' ...' if len(parts) > 5 else ''} "
                "nodes, which would never agree; add edges between them"
            )
        return peers

    def hops(self) -> int:
        return 1

    def _read(self) -> nx.Graph:
        try:
            with Path(self.path).expanduser().open("rb") as file:
                text = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise DataError(
                f"path: {self.path} cannot be read ({error.strerror}); set topology.path to a "
                "GraphML file, as networkx.write_graphml makes one"
            ) from error
        if len(text) > MAX_BYTES:
            raise DataError(f"path: {self.path} is larger than {MAX_BYTES // 2**20} MiB")
        self._check(text)
        try:
            read = nx.read_graphml(io.BytesIO(text))
        except Exception as error:  # what networkx raises on damaged files is not documented
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        if not len(read):
            raise self._damaged("it has no nodes")
        return read

    def _check(self, text: bytes) -> None:
        """Refuse what is no XML, or declares a document type."""
        parser = expat.ParserCreate()

        def refuse(*_: object) -> None:
            raise DataError(
                f"path: {self.path} declares a document type or entities, which GraphML does not "
                "need and which are refused; delete the <!DOCTYPE ...> part"
            )

        parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
        try:
            parser.Parse(text, True)
        except expat.ExpatError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> DataError:
        return DataError(
            f"path: {self.path} is no GraphML file ({why[:200]}); networkx.write_graphml makes one"
        )

    def _link(self, a: object, b: object, own: dict[str, object]) -> dict[str, float]:
        """Return what is said of one edge; other attributes are somebody else's, and are left."""
        values = {**self.link, **{key: own[key] for key in self.link if key in own}}
        checked = {}
        for key, value in values.items():
            number = math.nan
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                number = float(value)
            above = number > 0 if key == "bandwidth" else number >= 0
            below = {"bandwidth": True, "latency": number < math.inf, "loss": number < 1}[key]
            if not (above and below):
                raise DataError(
                    f"path: {self.path}: edge {a} - {b} has {key}={value!r}; allowed: bandwidth "
                    "above 0 (bytes/s), latency from 0 (s), loss from 0 to below 1"
                )
            checked[key] = number
        return checked
