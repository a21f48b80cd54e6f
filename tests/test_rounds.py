"""The round loop: who is asked, what is evaluated; dropouts, restarts, third-party strategies."""

import random
import time

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flower

from fedsim import third_party
from fedsim.admission import Admission, ClientError
from fedsim.errors import FedsimError, TooFewClientsError
from fedsim.rounds import Evaluation, RoundReport
from fedsim.third_party import StrategyError
from strategies.average_all import AverageAll
from strategies.fedau import FedAU
from strategies.fedavg import FedAvg
from tests.strategies._toy import (
    Masks,
    ToyGrid,
    equal,
    everyone,
    failing,
    finish,
    loop,
    model,
    quadratic,
    reply,
)
from tests.strategies.test_plain_flower import IDS, SORTED, WireGrid, plain_client_app

CLIENTS = 10
START = {"x": torch.tensor([1.0, 2.0])}


def guest(cls=flower.FedAvg, **settings):
    """One of Flower's own strategies."""
    least = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
    return cls(**{**least, **settings})


def honest(message):
    client = message.metadata.dst_node_id - 2
    return [quadratic(message, centre=float(client), lr=0.25, examples=1 + client)]


def run(strategy, masks, *, answer=honest, params=START, done=0, **settings):
    grid = ToyGrid(np.shape(masks)[1], answer)
    return finish(loop(strategy, grid, Masks(masks), **settings), params, done)


# --- dropout ---------------------------------------------------------------------------------

MAKE = {
    "fedavg": FedAvg,
    "fedau": lambda: FedAU(cutoff=5),
    "average_all": AverageAll,
    "flower": guest,
    "flower_median": lambda: guest(flower.FedMedian),
}


