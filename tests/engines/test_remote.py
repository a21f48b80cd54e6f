"""`RemoteGrid` over a made-up Flower grid: random node ids; nodes come, go, lie and stay mute."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedsim import __version__, third_party
from fedsim.admission import Admission, ClientError
from fedsim.data.dataset import ServerData
from fedsim.engines import remote
from fedsim.engines.deployment import Deployment
from fedsim.engines.flwr_compat import quiet_flower
from fedsim.engines.in_process import InProcess, InProcessGrid
from fedsim.engines.remote import KEPT_S, RemoteGrid
from fedsim.errors import ConfigError, TooFewClientsError
from fedsim.models.autoencoder import Autoencoder
from fedsim.models.mlp import MLP
from fedsim.models.structure import layers_of
from fedsim.records import to_record
from fedsim.rounds import Evaluation, RoundLoop
from fedsim.strategy import Federation, FedsimStrategy
from tests.contract._discover import CODED, EVERY_ROUND, kind, make, short
from tests.engines._nodes import Clock, Nodes
from tests.helpers import Everyone, Some, classification, make_runtime, run, shares
from tests.strategies._toy import equal

SIZES = [11, 9, 10, 8, 12, 10, 7, 13]
CLIENTS = len(SIZES)


@pytest.fixture(scope="module", autouse=True)
def _nothing_to_collect() -> Iterator[None]:
    """Some of Flower's strategies collect garbage for every reply."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(remote, "time", clock)
    return clock


def runtime(**settings: Any) -> Any:
    data = classification()
    settings = {"partition": shares(data, SIZES), **settings}
    return make_runtime(data, MLP(hidden=[4]), **settings)


def connected(clock: Clock, one: Any | None = None, clients: int = CLIENTS) -> RemoteGrid:
    nodes = Nodes(clock, one or runtime())
    for client in reversed(range(clients)):
        nodes.join(client)
    grid = RemoteGrid(nodes, CLIENTS, 10.0)
    grid.gather(clients)
    return grid


def nodes_of(grid: RemoteGrid) -> Nodes:
    assert isinstance(grid.flower_grid, Nodes)
    return grid.flower_grid


def messages(grid: RemoteGrid, *clients: int, group: str = "1", **config: Any) -> list[Message]:
    arrays = to_record(nodes_of(grid).runtime.initial_params(), zero_copy=False)
    return [
        Message(
            RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1, **config})}),
            int(node),
            "train",
            group_id=group,
        )
        for node in grid.node_ids(np.array(clients))
    ]


def senders(grid: RemoteGrid, replies: Any) -> list[int]:
    return sorted(grid.client_index(reply.metadata.src_node_id) for reply in replies)


# --- who is there --------------------------------------------------------------------------------


def test_gather_waits_for_exactly_the_minimum(clock: Clock) -> None:
    nodes = Nodes(clock, runtime())
    for client in range(3):
        clock.at(5.0 + client, lambda client=client: nodes.join(client))
    grid = RemoteGrid(nodes, CLIENTS, 60.0)
    grid.gather(2)
    assert 6.0 <= clock.now - 1000 <= 6.0 + RemoteGrid.look_s + 2 * RemoteGrid.poll_s
    assert grid._connected() == {0, 1}
    grid.gather(3)
    assert 7.0 <= clock.now - 1000 <= 7.0 + RemoteGrid.look_s + 2 * RemoteGrid.poll_s
    before = clock.now
    grid.gather(3)  # they are there
    assert clock.now == before


def test_all_nodes_are_asked_in_one_push(clock: Clock) -> None:
    grid = connected(clock)
    assert nodes_of(grid).pushes == 1
    assert {m.metadata.message_type for m in nodes_of(grid).pushed} == {"query.info"}


