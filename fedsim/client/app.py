"""The Flower `ClientApp` of every scenario: one message in, one client's work, one reply out."""

from __future__ import annotations

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from fedsim.client.runtime import ClientRuntime
from fedsim.client.sequential import evaluate_client, train_client
from fedsim.records import ARRAYS, CLIENT_ARRAYS, CONFIG, Params, reply_content, to_tensors


def make_client_app(runtime: ClientRuntime, *, zero_copy: bool) -> ClientApp:
    """Return the client app of a scenario.

    The client knows its index from its node's `partition-id`, and the round from the message.

    Args:
        runtime: Data, model and client half.
        zero_copy: Reply with tensors instead of bytes; only inside one process.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = message.content.config_records[CONFIG]
        result = train_client(
            runtime,
            client=int(context.node_config["partition-id"]),
            server_round=int(config["server-round"]),  # type: ignore[arg-type]
            params=_params(runtime, message),
            client_arrays=_client_arrays(runtime, message),
        )
        content = reply_content(result.params, result.metrics, result.upload, zero_copy=zero_copy)
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        config = message.content.config_records.get(CONFIG, ConfigRecord())
        metrics = evaluate_client(
            runtime,
            client=int(context.node_config["partition-id"]),
            server_round=int(config.get("server-round", 0)),  # type: ignore[arg-type]
            params=_params(runtime, message),
            client_arrays=_client_arrays(runtime, message),
        )
        return Message(reply_content(None, metrics, zero_copy=zero_copy), reply_to=message)

    return app


def _params(runtime: ClientRuntime, message: Message) -> Params:
    return runtime.received(to_tensors(message.content.array_records[ARRAYS]))


def _client_arrays(runtime: ClientRuntime, message: Message) -> Params:
    arrays = to_tensors(message.content.array_records.get(CLIENT_ARRAYS, {}))
    return {name: t.to(runtime.dataset.train_x.device) for name, t in arrays.items()}