@pytest.mark.parametrize("dropout", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("name", MAKE)
def test_clients_that_are_not_there(name, dropout):
    """Availability: who has dropped out is not asked."""
    masks = np.random.default_rng(7).random((20, CLIENTS)) >= dropout
    masks[4] &= dropout == 0  # an empty round among the others
    params, reports = run(MAKE[name](), masks)
    assert [report.admitted for report in reports] == [np.flatnonzero(m).tolist() for m in masks]
    assert [report.asked for report in reports] == masks.sum(1).tolist()
    assert all(report.rejected == {} for report in reports)
    assert equal(params, START) == (dropout == 1.0)
    assert torch.isfinite(params["x"]).all()


@pytest.mark.parametrize("dropout", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("name", MAKE)
def test_clients_that_never_reply(name, dropout):
    """Who drops out after being asked does not reply."""
    lost = np.random.default_rng(8).random((20, CLIENTS)) < dropout

    def answer(message):
        server_round = int(message.content["config"]["server-round"])
        client = message.metadata.dst_node_id - 2
        return [] if lost[server_round - 1, client] else honest(message)

    params, reports = run(MAKE[name](), np.ones((20, CLIENTS)), answer=answer)
    assert [report.admitted for report in reports] == [np.flatnonzero(~m).tolist() for m in lost]
    assert [report.asked for report in reports] == [CLIENTS] * 20
    assert equal(params, START) == (dropout == 1.0)
    assert torch.isfinite(params["x"]).all()
    absent, _ = run(MAKE[name](), ~lost)  # to the model, lost and never asked are the same
    assert equal(params, absent)


# --- evaluation ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "rounds", "due"),
    [
        (1, 4, [0, 1, 2, 3, 4]),
        (3, 7, [0, 3, 6, 7]),
        (3, 6, [0, 3, 6]),
        (10, 4, [0, 4]),
    ],
)
def test_central_evaluation_is_due_every_so_often_and_last(every, rounds, due):
    seen = []

    def central(params):
        seen.append(params["x"].tolist())
        return {"norm": float(params["x"].norm())}

    rules = Evaluation(central=central, clients=False, every=every)
    params, reports = run(FedAvg(), np.ones((rounds, 3)), evaluation=rules)
    assert [report.server_round for report in reports] == list(range(rounds + 1))
    assert [report.server_round for report in reports if report.central] == due
    assert seen[0] == START["x"].tolist()
    assert seen[-1] == params["x"].tolist()  # the model of the round, not the one before
    assert len(seen) == len(due)


def test_without_a_central_evaluation_there_is_no_round_0():
    _, reports = run(FedAvg(), np.ones((2, 3)))
    assert [report.server_round for report in reports] == [1, 2]


@pytest.mark.parametrize("make", [FedAvg, guest])
def test_clients_evaluate_when_due(make):
    rules = Evaluation(central=None, clients=True, every=2)
    params, reports = run(make(), np.ones((5, 3)), evaluation=rules)
    assert [bool(report.clients) for report in reports] == [False, True, False, True, True]
    last = reports[-1]
    losses = [float((params["x"] - k).square().mean()) for k in range(3)]
    assert last.per_client["client-index"] == [0, 1, 2]
    assert last.per_client["loss"] == pytest.approx(losses)
    assert last.clients["loss"] == pytest.approx(np.average(losses, weights=[1, 2, 3]))
    assert last.clients["num-examples"] == 6


def test_all_evaluate_though_some_train():
    rules = Evaluation(central=None, clients=True, every=1)
    _, reports = run(FedAvg(), np.array([[1, 0, 0], [0, 0, 0]]), evaluation=rules)
    assert [report.per_client["client-index"] for report in reports] == [[0, 1, 2]] * 2
    _, reports = run(guest(), np.array([[1, 0, 0], [0, 0, 0]]), evaluation=rules)
    assert [report.per_client.get("client-index") for report in reports] == [[0], None]


def test_bad_evaluations_are_told_and_left_out():
    def answer(message):
        if message.metadata.message_type == "evaluate" and message.metadata.dst_node_id == 2:
            return [reply(message, examples=-1)]
        return honest(message)

    rules = Evaluation(central=None, clients=True, every=1)
    for make in (FedAvg, guest):
        _, (report,) = run(make(), np.ones((1, 3)), answer=answer, evaluation=rules)
        assert report.per_client["client-index"] == [1, 2]
        assert report.rejected == {}  # of training
        assert report.details[0].startswith("reply of client 0 rejected (weight)")


# --- reports ---------------------------------------------------------------------------------


def test_a_report_of_a_round_by_hand():
    def answer(message):
        client = message.metadata.dst_node_id - 2
        if client == 1:
            return [failing(message, "flat battery")]
        return [reply(message, metrics={"train-loss": float(client)}, examples=1 + client)]

    _, (report,) = run(FedAvg(), np.ones((1, 3)), answer=answer)
    assert isinstance(report, RoundReport)
    assert (report.server_round, report.asked) == (1, 3)
    assert report.admitted == [0, 2]
    assert report.rejected == {"error": 1}
    assert report.details == ["reply of client 1 rejected (error): flat battery"]
    assert report.train == {"train-loss": (0 * 1 + 2 * 3) / 4, "num-examples": 4.0}
    assert (report.clients, report.central, report.per_client) == ({}, {}, {})
    assert 0 < report.seconds < 10


# --- continuation ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        *MAKE.values(),
        lambda: guest(flower.FedAdam, eta=0.1),
        lambda: guest(flower.FedAvgM, server_momentum=0.9),
        lambda: guest(flower.FedAvg, fraction_train=0.5),
    ],
)
def test_ten_rounds_are_five_and_five(make):
    masks = np.random.default_rng(2).random((10, CLIENTS)) < 0.8
    whole, reports = run(make(), masks)
    first = make()
    params, before = run(first, masks, rounds=5)
    second = make()
    third_party.restore(second, third_party.state_of(first))
    params, after = run(second, masks, params=params, done=5)
    assert equal(params, whole)
    rounds = [report.server_round for report in (*before, *after)]
    assert rounds == list(range(1, 11))
    admitted = [report.admitted for report in (*before, *after)]
    assert admitted == [report.admitted for report in reports]


def test_a_resumed_run_does_not_evaluate_the_start_again():
    rules = Evaluation(central=lambda params: {"a": 1.0}, clients=False, every=1)
    _, reports = run(FedAvg(), np.ones((4, 2)), done=3, evaluation=rules)
    assert [report.server_round for report in reports] == [4]
    assert run(FedAvg(), np.ones((4, 2)), done=4, evaluation=rules)[1] == []