def test_too_few_clients_end_the_wait_in_time_and_are_named(clock: Clock) -> None:
    nodes = Nodes(clock, runtime())
    nodes.join(0)
    nodes.join(3)
    outside = nodes.join(CLIENTS)
    wrong = nodes.join(5)
    nodes.misbehave[wrong] = lambda message, reply: answer(message, 5, "0.0.0")
    failing = nodes.join(6)
    nodes.misbehave[failing] = lambda message, _: Message(Error(1, "no such app"), reply_to=message)
    nodes.join(7, ready_s=math.inf)
    gone = nodes.join(-1)
    clock.at(8.0, lambda: nodes.leave(gone))
    grid = RemoteGrid(nodes, CLIENTS, 20.0)
    with pytest.raises(TooFewClientsError) as caught:
        grid.gather(3)
    assert clock.now - 1000 <= 20.0 + 2 * RemoteGrid.poll_s
    assert caught.value.exit_code == 4
    first, *others = str(caught.value).splitlines()
    assert first.startswith(
        "2 of 8 clients have connected within 20 s, but 3 are needed; missing: 1, 2, 4, 5, 6, 7. "
        "Start their SuperNodes"
    )
    assert sorted(others) == sorted(
        [
            "1 connected nodes have not said which client they are",
            f"node {outside} was left out: says it is client 8; allowed: 0..7",
            f"node {wrong} was left out: runs fedsim '0.0.0', the server {__version__!r}",
            f"node {failing} was left out: no such app",
        ]
    )


def answer(message: Message, client: object, version: str = __version__) -> Message:
    config = ConfigRecord({"client-index": client, "version": version})  # type: ignore[dict-item]
    return Message(RecordDict({"config": config}), reply_to=message)


def test_many_missing_clients_are_not_all_listed(clock: Clock) -> None:
    grid = RemoteGrid(Nodes(clock, runtime()), 5000, 1.0)
    with pytest.raises(TooFewClientsError, match=r"missing: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\."):
        grid.gather(1)


@pytest.mark.parametrize("claim", [-1, CLIENTS, "3", 3.0, True, [3]])
def test_only_an_index_within_range_is_an_index(clock: Clock, claim: object) -> None:
    nodes = Nodes(clock, runtime())
    node = nodes.join(0)
    nodes.misbehave[node] = lambda message, _: answer(message, claim)
    grid = RemoteGrid(nodes, CLIENTS, 3.0)
    with pytest.raises(TooFewClientsError, match=f"node {node} was left out: says it is client"):
        grid.gather(1)


def test_an_answer_without_content_of_ours_is_refused(clock: Clock) -> None:
    nodes = Nodes(clock, runtime())
    nodes.misbehave[nodes.join(0)] = lambda message, _: Message(RecordDict(), reply_to=message)
    with pytest.raises(TooFewClientsError, match="runs fedsim None"):
        RemoteGrid(nodes, CLIENTS, 3.0).gather(1)


