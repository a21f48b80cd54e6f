"""The Flower `ClientApp` of every scenario: one message in, one client's work, one reply out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsim import __version__
from fedsim.client.answers import answered
from fedsim.client.runtime import ClientRuntime
from fedsim.client.sequential import evaluate_client, train_client
from fedsim.errors import ConfigError
from fedsim.records import (
    ANSWER,
    ARRAYS,
    CLIENT_ARRAYS,
    CONFIG,
    MEMORY,
    Params,
    Scalar,
    reply_content,
    to_record,
    to_tensors,
)

INFO = "info"
"""The query that a server asks every node once: who are you? (`RemoteGrid`)"""

FindRuntime = Callable[[Context], ClientRuntime]
"""Gives the client side of the run that a message's context belongs to."""


def make_client_app(find: FindRuntime, *, zero_copy: bool) -> ClientApp:
    """Return the client app of a scenario.

    The client knows its index from its node's `partition-id`, and the round from the message. What
    it remembers from one round to the next is in its context's state, under `MEMORY`.

    Args:
        find: Gives data, model and client half.
        zero_copy: Reply with tensors instead of bytes; only inside one process.
    """
    app = ClientApp()

    @app.query(INFO)
    def info(message: Message, context: Context) -> Message:
        answer = ConfigRecord({"client-index": index_of(context), "version": __version__})
        return Message(RecordDict({CONFIG: answer}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        runtime = find(context)
        config = message.content.config_records[CONFIG]
        client, server_round = _addressed(message, context), int(config["server-round"])  # type: ignore[arg-type]
        params = _params(runtime, message)
        result = train_client(
            runtime,
            client=client,
            server_round=server_round,
            params=params,
            client_arrays=_client_arrays(runtime, message),
            told=cast(Mapping[str, Scalar], config),
        )
        arrays = result.params
        if runtime.compressor is not None:
            memory = to_tensors(context.state.array_records.get(MEMORY, {}))
            arrays, memory = runtime.compressor.of_client(
                arrays, params, client, server_round, memory
            )
            if memory:
                context.state[MEMORY] = to_record(memory, zero_copy=zero_copy)
        content = reply_content(arrays, result.metrics, result.upload, zero_copy=zero_copy)
        return Message(content, reply_to=message)

    @app.query(ANSWER)
    def answer(message: Message, context: Context) -> Message:
        client = _addressed(message, context)
        content = answered(find, message, context, client, zero_copy=zero_copy)
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        runtime = find(context)
        config = message.content.config_records.get(CONFIG, ConfigRecord())
        metrics = evaluate_client(
            runtime,
            client=_addressed(message, context),
            server_round=int(config.get("server-round", 0)),  # type: ignore[arg-type]
            params=_params(runtime, message),
            client_arrays=_client_arrays(runtime, message),
        )
        return Message(reply_content(None, metrics, zero_copy=zero_copy), reply_to=message)

    return app


def index_of(context: Context) -> int:
    """Return the index of the client that a context belongs to.

    Raises:
        ConfigError: Its node was started without one.
    """
    index = context.node_config.get("partition-id")
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise ConfigError(
            f"partition-id: {index!r} is no client index; start the SuperNode with "
            "--node-config 'partition-id=K', K = 0, 1, ... one per device"
        )
    return index


def _addressed(message: Message, context: Context) -> int:
    """Return the client's index, which is the one that was asked, if the message says which.

    Raises:
        ConfigError: The node was restarted as another client since the server asked who it is.
    """
    index = index_of(context)
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    if config.get("client-index", index) != index:
        asked = config["client-index"]
        raise ConfigError(f"partition-id: client {asked!r} was asked, but this node is {index} now")
    return index


def _params(runtime: ClientRuntime, message: Message) -> Params:
    return runtime.received(to_tensors(message.content.array_records[ARRAYS]))


def _client_arrays(runtime: ClientRuntime, message: Message) -> Params:
    arrays = to_tensors(message.content.array_records.get(CLIENT_ARRAYS, {}))
    return {name: t.to(runtime.dataset.train_x.device) for name, t in arrays.items()}
