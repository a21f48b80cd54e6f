"""Answers of a client app to questions (`fedsim.query`): each is made once, and kept.

A randomised answer must not be drawn a second time: two draws tell more than one. So the answer to
a round's question lies in the client's Flower state, which outlives the process that made it, and a
message that comes again gets the same bytes. A round that comes again with *another* question, as
when a server has lost its state, is refused: those whom it concerns have answered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedsim.client.runtime import ClientRuntime
from fedsim.client.sequential import train_client
from fedsim.errors import FedsimError
from fedsim.records import (
    ARRAYS,
    CLIENT_ARRAYS,
    CONFIG,
    METRICS,
    Scalar,
    reply_content,
    to_tensors,
)

_KEPT = "answer"


class AnsweredError(FedsimError):
    """A client was asked another question in a round that it has answered."""


def answered(
    find: Callable[[Context], ClientRuntime],
    message: Message,
    context: Context,
    client: int,
    *,
    zero_copy: bool,
) -> RecordDict:
    """Return a client's answer to a question: the one that it has given already, or a new one.

    Raises:
        AnsweredError: It has answered another question in this round.
    """
    config = message.content.config_records[CONFIG]
    server_round, asked = int(cast(int, config["server-round"])), _digest(message.content)
    kept = f"{_KEPT}-{server_round}"
    state = context.state
    if kept in state.config_records:
        if state.config_records[kept]["question"] != asked:
            raise AnsweredError(
                f"client {client} has answered another question in round {server_round}, and "
                "nobody is made to answer twice; start a new run"
            )
        return RecordDict(
            {
                METRICS: cast(MetricRecord, state[f"{kept}-{METRICS}"]).copy(),
                ARRAYS: ArrayRecord(),
                CLIENT_ARRAYS: cast(ArrayRecord, state[f"{kept}-{CLIENT_ARRAYS}"]).copy(),
            }
        )
    runtime = find(context)
    arrays = message.content.array_records
    own = to_tensors(arrays.get(CLIENT_ARRAYS, {}))
    result = train_client(
        runtime,
        client=client,
        server_round=server_round,
        params=runtime.received(to_tensors(arrays[ARRAYS])),
        client_arrays=runtime.received(own),
        told=cast(Mapping[str, Scalar], config),
    )
    content = reply_content(result.params, result.metrics, result.upload, zero_copy=zero_copy)
    state[kept] = ConfigRecord({"question": asked})
    state[f"{kept}-{METRICS}"] = content.metric_records[METRICS].copy()
    state[f"{kept}-{CLIENT_ARRAYS}"] = content.array_records.get(
        CLIENT_ARRAYS, ArrayRecord()
    ).copy()
    return content


def _digest(content: RecordDict) -> str:
    """Return what tells one question from another, however it was carried."""
    found = hashlib.sha256()
    config = {name: str(value) for name, value in content.config_records[CONFIG].items()}
    found.update(json.dumps(config, sort_keys=True).encode())
    for record in (ARRAYS, CLIENT_ARRAYS):
        for name, tensor in sorted(to_tensors(content.array_records.get(record, {})).items()):
            found.update(f"{record} {name} {tensor.dtype} {list(tensor.shape)}".encode())
            found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
