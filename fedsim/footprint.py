"""What a round takes of its clients: bytes, operations, and seconds of a device like theirs.

Bytes are those of Flower's wire format, in which messages cross a wire, of the records of a message
(not of its routing, nor of what TLS adds). An engine that passes tensors inside one process makes
no such bytes: then messages are laid out as they would be, with zeros in place of values, once for
each layout there is. Where nodes have no server to talk to, the bytes are those of what they would
send one another (`FedsimStrategy.traffic`). Operations are counted on the client half's own code
(`fedsim.effort`), in matrix products and convolutions, a multiply-add being two. Seconds are
simulated: those of the scenario's `devices`, and of the links of its `topology` (`fedsim.network`).

A client that was asked and has not replied has received, and nothing more. Where a mechanism hides
how many samples a client holds, or makes gradients of its own, operations are not counted, since
they would tell; and seconds are not without them. Nor are they where clients answer questions.

Shapes: K clients of an exchange.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict

from fedsim.admission import Admission, AdmittedReplies
from fedsim.client.runtime import ClientRuntime
from fedsim.devices.base import Fleet
from fedsim.effort import LocalEffort, evaluation_effort, local_effort
from fedsim.engines.flwr_compat import encoded_bytes
from fedsim.network import Network, Passage
from fedsim.partition.base import labelled_sizes, train_sizes
from fedsim.records import EVALUATE, Instructions, Params, TensorArray, to_record
from fedsim.topology.traffic import ThroughServer, Traffic, beside

log = logging.getLogger(__name__)

CLIENT, DOWN, UP = "client-index", "bytes-down", "bytes-up"
FLOPS, SECONDS, REPLIED = "flops", "seconds", "replied"
"""The columns of a footprint. `replied` is there where bytes up do not tell who has: a node without
neighbours has sent nothing."""


def content_bytes(content: RecordDict) -> int:
    """Return the length of a message's records in Flower's wire format.

    They are laid end to end, so that their lengths add up.
    """
    return sum(_record_bytes(key, record) for key, record in content.items())


def _record_bytes(key: str, record: object) -> int:
    if isinstance(record, ArrayRecord):
        arrays = list(record.items())
        if all(isinstance(array, TensorArray) for _, array in arrays):
            return _layout_bytes(key, tuple((n, a.dtype, tuple(a.shape)) for n, a in arrays))
    return encoded_bytes(RecordDict({key: record}))  # type: ignore[dict-item]


@lru_cache(maxsize=256)
def _layout_bytes(key: str, layout: tuple[tuple[str, str, tuple[int, ...]], ...]) -> int:
    record = ArrayRecord()
    for name, dtype, shape in layout:
        values = torch.zeros(shape, dtype=getattr(torch, dtype)).numpy()
        record[name] = Array.from_numpy_ndarray(values)
    return encoded_bytes(RecordDict({key: record}))


class Meter:
    """Measures the exchanges of one run.

    Args:
        runtime: The client side of the run.
        fleet: The devices of its clients.
        network: The links between them.
        traffic: Says what an exchange, of the strategy's latest round, moves over these.
    """

    def __init__(
        self,
        runtime: ClientRuntime,
        fleet: Fleet,
        network: Network,
        traffic: Callable[[str], Traffic],
    ) -> None:
        self.runtime = runtime
        self.fleet = fleet
        self.network = network
        self._traffic = traffic
        self._training: LocalEffort | None = None
        self._evaluating: dict[int, float] = {}
        self._latest: tuple[AdmittedReplies, tuple[np.ndarray, np.ndarray | None]] | None = None

    def footprint(self, exchange: str, replies: AdmittedReplies) -> dict[str, list[float]]:
        """Return the columns of one exchange, once it has been drawn; its bytes are counted here.

        By client index, ascending.
        """
        down_K, flops_K = self._known(exchange, replies)
        clients = replies.clients
        up_K = np.array([replies.received_bytes.get(k, 0) for k in clients.tolist()], np.float64)
        way = self._passage(exchange, clients, down_K, up_K, count=True)
        columns = {CLIENT: clients, DOWN: way.down_K, UP: way.up_K}
        if way.up_K is not up_K:
            columns[REPLIED] = (up_K > 0).astype(np.float64)
        if flops_K is not None:
            flops_K = np.where(up_K > 0, flops_K, 0.0)
            seconds_K = way.before_K + flops_K / self.fleet.flops_N[clients] + way.after_K
            columns |= {FLOPS: flops_K, SECONDS: seconds_K}
        return {name: column.tolist() for name, column in columns.items()}

    def busy(
        self, replies: AdmittedReplies, clients: np.ndarray, unheard: int = 0
    ) -> np.ndarray | None:
        """Return the seconds of some clients of a training exchange, float64 `[K]`.

        Of those whose replies are not in, as if they were of `unheard` bytes; somebody's is. Among
        neighbours, all are taken to come. None where operations are not counted.
        """
        down_K, flops_K = self._known("train", replies)
        if flops_K is None:
            return None
        asked = replies.clients
        up_K = np.ones(len(asked))
        rows = np.searchsorted(asked, clients)
        up_K[rows] = [replies.received_bytes.get(k, unheard) for k in clients.tolist()]
        way = self._passage("train", asked, down_K, up_K)
        seconds_K: np.ndarray = way.before_K + flops_K / self.fleet.flops_N[asked] + way.after_K
        return seconds_K[rows]

    def _passage(
        self,
        exchange: str,
        clients: np.ndarray,
        down_K: np.ndarray,
        up_K: np.ndarray,
        *,
        count: bool = False,
    ) -> Passage:
        traffic = self._traffic(exchange)
        sent = beside(traffic)
        size = content_bytes(RecordDict({"arrays": to_record(sent, zero_copy=True)})) if sent else 0
        return self.network.passage(traffic, self.fleet, clients, down_K, up_K, size, count=count)

    def latencies(self) -> np.ndarray | None:
        """Return the seconds that each client would be busy with a round's work, float64 `[N]`.

        That is to receive the model from the server, to train it, and to send as many bytes back,
        or an encoded update. None where operations are not counted.
        """
        clients = np.arange(self.runtime.partition.num_clients)
        sent = Instructions(
            message_type=MessageType.TRAIN,
            server_round=1,
            client_index=clients,
            node_ids=clients,
            arrays=to_record(self.runtime.initial_params(), zero_copy=True),
            config={"seed": self.runtime.seed, "num-clients": len(clients)},
            zero_copy=True,
        )
        replies = Admission().admit(sent, [], None)
        down_N, flops_N = self._down(replies), self._flops("train", replies, clients)
        if flops_N is None:
            return None
        up_N, compressor = down_N, self.runtime.compressor
        if compressor is not None:
            encoded = to_record(compressor.like(self.runtime.initial_params()), zero_copy=True)
            up_N = np.full(len(clients), float(content_bytes(RecordDict({"arrays": encoded}))))
        way = self.network.passage(ThroughServer(), self.fleet, clients, down_N, up_N, 0)
        seconds_N: np.ndarray = way.before_K + flops_N / self.fleet.flops_N + way.after_K
        return seconds_N

    def _known(
        self, exchange: str, replies: AdmittedReplies
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return (bytes down, operations if they reply) of those asked, once one has replied."""
        if self._latest is None or self._latest[0] is not replies:
            known = self._down(replies), self._flops(exchange, replies, replies.clients)
            self._latest = replies, known
        return self._latest[1]

    # --- bytes -------------------------------------------------------------------------------

    def _down(self, replies: AdmittedReplies) -> np.ndarray:
        sent = replies.sent
        if not isinstance(sent, Instructions):
            bytes_of = {replies.client_of(message): _message_bytes(message) for message in sent}
            return np.array([bytes_of[k] for k in replies.clients.tolist()], np.float64)
        # An index takes as many bytes as it needs, and is all that messages differ in.
        digits_K = np.array([int(k).bit_length() for k in sent.client_index])
        down_K = np.zeros(len(sent))
        for digits in set(digits_K.tolist()):
            client = int(sent.client_index[np.argmax(digits_K == digits)])
            down_K[digits_K == digits] = content_bytes(sent.content(client, _zeros(sent)))
        return down_K[np.argsort(sent.client_index, kind="stable")]

    # --- operations --------------------------------------------------------------------------

    def _flops(
        self, exchange: str, replies: AdmittedReplies, clients: np.ndarray
    ) -> np.ndarray | None:
        runtime = self.runtime
        if runtime.half.queried or runtime.hides_sizes or not runtime.estimator.plain:
            return None
        size_K = runtime.partition.sizes(clients)
        if exchange == "evaluate":
            return self._evaluation(replies, clients, size_K)
        train_K = train_sizes(size_K, runtime.holdout)
        if not runtime.half.takes_unlabelled:
            train_K = labelled_sizes(train_K, runtime.dataset.labelled)
        effort = self._effort(replies, clients, train_K)
        if effort is None:
            return None
        flops_K = effort.of(runtime.work.visits(train_K), train_K)
        if isinstance(replies.sent, Instructions) and replies.sent.config.get(EVALUATE):
            scored_K = self._evaluation(replies, clients, size_K)
            return None if scored_K is None else flops_K + scored_K
        return flops_K

    def _effort(
        self, replies: AdmittedReplies, clients: np.ndarray, train_K: np.ndarray
    ) -> LocalEffort | None:
        if self._training is None and (train_K > 0).any():
            told = dict(replies.sent.config) if isinstance(replies.sent, Instructions) else {}
            told.pop(EVALUATE, None)
            client = int(clients[np.argmax(train_K)])
            try:
                self._training = local_effort(
                    self.runtime,
                    client=client,
                    server_round=1,
                    params=self._model(replies),
                    client_arrays=self._own(replies),
                    told=told,
                )
            except Exception as error:  # the half fails on this client, as data or as code
                log.warning("operations are not counted: client %d: %s", client, error)
        return self._training

    def _evaluation(
        self, replies: AdmittedReplies, clients: np.ndarray, size_K: np.ndarray
    ) -> np.ndarray | None:
        """Return the operations of evaluations.

        One is counted for each number of samples that clients hold; where all score one model, that
        of the largest alone, since the others' are in proportion.
        """
        half, held_K = self.runtime.half, size_K - train_sizes(size_K, self.runtime.holdout)
        alike = not half.overrides("score") and not half.personal
        most = int(np.argmax(held_K))
        for row in [most] if alike else np.unique(size_K, return_index=True)[1].tolist():
            size = int(size_K[row])
            if size in self._evaluating:
                continue
            try:
                self._evaluating[size] = evaluation_effort(
                    self.runtime,
                    client=int(clients[row]),
                    server_round=1,
                    params=self._model(replies),
                    client_arrays=self._own(replies),
                )
            except Exception as error:  # as above
                log.warning("operations are not counted: client %d: %s", clients[row], error)
                return None
        if alike:
            each = self._evaluating[int(size_K[most])] / max(1, int(held_K[most]))
            flops_K: np.ndarray = held_K * each
            return flops_K
        return np.array([self._evaluating[size] for size in size_K.tolist()])

    def _model(self, replies: AdmittedReplies) -> Params:
        """Return a model of the names that clients were sent."""
        initial = self.runtime.initial_params()
        if not isinstance(replies.sent, Instructions):
            return initial
        names = replies.sent.arrays
        return {name: tensor for name, tensor in initial.items() if name in names}

    def _own(self, replies: AdmittedReplies) -> Params:
        """Return zeros like what a client was sent for itself."""
        device = self.runtime.dataset.train_x.device
        if not isinstance(replies.sent, Instructions):
            return {}
        return {name: t.to(device) for name, t in _zeros(replies.sent).items()}


def _zeros(sent: Instructions) -> Params:
    return {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in sent.row_like.items()}


def _message_bytes(message: Message) -> int:
    return content_bytes(message.content)
