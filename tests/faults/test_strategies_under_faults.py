"""Every strategy, in the round loop, with one faulty client among ten, for every fault we know."""

import numpy as np
import pytest
import torch

from fedsim.admission import Admission, ClientError
from fedsim.records import NUM_EXAMPLES, Chunk
from fedsim.third_party import StrategyError
from tests.contract._discover import ASYNCHRONOUS, EVERY_ROUND, FLOWERS, NAMES, OURS, make
from tests.faults._bad import BAD, CASES, Bomb, poisoned, with_x
from tests.strategies._toy import (
    Stacked,
    ToyGrid,
    equal,
    everyone,
    failing,
    finish,
    loop,
    quadratic,
    upload_of,
)

CLIENTS = 10
START = {"x": torch.tensor([1.0, 2.0])}
BAD_ONE = 3


def run(name, faults, *, rounds=None, on_failure="continue"):
    """Run one round per fault; in round r, client 3 answers with `faults[r - 1]`."""
    faults = list(faults)

    def answer(message):
        client = grid.client_index(message.metadata.dst_node_id)
        if client == BAD_ONE:
            return faults[int(message.content["config"]["server-round"]) - 1](message)
        return [quadratic(message, centre=float(client), lr=0.25, examples=1 + client)]

    grid = ToyGrid(CLIENTS, answer)
    schedule = everyone(CLIENTS, len(faults))
    rules = Admission(on_failure=on_failure)
    return finish(loop(make(name), grid, schedule, rounds=rounds, admission=rules), START)


# Flower's own strategies do not mark their messages with the round: Flower's grids know their
# replies by other means, and a stale one never gets as far as admission.
STALE = {"stale"}
SINGLE = [case for case in CASES if case[0] not in STALE | {"duplicate"}]


@pytest.mark.parametrize("name", EVERY_ROUND)
def test_a_bad_reply_is_as_good_as_none(name):
    """One round per fault: counted by reason, and the model that of a silent client, to the bit."""
    Bomb.exploded = 0
    faults = [BAD[reason][fault] for reason, fault in SINGLE]
    params, reports = run(name, faults)
    for (reason, fault), report in zip(SINGLE, reports, strict=True):
        assert report.rejected == {reason: 1}, fault
        assert report.admitted == [k for k in range(CLIENTS) if k != BAD_ONE], fault
        assert report.asked == CLIENTS
    silent, _ = run(name, [lambda message: []] * len(faults))
    assert equal(params, silent)
    assert torch.isfinite(params["x"]).all()
    # Or it waits for the first good reply of the one client that never sends any.
    assert equal(params, START) == (name == "mifa_original")
    assert Bomb.exploded == 0


@pytest.mark.parametrize("name", EVERY_ROUND)
def test_a_duplicate_counts_once(name):
    def once(message):
        return [quadratic(message, centre=3.0, lr=0.25, examples=4)]

    def twice(message):
        return [*once(message), quadratic(message, centre=1e6, examples=1000)]

    params, reports = run(name, [twice] * 3)
    assert [report.rejected for report in reports] == [{"duplicate": 1}] * 3
    assert equal(params, run(name, [once] * 3)[0])


@pytest.mark.parametrize("name", sorted({*OURS} - {*ASYNCHRONOUS}))
def test_a_stale_reply_is_rejected(name):
    _, reports = run(name, BAD["stale"].values())
    # A reply that claims the round it arrives in is, of course, none.
    assert [report.rejected for report in reports] == [
        {} if group == str(number) else {"stale": 1}
        for number, group in enumerate(("1", "3", "", "02"), start=1)
    ]


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("scale", [-1.0, 1e30, -3e38])
@pytest.mark.parametrize("name", NAMES)
def test_finite_nonsense_never_makes_a_model_that_is_not_finite(name, scale):
    """Admission lets finite values pass; where they overflow a strategy, it says so by name."""

    def byzantine(message):
        return [with_x(message, np.array([1.0, -1.0], np.float32) * np.float32(scale))]

    try:
        params, reports = run(name, [byzantine] * 6)
    except StrategyError as error:
        assert name in FLOWERS
        assert type(make(name)).__name__ in str(error)
        assert "not finite" in str(error)
        return
    assert torch.isfinite(params["x"]).all()
    if name in EVERY_ROUND:
        assert [report.admitted for report in reports] == [list(range(CLIENTS))] * 6


