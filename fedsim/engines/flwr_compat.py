"""The only file that imports Flower's private modules.

Checked on flwr 1.38 to 1.42. Everything else in fedsim uses `flwr.app`, `flwr.clientapp` and
`flwr.serverapp` alone.
"""

from __future__ import annotations

import logging

from flwr.app import Array, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

FIRST_NODE_ID = SUPERLINK_NODE_ID + 1
"""Node ids of virtual clients start here; 0 and the SuperLink's own id are taken."""


def make_run(run_id: int = 1) -> Run:
    """Return an empty Flower run, and make this process its task.

    Since flwr 1.38 a `Message` cannot be made before the (process-global) task identity is set.
    """
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    TaskIdentity.task_id = 1
    return Run.create_empty(run_id=run_id)


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


def quiet_flower() -> None:
    """Keep Flower's own progress lines out of ours; its warnings and errors stay."""
    logging.getLogger("flwr").setLevel(logging.WARNING)


__all__ = [
    "FIRST_NODE_ID",
    "Run",
    "absent_error",
    "client_error",
    "is_absence",
    "make_run",
    "quiet_flower",
    "through_wire",
]