# --- third-party strategies ------------------------------------------------------------------


def test_guests_sample_among_the_participants_by_a_keyed_draw():
    masks = np.random.default_rng(0).random((12, 30)) < 0.5
    runs = [run(guest(fraction_train=0.5), masks, seed=seed)[1] for seed in (0, 0, 1)]
    chosen = [[report.admitted for report in reports] for reports in runs]
    assert chosen[0] == chosen[1] != chosen[2]
    for mask, clients in zip(masks, chosen[0], strict=True):
        assert set(clients) <= set(np.flatnonzero(mask))
        assert len(clients) == int(mask.sum() * 0.5)
    assert len({tuple(clients) for clients in chosen[0]}) == 12  # a new draw in every round


def test_the_global_random_state_is_left_alone():
    random.seed(123)
    before = random.getstate()
    numpy_before = np.random.get_state()[1].tolist()  # noqa: NPY002
    torch_before = torch.random.get_rng_state()
    rules = Evaluation(central=None, clients=True, every=1)
    run(guest(fraction_train=0.5, fraction_evaluate=0.5), np.ones((3, 8)), evaluation=rules)
    run(FedAU(), np.ones((3, 8)), evaluation=rules)
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), torch_before)


def test_the_global_random_state_is_put_back_after_an_error():
    class Careless(flower.FedAvg):
        def configure_train(self, *args, **kwargs):
            random.seed(1)
            raise RuntimeError("no idea")

    random.seed(5)
    before = random.getstate()
    grid = ToyGrid(4, honest)
    with pytest.raises(RuntimeError):
        finish(loop(guest(Careless), grid, Masks([[0, 1, 0, 1]])), START)
    assert random.getstate() == before
    assert len(list(grid.get_node_ids())) == 4


@pytest.mark.parametrize("setting", ["min_train_nodes", "min_available_nodes"])
def test_a_guest_that_would_wait_for_ever_is_stopped(setting):
    started = time.monotonic()
    with pytest.raises(TooFewClientsError, match="needs 6 clients to train, but there are 5"):
        run(guest(**{setting: 6}), np.ones((2, 5)))
    assert time.monotonic() - started < 5
    assert TooFewClientsError.exit_code == 4
    run(guest(**{setting: 5}), np.ones((2, 5)))


def test_the_minimum_of_a_wrapped_guest_counts():
    wrapped = flower.DifferentialPrivacyServerSideFixedClipping(
        guest(min_train_nodes=6), noise_multiplier=0.1, clipping_norm=1.0, num_sampled_clients=5
    )
    with pytest.raises(TooFewClientsError, match="needs 6 clients"):
        run(wrapped, np.ones((1, 5)))


def test_a_guest_that_evaluates_more_clients_than_there_are():
    rules = Evaluation(central=None, clients=True, every=1)
    with pytest.raises(TooFewClientsError, match="needs 6 clients to evaluate"):
        run(guest(min_evaluate_nodes=6), np.ones((1, 5)), evaluation=rules)


def test_a_guest_that_asks_nobody_needs_nobody():
    strategy = flower.FedAvg(fraction_train=0.0, min_available_nodes=99)
    params, (report,) = run(strategy, np.ones((1, 5)))
    assert equal(params, START)
    assert report.asked == 0


def test_too_few_nodes_on_a_real_grid_end_the_run_in_time():
    """Flower's own sampling waits for ever (`sample_nodes` has no timeout)."""
    grid = WireGrid([IDS], plain_client_app())
    rules = Admission(timeout_s=0.3)
    run_loop = loop(guest(min_available_nodes=4), grid, everyone(3), rounds=1, admission=rules)
    started = time.monotonic()
    with pytest.raises(TooFewClientsError, match=r"needs 4 clients to train, but 3 have .* 0.3 s"):
        finish(run_loop, model(0.0))
    assert time.monotonic() - started < 2


def test_guests_on_a_real_grid():
    grid = WireGrid([IDS], plain_client_app())
    params, (report,) = finish(loop(guest(), grid, everyone(3), rounds=1), model(0.0, 2.0))
    assert grid.asked == [SORTED]
    assert params["x"].tolist() == pytest.approx([3.95, 4.95])
    assert report.admitted == [0, 1, 2]