@pytest.mark.parametrize("name", ["krum", "multikrum", "fedmedian", "fedtrimmedavg", "bulyan"])
def test_robust_strategies_stand_outliers(name):
    """And the control: FedAvg does not."""

    def byzantine(message):
        return [with_x(message, np.array([1e6, -1e6], np.float32))]

    assert run(name, [byzantine] * 6)[0]["x"].abs().max() < 20
    assert run("fedavg", [byzantine] * 6)[0]["x"].abs().max() > 1e4


@pytest.mark.parametrize("name", NAMES)
def test_a_failing_client_is_counted(name):
    _, (report,) = run(name, [lambda m: [failing(m, "CUDA out of memory\n" + "x" * 9)]])
    assert report.rejected == {"error": 1}
    assert "client 3" in report.details[0]
    assert "CUDA out of memory" in report.details[0]


@pytest.mark.parametrize("name", ["fedavg", "fedau", "flower_fedavg", "krum"])
def test_stop_ends_the_run(name):
    with pytest.raises(ClientError, match="on_failure"):
        run(name, [poisoned(np.nan)], on_failure="stop")


@pytest.mark.parametrize("name", ["fedavg", "fedau", "flower_fedavg", "krum"])
def test_everybody_failing_ends_the_run(name):
    """Flower's own loop goes on to the end and returns an empty model."""
    grid = ToyGrid(CLIENTS, lambda m: [failing(m, f"boom at {m.metadata.dst_node_id}")])
    with pytest.raises(ClientError, match=r"every client failed.*\nclient \d: boom"):
        finish(loop(make(name), grid, everyone(CLIENTS)), START)


class StackedGrid(ToyGrid):
    """Answers like the cohort engine: one stacked chunk, into which `spoil` may put a fault."""

    def __init__(self, spoil):
        super().__init__(CLIENTS, lambda message: [], zero_copy=True)
        self.spoil = spoil

    def execute(self, messages):
        clients = messages.client_index
        examples = {NUM_EXAMPLES: 1.0 + clients, "train-loss": np.ones(len(clients))}
        own = messages.client_arrays(slice(None))
        own = own(clients) if callable(own) else own
        if len(messages.arrays):
            x = messages.arrays["x"].tensor
            sent = x.expand(len(clients), *x.shape)
        else:  # each is sent a model of its own
            sent, x, own = own["x"], own["x"][0], {}
        rows = sent + 0.25 * (torch.from_numpy(clients).float()[:, None] - sent)
        first = {name: rows[0] for name, rows in own.items()}
        upload = upload_of(self.strategy, {"x": x}, first)
        chunk = Chunk(
            client_index=clients,
            arrays={"x": rows},
            client_arrays={n: t.expand(len(clients), *t.shape).clone() for n, t in upload.items()},
            metrics=examples,
        )
        return Stacked(self.spoil(chunk))


def nan_row(chunk):
    chunk.arrays["x"][BAD_ONE, 0] = torch.nan
    return chunk


def nan_metric(chunk):
    chunk.metrics["train-loss"][BAD_ONE] = np.nan
    return chunk


def weighing(weight):
    def spoil(chunk):
        chunk.metrics[NUM_EXAMPLES][BAD_ONE] = weight
        return chunk

    return spoil


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (nan_row, "non-finite"),
        (nan_metric, "non-finite"),
        (weighing(0), "weight"),
        (weighing(-80), "weight"),
        (weighing(1e12), "weight"),
        (weighing(np.nan), "weight"),
    ],
)
@pytest.mark.parametrize("name", sorted({*OURS} - {*ASYNCHRONOUS}))
def test_the_same_faults_in_stacked_chunks(name, spoil, reason):
    schedule = everyone(CLIENTS, 4)
    params, reports = finish(loop(make(name), StackedGrid(spoil), schedule), START)
    assert [report.rejected for report in reports] == [{reason: 1}] * 4
    keep = np.arange(CLIENTS) != BAD_ONE
    silent, _ = finish(loop(make(name), StackedGrid(lambda c: c.rows(keep)), schedule), START)
    assert equal(params, silent)
    assert torch.isfinite(params["x"]).all()
