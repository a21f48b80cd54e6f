"""The only file that imports Flower's private modules.

Checked on flwr 1.38 to 1.42. Everything else in fedsim uses `flwr.app`, `flwr.clientapp` and
`flwr.serverapp` alone.
"""

from __future__ import annotations

import logging

from flwr.app import Array, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

FIRST_NODE_ID = SUPERLINK_NODE_ID + 1
"""Node ids of virtual clients start here; 0 and the SuperLink's own id are taken."""


def make_run(run_id: int = 1) -> Run:
    """Return an empty Flower run, and make this process its task.

    Since flwr 1.38 a `Message` cannot be made before the (process-global) task identity is set.
    """
    become_task_of(run_id)
    return Run.create_empty(run_id=run_id)


def become_task_of(run_id: int) -> None:
    """Make this process the server of a run: the messages that it makes bear the run's id."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    TaskIdentity.task_id = 1


def client_error(message: Message, reason: str) -> Message:
    """Return the reply that Flower sends when a client app raises."""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def absent_error(message: Message, reason: str) -> Message:
    """Return the reply that Flower sends for a node that is gone."""
    return Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=message)


def is_absence(error: Error) -> bool:
    """Whether an error says that a message or its reply went nowhere, not that a client failed."""
    return error.code in (
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    )


def through_wire(content: RecordDict) -> RecordDict:
    """Return what the other side of a real wire would get.

    Raises:
        TypeError: A record holds tensors, whose class Flower's wire format does not know.
    """
    for key, record in content.array_records.items():
        for name, array in record.items():
            if type(array) is not Array:
                raise TypeError(f"'{name}' of record '{key}' is a {type(array).__name__}")
    return recorddict_from_proto(recorddict_to_proto(content))


def encoded_bytes(content: RecordDict) -> int:
    """Return the length of a message's records in Flower's wire format."""
    return int(recorddict_to_proto(content).ByteSize())


def quiet_flower() -> None:
    """Keep Flower's own progress lines out of ours; its warnings and errors stay."""
    logging.getLogger("flwr").setLevel(logging.WARNING)


def simulate(
    server_app: ServerApp, client_app: ClientApp, num_clients: int, resources: dict[str, float]
) -> None:
    """Run Flower's simulation engine, on a Ray that is running, until the server app ends.

    Ray is shut down at the end. Flower prints the traceback of whatever goes wrong, and that the
    function is deprecated in favour of a command; here errors are raised, or in a client's reply.

    Args:
        server_app: Is called in a thread of its own, before there are nodes.
        client_app: Is sent to Ray's actors with every message.
        num_clients: How many virtual nodes there are.
        resources: `num_cpus` and `num_gpus` of an actor.
    """
    from flwr.simulation import run_simulation

    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        run_simulation(
            server_app=server_app,
            client_app=client_app,
            num_supernodes=num_clients,
            backend_name="ray",
            backend_config={"client_resources": dict(resources)},
        )
    finally:
        logger.setLevel(before)


__all__ = [
    "FIRST_NODE_ID",
    "Run",
    "absent_error",
    "become_task_of",
    "client_error",
    "encoded_bytes",
    "is_absence",
    "make_run",
    "quiet_flower",
    "simulate",
    "through_wire",
]
