"""Flower's `Grid` contract on both in-process grids."""

import time

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.admission import ClientError
from fedsim.client import ClientHalf
from fedsim.engines.cohort import Cohort, CohortGrid
from fedsim.engines.in_process import InProcess, InProcessGrid
from fedsim.models.linear import LinearModel
from fedsim.partition.base import Partition
from fedsim.records import TensorArray, to_record
from tests.helpers import RAGGED, classification, make_runtime, run, shares

CLIENTS = len(RAGGED)
GRIDS = [InProcess(), InProcess(wire_check=True), Cohort(chunk=2), Cohort(plan="sequential")]


def runtime(**settings):
    return make_runtime(classification(), LinearModel(), **settings)


def train_message(
    grid, client: int, *, server_round: int = 1, kind: str = "train", arrays=None
) -> Message:
    if arrays is None:
        arrays = to_record(grid.runtime.initial_params(), zero_copy=grid.zero_copy)
    config = ConfigRecord({"server-round": server_round})
    content = RecordDict({"arrays": arrays, "config": config})
    return Message(content, int(grid.node_ids(np.array([client]))[0]), kind, group_id="1")


def counting_app() -> ClientApp:
    """A plain Flower app that knows nothing of fedsim, and counts its messages in its state."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        seen = context.state.get("seen", MetricRecord({"count": 0}))
        seen["count"] += 1
        context.state["seen"] = seen
        if message.content["config"].get("fail"):
            raise ValueError("told to")
        if message.content["config"].get("forget"):
            del context.state["seen"]
        metrics = {"count": seen["count"], "partition": context.node_config["partition-id"]}
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    return app


def ask(grid, *clients: int, **config) -> list[Message]:
    messages = [
        Message(RecordDict({"config": ConfigRecord(config)}), int(node), "train")
        for node in grid.node_ids(np.array(clients))
    ]
    return list(grid.send_and_receive(messages))


def counts(replies: list[Message]) -> list[int]:
    return [reply.content["metrics"]["count"] for reply in replies]


def test_any_client_app_runs_and_its_state_persists():
    grid = InProcessGrid(counting_app(), runtime())
    assert [r.content["metrics"]["partition"] for r in ask(grid, 3, 0)] == [3, 0]
    assert counts(ask(grid, 3, 5, 3)) == [2, 1, 3]


def test_the_state_of_a_client_that_fails_is_what_it_was_before():
    grid = InProcessGrid(counting_app(), runtime())
    ask(grid, 1)
    (reply,) = ask(grid, 1, fail=True)
    assert reply.has_error()
    assert "ValueError: told to" in reply.error.reason
    assert counts(ask(grid, 1)) == [2]


def test_a_client_may_empty_its_state():
    grid = InProcessGrid(counting_app(), runtime())
    ask(grid, 1)
    ask(grid, 1, forget=True)
    assert counts(ask(grid, 1)) == [1]


def test_clients_do_not_share_the_record_that_they_were_all_sent():
    app = ClientApp()

    @app.train()
    def train(message, context):
        config = message.content["config"]
        config["n"] += 1
        return Message(RecordDict({"metrics": MetricRecord({"n": config["n"]})}), reply_to=message)

    grid = InProcessGrid(app, runtime())
    shared = RecordDict({"config": ConfigRecord({"n": 0})})
    nodes = grid.node_ids(np.arange(3)).tolist()
    replies = grid.send_and_receive([Message(shared, node, "train") for node in nodes])
    assert [r.content["metrics"]["n"] for r in replies] == [1, 1, 1]
    assert shared["config"]["n"] == 0


@pytest.mark.parametrize("engine", GRIDS, ids=str)
def test_nodes_are_the_clients_and_may_be_narrowed(engine):
    grid = engine.grid(runtime())
    ids = list(grid.get_node_ids())
    assert [grid.client_index(node) for node in ids] == list(range(CLIENTS))
    assert grid.node_ids(np.arange(CLIENTS)).tolist() == ids
    grid.set_available(np.array([1, 4]))
    assert list(grid.get_node_ids()) == [ids[1], ids[4]]
    grid.set_available(np.array([], np.int64))
    assert list(grid.get_node_ids()) == []
    grid.set_available(None)
    assert list(grid.get_node_ids()) == ids
    grid.set_run(grid.run)
    assert list(grid.send_and_receive([])) == []


@pytest.mark.parametrize("engine", GRIDS, ids=str)
def test_pushed_messages_are_pulled_by_their_ids_once(engine):
    grid = engine.grid(runtime())
    clients = [4, 0, 2, 2]
    rounds = [1, 1, 2, 1]
    ids = grid.push_messages(
        [train_message(grid, c, server_round=r) for c, r in zip(clients, rounds, strict=True)]
    )
    assert len(set(ids)) == 4
    for position in (2, 0, 3, 1):
        (reply,) = grid.pull_messages([ids[position], "no such message"])
        assert grid.client_index(reply.metadata.src_node_id) == clients[position]
        assert reply.content["metrics"]["num-examples"] == RAGGED[clients[position]]
    assert list(grid.pull_messages(ids)) == []


@pytest.mark.parametrize("engine", GRIDS, ids=str)
def test_replies_name_their_sender_their_kind_and_their_round(engine):
    grid = engine.grid(runtime(holdout=0.4))
    for kind in ("train", "evaluate"):
        replies = list(grid.send_and_receive([train_message(grid, c, kind=kind) for c in (6, 0)]))
        assert sorted(grid.client_index(r.metadata.src_node_id) for r in replies) == [0, 6]
        assert {r.metadata.message_type for r in replies} == {kind}
        assert {r.metadata.group_id for r in replies} == {"1"}
        assert all(("arrays" in r.content) == (kind == "train") for r in replies)


def test_messages_that_ask_different_things_are_answered_each():
    grid = Cohort(chunk=2).grid(runtime())
    assert isinstance(grid, CohortGrid)
    arrays = to_record(grid.runtime.initial_params(), zero_copy=True)
    messages = [
        train_message(grid, c, server_round=r, arrays=arrays) for r in (1, 2) for c in (0, 2, 4)
    ]
    replies = list(grid.send_and_receive(messages))
    expected = list(InProcess().grid(runtime()).send_and_receive(messages))
    for one, other in zip(expected, replies, strict=True):
        assert one.metadata.src_node_id == other.metadata.src_node_id
        for name, array in one.content["arrays"].items():
            got = other.content["arrays"][name].numpy()
            np.testing.assert_allclose(got, array.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("missing", ["config", "arrays", "server-round"])
def test_a_message_without_what_is_needed_is_an_error_reply(missing):
    for engine in GRIDS:
        grid = engine.grid(runtime())
        message = train_message(grid, 0)
        if missing == "server-round":
            message.content["config"] = ConfigRecord({"lr": 0.1})
        else:
            del message.content[missing]
        (reply,) = grid.send_and_receive([message])
        assert reply.has_error()
        assert "KeyError" in reply.error.reason


class Fails(ClientHalf):
    def __init__(self, fails):
        self.fails = fails

    def criterion(self, outputs, batch, context):
        if self.fails(len(batch.y)):
            raise FloatingPointError("criterion of a client")
        return super().criterion(outputs, batch, context)


@pytest.mark.parametrize("wire_check", [False, True])
def test_a_client_half_that_raises_is_an_error_reply_and_is_counted(wire_check):
    one = runtime(half=Fails(lambda n: n == 1))
    params, (report,) = run(one, InProcess(wire_check=wire_check), rounds=1)
    # batches of 4: those with 1, 25 samples meet a batch of one; 0 samples have no weight
    assert report.rejected == {"error": 2, "weight": 1}
    assert report.admitted == [0, 2, 4, 5, 7]
    assert "FloatingPointError: criterion of a client" in report.details[0]
    assert all(torch.isfinite(t).all() for t in params.values())


def test_if_every_client_raises_the_run_ends():
    partition = shares(classification(), [3, 4])
    one = runtime(half=Fails(lambda n: n > 0), partition=partition)
    with pytest.raises(ClientError, match=r"every client failed(.|\n)*criterion of a client"):
        run(one, InProcess(), rounds=1)


def test_a_wire_check_refuses_tensors():
    grid = InProcess(wire_check=True).grid(runtime())
    message = train_message(grid, 0)
    message.content["arrays"]["weight"] = TensorArray(torch.zeros(2))
    with pytest.raises(TypeError, match="'weight' of record 'arrays' is a TensorArray"):
        list(grid.send_and_receive([message]))


def test_a_wire_check_turns_an_unsendable_reply_into_an_error_reply():
    app = ClientApp()

    @app.train()
    def train(message, context):
        arrays = ArrayRecord()
        arrays["w"] = TensorArray(torch.zeros(2))
        return Message(RecordDict({"arrays": arrays}), reply_to=message)

    (reply,) = ask(InProcessGrid(app, runtime(), zero_copy=False), 0)
    assert "TensorArray" in reply.error.reason
    (reply,) = ask(InProcessGrid(app, runtime(), zero_copy=True), 0)
    assert not reply.has_error()


class Million(Partition):
    """A population that is never written down."""

    num_clients = 10**6

    def indices(self, client):
        return np.array([client % 100, (client * 7) % 100])

    def sizes(self, clients):
        return np.full(len(clients), 2)


@pytest.mark.parametrize("engine", [InProcess(), Cohort()], ids=str)
def test_a_million_virtual_clients_cost_nothing_until_asked(engine):
    one = runtime(partition=Million())
    before = time.perf_counter()
    grid = engine.grid(one)
    assert time.perf_counter() - before < 0.5
    messages = [train_message(grid, c) for c in (0, 999_999)]
    before = time.perf_counter()
    replies = list(grid.send_and_receive(messages))
    assert time.perf_counter() - before < 0.5
    assert [r.content["metrics"]["num-examples"] for r in replies] == [2, 2]