def test_a_device_that_comes_back_under_a_new_id_takes_its_place(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    grid = connected(clock)
    nodes = nodes_of(grid)
    old = nodes.of(4)
    new = nodes.join(4)  # the old one counts as here still
    with caplog.at_level(logging.WARNING):
        list(grid.send_and_receive(messages(grid, 4), timeout=5.0))
        clock.sleep(RemoteGrid.look_s)
        list(grid.send_and_receive(messages(grid, 4), timeout=5.0))
    assert nodes.pushed[-1].metadata.dst_node_id == new
    assert "client 4 has a new node" in caplog.text
    nodes.leave(old)
    (reply,) = grid.send_and_receive(messages(grid, 4), timeout=5.0)
    assert reply.has_content()


def test_a_node_that_comes_back_as_another_client_is_asked_again(clock: Clock) -> None:
    grid = connected(clock, clients=3)
    nodes = nodes_of(grid)
    node = nodes.of(2)
    nodes.leave(node)
    _, gone = sorted(
        grid.send_and_receive(messages(grid, 0, 2), timeout=5.0),
        key=lambda reply: reply.metadata.src_node_id,
    )
    assert gone.has_error()
    nodes.nodes[node] = 5  # the same key, hence the same id
    list(grid.send_and_receive(messages(grid, 0), timeout=5.0))
    two, five = sorted(
        grid.send_and_receive(messages(grid, 2, 5), timeout=5.0),
        key=lambda reply: reply.metadata.src_node_id,
    )
    assert grid.client_index(two.metadata.src_node_id) == 2 and two.has_error()
    assert grid.client_index(five.metadata.src_node_id) == 5 and five.has_content()


def test_a_node_that_was_refused_may_come_back_in_order(clock: Clock) -> None:
    nodes = Nodes(clock, runtime())
    node = nodes.join(99)
    clock.at(3.0, lambda: nodes.leave(node))
    clock.at(6.0, lambda: nodes.nodes.update({node: 1}))
    grid = RemoteGrid(nodes, CLIENTS, 20.0)
    grid.gather(1)
    assert grid._connected() == {1} and not grid._refused


def test_a_client_that_is_another_by_now_does_not_work_for_the_one_that_was_asked(
    clock: Clock,
) -> None:
    grid = connected(clock)
    nodes = nodes_of(grid)
    nodes.nodes[nodes.of(2)] = 7  # restarted so fast that nobody saw it leave
    strategy = make("fedavg")
    _, (report,) = drive(grid, strategy, rounds=1)
    assert report.rejected == {"error": 1}
    assert "client 2 was asked, but this node is 7 now" in report.details[0]
    assert report.admitted == [0, 1, 3, 4, 5, 6, 7]


def test_a_question_that_cannot_be_pushed_is_asked_again(clock: Clock) -> None:
    nodes = Nodes(clock, runtime())
    node = nodes.join(0)
    nodes.unpushable.add(node)
    clock.at(5.0, nodes.unpushable.clear)
    RemoteGrid(nodes, CLIENTS, 20.0).gather(1)
    assert clock.now - 1000 >= 5.0


def test_the_engine_waits_for_all_clients_or_for_as_many_as_it_is_told(clock: Clock) -> None:
    one = runtime()
    nodes = Nodes(clock, one)
    nodes.join(6)
    with pytest.raises(TooFewClientsError, match="but 8 are needed"):
        Deployment(connect_s=5.0).grid(one, nodes)
    assert Deployment(connect_s=5.0, min_clients=1).grid(one, nodes).num_clients == CLIENTS
    with pytest.raises(ConfigError, match=r"engine\.min_clients: 9 of 8 clients"):
        Deployment(min_clients=9).grid(one, nodes)
    with pytest.raises(ConfigError, match="fedsim deploy"):
        Deployment().grid(one)


# --- messages ------------------------------------------------------------------------------------


def test_messages_reach_the_node_of_their_client_and_replies_name_the_client(clock: Clock) -> None:
    grid = connected(clock)
    sent = messages(grid, 5, 0, 3, group="12")
    replies = list(grid.send_and_receive(sent, timeout=9.0))
    assert nodes_of(grid).asked() == [0, 3, 5]
    assert senders(grid, replies) == [0, 3, 5]
    for reply in replies:
        client = grid.client_index(reply.metadata.src_node_id)
        assert reply.content["metrics"]["num-examples"] == SIZES[client]
        assert reply.metadata.group_id == "12"
        assert reply.metadata.message_type == "train"
    real = [m for m in nodes_of(grid).pushed if m.metadata.message_type == "train"]
    assert {m.metadata.group_id for m in real} == {"12"}
    ttl = {m.metadata.ttl for m in real}
    assert ttl == {9.0 + KEPT_S}, "what nobody waits for is not kept for long"
    assert list(grid.send_and_receive([])) == []


def test_a_client_without_a_node_answers_at_once_with_an_error(clock: Clock) -> None:
    grid = connected(clock, clients=2)
    before = clock.now
    replies = list(grid.send_and_receive(messages(grid, 0, 5), timeout=60.0))
    assert clock.now == before
    errors = {grid.client_index(r.metadata.src_node_id): r.has_error() for r in replies}
    assert errors == {0: False, 5: True}


def test_a_message_that_cannot_be_sent_is_an_error_reply(clock: Clock) -> None:
    grid = connected(clock)
    nodes = nodes_of(grid)
    nodes.unpushable.add(nodes.of(1))
    replies = list(grid.send_and_receive(messages(grid, 0, 1, 2), timeout=60.0))
    (error,) = [reply for reply in replies if reply.has_error()]
    assert grid.client_index(error.metadata.src_node_id) == 1
    assert error.error.reason == "the message could not be sent"
    assert len(replies) == 3


@pytest.mark.parametrize("timeout", [0.0, 5.0, 31.0])
def test_an_exchange_ends_at_its_deadline_and_late_replies_are_lost(
    clock: Clock, timeout: float
) -> None:
    grid = connected(clock)
    nodes = nodes_of(grid)
    nodes.ready_s[nodes.of(3)] = timeout + 2.0
    nodes.ready_s[nodes.of(6)] = math.inf
    before = clock.now
    replies = list(grid.send_and_receive(messages(grid, 0, 3, 6), timeout=timeout))
    assert timeout <= clock.now - before <= timeout + 2 * RemoteGrid.poll_s
    assert senders(grid, replies) == [0]
    clock.sleep(60.0)
    nodes.ready_s[nodes.of(3)] = 0.0
    again = list(grid.send_and_receive(messages(grid, 0, 3, group="2"), timeout=5.0))
    assert senders(grid, again) == [0, 3]
    assert {reply.metadata.group_id for reply in again} == {"2"}
    assert not grid._waiting and not grid._inbox


def test_replies_that_nobody_waits_for_are_passed_over(clock: Clock) -> None:
    grid = connected(clock)
    nodes = nodes_of(grid)
    pull = nodes.pull_messages
    nodes.pull_messages = lambda ids: (got := pull(ids)) + got  # type: ignore[method-assign]
    assert senders(grid, grid.send_and_receive(messages(grid, 1, 2), timeout=5.0)) == [1, 2]


def test_nodes_that_join_and_leave_while_others_are_waited_for(clock: Clock) -> None:
    grid = connected(clock, clients=2)
    nodes = nodes_of(grid)
    nodes.ready_s[nodes.of(0)] = 20.0
    start = clock.now - 1000
    clock.at(start + 4.0, lambda: nodes.join(2))
    clock.at(start + 4.0, lambda: nodes.leave(nodes.of(1)))
    list(grid.send_and_receive(messages(grid, 0), timeout=60.0))
    assert grid._connected() == {0, 2}


def test_pushed_messages_are_pulled_by_their_ids_once_and_nothing_blocks(clock: Clock) -> None:
    grid = connected(clock, clients=4)
    nodes = nodes_of(grid)
    nodes.ready_s[nodes.of(1)] = 7.0
    before = clock.now
    ids = list(grid.push_messages(messages(grid, 3, 1, 6)))
    assert len(set(ids)) == 3
    came = grid.pull_messages([*ids, "no such message"])
    assert senders(grid, came) == [3, 6]
    assert [r.has_error() for r in came if grid.client_index(r.metadata.src_node_id) == 6] == [True]
    assert list(grid.pull_messages(ids)) == []
    assert clock.now == before
    clock.sleep(8.0)
    (late,) = grid.pull_messages([ids[1]])
    assert grid.client_index(late.metadata.src_node_id) == 1 and late.has_content()
    assert list(grid.pull_messages(ids)) == []


# --- whole runs ----------------------------------------------------------------------------------


def drive(grid: RemoteGrid, strategy: Any, rounds: int = 3, **settings: Any) -> Any:
    engine = SimpleNamespace(grid=lambda _: grid)
    return run(nodes_of(grid).runtime, engine, strategy=strategy, rounds=rounds, **settings)  # type: ignore[arg-type]


def of_strategy(strategy: Any) -> Any:
    if not isinstance(strategy, FedsimStrategy):
        return runtime(half=third_party.half_for(strategy), holdout=0.3)
    strategy.federation = Federation(  # some halves depend on the model's layers
        num_clients=CLIENTS,
        seed=0,
        schedule=Some(CLIENTS, 7),
        layers=layers_of(runtime().model),
    )
    if type(strategy) not in {kind(name) for name in CODED}:
        return runtime(half=strategy.client_half, holdout=0.3)
    data = classification()
    source = torch.arange(len(data.test_y)) % 2
    own = ServerData(x=data.test_x, y=data.test_y, source=source, names=("a", "b"))
    return make_runtime(
        replace(data, server=own),
        Autoencoder(
            hidden=[4],
            latent=3,
            head_hidden=0,
            output=getattr(strategy, "output", None) or "linear",
        ),
        partition=shares(data, SIZES),
        half=strategy.client_half,
        holdout=0.3,
    )


SAMPLING = {
    "flower_fedavg-half": ("flower_fedavg", {"fraction_train": 0.5, "fraction_evaluate": 0.5}),
    "fedadam-half": ("fedadam", {"fraction_train": 0.5, "fraction_evaluate": 0.5}),
}


@pytest.mark.parametrize("name", [*EVERY_ROUND, *SAMPLING])
def test_every_strategy_selects_and_ends_as_in_process(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    quiet_flower()
    file, changes = SAMPLING.get(name, (name, short(name) if name in CODED else {}))
    trained: list[int] = []
    run_one = InProcessGrid.run_one

    def noted(grid: InProcessGrid, message: Message) -> Message:
        if message.metadata.message_type == "train":
            trained.append(grid.client_index(message.metadata.dst_node_id))
        return run_one(grid, message)

    monkeypatch.setattr(InProcessGrid, "run_one", noted)
    schedule = Some(CLIENTS, 7)
    strategy = make(file, **changes)
    expected, reports = run(
        of_strategy(strategy),
        InProcess(wire_check=True),
        strategy=strategy,
        rounds=3,
        schedule=schedule,
        evaluate=True,
    )
    strategy = make(file, **changes)
    grid = connected(clock, of_strategy(strategy))
    got, others = drive(grid, strategy, schedule=schedule, evaluate=True)
    assert nodes_of(grid).asked() == sorted(trained)
    assert len(trained) == 3 * (3 if name in SAMPLING else 7)
    assert equal(got, expected)
    assert not equal(got, grid.flower_grid.runtime.initial_params())  # type: ignore[attr-defined]
    for one, other in zip(reports, others, strict=True):
        assert one.admitted == other.admitted
        assert (one.train, one.clients) == (other.train, other.clients)
        assert one.rejected == other.rejected == {}


def test_the_nodes_ids_and_the_order_of_replies_do_not_matter(clock: Clock) -> None:
    results = []
    for seed in (1, 2):
        nodes = Nodes(clock, runtime(), seed)
        for client in nodes.rng.permutation(CLIENTS).tolist():
            nodes.join(client, ready_s=float(nodes.rng.random() * 3))
        grid = RemoteGrid(nodes, CLIENTS, 60.0)
        grid.gather(CLIENTS)
        results.append(drive(grid, make("fedau"))[0])
    assert equal(*results)


def test_gone_and_failing_clients_are_counted_and_the_run_goes_on(clock: Clock) -> None:
    grid = connected(clock)
    nodes = nodes_of(grid)
    nodes.leave(nodes.of(2))
    nodes.misbehave[nodes.of(4)] = lambda message, reply: Message(
        Error(2, "out of memory"), reply_to=message
    )
    params, reports = drive(grid, make("fedavg"))
    assert [report.rejected for report in reports] == [{"error": 2}] * 3
    assert [report.admitted for report in reports] == [[0, 1, 3, 5, 6, 7]] * 3
    told = "\n".join(reports[0].details)
    assert "client 2 rejected (error): its node is not connected" in told
    assert "client 4 rejected (error): out of memory" in told
    assert all(torch.isfinite(tensor).all() for tensor in params.values())


def test_a_client_that_claims_too_many_examples_is_refused(clock: Clock) -> None:
    grid = connected(clock)
    nodes = nodes_of(grid)

    def lies(message: Message, reply: Message) -> Message:
        reply.content["metrics"]["num-examples"] = 10**12
        return reply

    nodes.misbehave[nodes.of(3)] = lies
    _, (report,) = drive(grid, make("fedavg"), rounds=1)
    assert report.rejected == {"weight": 1}
    assert 3 not in report.admitted


def test_if_every_client_raises_the_run_ends(clock: Clock) -> None:
    grid = connected(clock)
    fails = lambda message, reply: Message(Error(2, "a bug"), reply_to=message)  # noqa: E731
    nodes_of(grid).misbehave = dict.fromkeys(nodes_of(grid).nodes, fails)
    with pytest.raises(ClientError, match=r"every client failed; .*\n.*a bug"):
        drive(grid, make("fedavg"))


@pytest.mark.parametrize("code", [3, 4, 5])
def test_a_round_whose_nodes_are_lost_is_no_bug_of_theirs(clock: Clock, code: int) -> None:
    """Flower answers on behalf of a node that goes while it works."""
    grid = connected(clock)
    nodes = nodes_of(grid)
    lost = lambda message, _: Message(Error(code, "it is gone"), reply_to=message)  # noqa: E731
    nodes.misbehave = dict.fromkeys(nodes.nodes, lost)
    params, reports = drive(grid, make("fedavg"), rounds=2)
    assert [report.rejected for report in reports] == [{"error": CLIENTS}] * 2
    assert equal(params, nodes.runtime.initial_params())


def test_a_round_whose_clients_are_all_gone_waits_for_one_of_them(clock: Clock) -> None:
    """Others are there, who were not asked in this round."""
    schedule = Some(CLIENTS, 2)
    asked = schedule.select(1).tolist()
    for comes_back in (True, False):
        grid = connected(clock)
        nodes = nodes_of(grid)
        for client in asked:
            nodes.leave(nodes.of(client))
        if comes_back:
            clock.at(clock.now - 1000 + 5.0, lambda nodes=nodes: nodes.join(asked[1]))
            _, (report,) = drive(grid, make("fedavg"), schedule=schedule, rounds=1)
            assert report.admitted == [asked[1]]
            assert report.rejected == {"error": 1}
        else:
            with pytest.raises(TooFewClientsError, match=r"^0 of 2 clients .* but 1 are needed"):
                drive(grid, make("fedavg"), schedule=schedule, rounds=1)


def test_where_nobody_is_left_the_run_waits_and_ends_with_too_few_clients(clock: Clock) -> None:
    grid = connected(clock)
    nodes = nodes_of(grid)
    seen = []

    def everybody_leaves(message: Message, reply: Message) -> Message:
        if message.content["config"]["server-round"] == 2:
            clock.at(clock.now - 1000 + 1.0, nodes.nodes.clear)
        return reply

    nodes.misbehave[nodes.of(0)] = everybody_leaves
    with pytest.raises(TooFewClientsError, match=r"0 of 8 clients .* 10 s, but 1 are needed"):
        for _, report in whole_loop(grid, rounds=500).run(nodes.runtime.initial_params()):
            seen.append(report.admitted)
            clock.sleep(2.0)
    assert seen == [list(range(CLIENTS))] * 2


def test_where_nobody_is_left_the_run_goes_on_with_those_who_come_back(clock: Clock) -> None:
    grid = connected(clock)
    nodes = nodes_of(grid)
    nodes.nodes.clear()
    clock.at(clock.now - 1000 + 5.0, lambda: nodes.join(3))
    _, reports = drive(grid, make("fedavg"), rounds=2)
    assert [report.admitted for report in reports] == [[3], [3]]


def whole_loop(grid: RemoteGrid, rounds: int) -> RoundLoop:
    schedule = Everyone(CLIENTS)
    strategy = make("fedavg")
    assert isinstance(strategy, FedsimStrategy)
    strategy.federation = Federation(num_clients=CLIENTS, seed=0, schedule=schedule)
    return RoundLoop(
        strategy=strategy,
        grid=grid,
        schedule=schedule,
        admission=Admission(),
        evaluation=Evaluation(central=None, clients=False, every=1),
        seed=0,
        last_round=rounds,
    )