class Returning(flower.FedAvg):
    """Aggregates to whatever it is told."""

    def aggregate_train(self, server_round, replies):
        list(replies)
        return self.result(), None


def returning(result):
    strategy = guest(Returning)
    strategy.result = result
    return strategy


def raise_it():
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (raise_it, r"failed in round 1 on 3 good replies of 3 asked: ZeroDivisionError: division"),
        (lambda: ArrayRecord({"y": Array(np.zeros(2))}), r"\(round 1\) returned no array 'x' of"),
        (lambda: ArrayRecord({"x": Array(np.zeros(1))}), r"returned no array 'x' of \[2\]"),
        (lambda: ArrayRecord({"x": Array(np.array([1, np.nan]))}), r"not finite \(array 'x'\)"),
        (lambda: ArrayRecord({"x": Array(np.array([1, 1e300]))}), r"not finite \(array 'x'\)"),
        (lambda: ArrayRecord({"x": Array(np.array(["a", "b"]))}), r"failed in round 1.*TypeError"),
        (lambda: 7, r"failed in round 1.*TypeError"),
    ],
)
def test_a_guest_that_cannot_aggregate_is_named(result, why):
    with pytest.raises(StrategyError, match=rf"^Returning.*{why}") as caught:
        run(returning(result), np.ones((2, 3)))
    assert isinstance(caught.value, FedsimError)
    assert str(caught.value).count("Returning") == 1


def test_what_a_guest_returns_is_put_into_the_model_s_types():
    arrays = {"x": np.array([0.1, 0.2]), "seen": np.array(12.7), "on": np.array([0.9, 0.1])}
    strategy = returning(lambda: ArrayRecord({name: Array(a) for name, a in arrays.items()}))
    start = {**START, "seen": torch.tensor(10), "on": torch.tensor([False, True])}
    params, _ = run(strategy, np.ones((1, 3)), params=start)
    expected = {
        "x": torch.tensor([0.1, 0.2]),
        "seen": torch.tensor(13),
        "on": torch.tensor([True, False]),
    }
    assert equal(params, expected)


@pytest.mark.parametrize("result", [lambda: None, ArrayRecord])
def test_a_guest_that_skips_a_round_keeps_the_model(result):
    params, reports = run(returning(result), np.ones((2, 3)))
    assert equal(params, START)
    assert [report.admitted for report in reports] == [[0, 1, 2]] * 2


def test_a_guest_without_its_metric_is_named():
    """q-FedAvg reads the clients' loss; these call it differently."""
    strategy = guest(flower.QFedAvg, client_learning_rate=0.1, train_loss_key="risk")
    with pytest.raises(StrategyError, match=r"QFedAvg failed in round 1.*'risk'"):
        run(strategy, np.ones((1, 3)))


def test_a_guest_may_go_through_its_replies_twice():
    class Twice(flower.FedAvg):
        def aggregate_train(self, server_round, replies):
            assert len(replies) == len([m for m in replies if m.has_content()]) == 3
            return super().aggregate_train(server_round, replies)

    params, (report,) = run(guest(Twice), np.ones((1, 3)))
    assert report.admitted == [0, 1, 2]
    assert not equal(params, START)


def test_our_own_bugs_keep_their_traceback():
    class Broken(FedAvg):
        def aggregate(self, context, replies):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Broken(), np.ones((1, 3)))


def test_engine_failures_are_not_blamed_on_the_guest():
    def broken_engine(message):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(guest(), np.ones((1, 3)), answer=broken_engine)


def test_our_strategies_are_checked_for_overflow_too():
    def huge(message):
        return [reply(message, {"x": torch.full((2,), 1e38)})]

    with pytest.raises(StrategyError, match=r"AverageAll \(round 1\) made a model that is not fin"):
        run(AverageAll(server_lr=100.0), np.ones((1, 3)), answer=huge)


def test_every_client_failing_ends_the_run():
    with pytest.raises(ClientError, match="no disk"):
        run(guest(), np.ones((3, 3)), answer=lambda m: [failing(m, "no disk")])
