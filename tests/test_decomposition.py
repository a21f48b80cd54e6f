"""The three loss terms: they telescope, mean what they say, and change nothing."""

import json

import numpy as np
import pytest
import torch
from flwr.serverapp import strategy as flower

from fedsim.admission import Admission
from fedsim.client.sequential import evaluate, train_client
from fedsim.client.work import LocalSGD
from fedsim.config import compose
from fedsim.decomposition import AGGREGATION, LOCAL, LOSS, SHIFT, Decomposition
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.errors import ConfigError
from fedsim.lifecycle import Run
from fedsim.models.cnn import CNN
from fedsim.models.linear import LinearModel
from fedsim.models.mlp import MLP
from fedsim.partition.noise import Noise
from fedsim.records import Chunk
from fedsim.report.html import write_report
from fedsim.results import RunFolder
from fedsim.rounds import Evaluation, RoundLoop
from fedsim.simulation import Simulation
from fedsim.strategy import Federation, FedsimStrategy
from strategies.fedau import FedAU
from strategies.fedavg import FedAvg
from strategies.fedld import FedLD
from tests import helpers
from tests.strategies._toy import Masks

SIZES = (20, 7, 31, 12, 30)
ENGINES = {"in_process": InProcess(), "wire": InProcess(wire_check=True), "cohort": Cohort(chunk=2)}


def flower_fedavg():
    return flower.FedAvg(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1)


STRATEGIES = {"fedavg": FedAvg, "fedau": FedAU, "fedld": FedLD, "flower": flower_fedavg}


def runtime_of(dtype=torch.float64, model=None, **settings):
    data = helpers.classification(shape=(6,), dtype=dtype)
    partition = helpers.shares(data, SIZES)
    work = LocalSGD(lr=0.3, batch_size=8, epochs=2)
    settings = {"partition": partition, "work": work, **settings}
    return helpers.make_runtime(data, model or MLP(hidden=[8]), **settings)


def rounds(runtime, engine, strategy, *, masks=None, observe=True, count=3, batch_size=4096):
    """Run a federation; yield (model, report) of each round."""
    clients = runtime.partition.num_clients
    schedule = Masks(np.ones((count, clients)) if masks is None else masks)
    if isinstance(strategy, FedsimStrategy):
        strategy.federation = Federation(num_clients=clients, seed=0, schedule=schedule)
    loop = RoundLoop(
        strategy=strategy,
        grid=engine.grid(runtime),
        schedule=schedule,
        admission=Admission(),
        evaluation=Evaluation(central=None, clients=False, every=1),
        seed=0,
        last_round=count,
        observer=Decomposition(runtime, batch_size) if observe else None,
    )
    return list(loop.run(runtime.initial_params()))


def loss_of(runtime, params, clients):
    """The mean loss over some clients' training samples, through the ordinary evaluation."""
    rows = np.concatenate([runtime.samples(k) for k in clients])
    return evaluate(runtime, params, runtime.dataset.train_x[rows], runtime.dataset.train_y[rows])[
        "loss"
    ]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_terms_sum_to_the_loss_of_the_participants(name, engine):
    """Whatever the strategy and the engine; half of the clients in each round."""
    runtime = runtime_of()
    masks = np.random.default_rng(0).random((4, 5)) < 0.6
    masks[2] = False
    seen = rounds(runtime, ENGINES[engine], STRATEGIES[name](), masks=masks, count=4, batch_size=9)
    for mask, (params, report) in zip(masks, seen, strict=True):
        if not mask.any():
            assert report.diagnostics == {}
            continue
        terms = report.diagnostics
        assert list(terms) == [LOSS, LOCAL, SHIFT, AGGREGATION]
        total = terms[LOCAL] + terms[SHIFT] + terms[AGGREGATION]
        assert total == pytest.approx(loss_of(runtime, params, report.admitted), abs=1e-12)
        assert terms[LOSS] == pytest.approx(total, abs=1e-12)
        assert (abs(terms[SHIFT]) > 1e-3) == (len(report.admitted) > 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_each_term_is_what_it_says(engine):
    """Against the local models trained once more, one by one."""
    runtime = runtime_of()
    start = runtime.initial_params()
    ((params, report),) = rounds(runtime, ENGINES[engine], FedAvg(), count=1)
    locals_ = [
        train_client(runtime, client=k, server_round=1, params=start, client_arrays={}).params
        for k in range(5)
    ]
    p = np.array(SIZES) / sum(SIZES)
    local = p @ [loss_of(runtime, locals_[k], [k]) for k in range(5)]
    apart = p @ [loss_of(runtime, locals_[k], range(5)) for k in range(5)]
    together = loss_of(runtime, params, range(5))
    terms = report.diagnostics
    assert terms[LOCAL] == pytest.approx(local, abs=1e-10)
    assert terms[SHIFT] == pytest.approx(apart - local, abs=1e-10)
    assert terms[AGGREGATION] == pytest.approx(together - apart, abs=1e-10)


def test_by_hand():
    """One weight, squared error: L_k(w) is the mean of (w x - y)^2 over client k."""
    data = helpers.regression(inputs=1, outputs=1)
    data.train_x[:3], data.train_y[:3] = 1.0, torch.tensor([[0.0], [2.0], [2.0]]).double()
    partition = helpers.ArrayPartition(np.arange(3), np.array([0, 1, 3]))
    runtime = helpers.make_runtime(data, LinearModel(), partition=partition)
    (weight,) = (name for name in runtime.initial_params() if name.endswith("weight"))
    bias = weight.replace("weight", "bias")

    def model(*w):
        return {
            weight: torch.tensor(w).double().view(-1, 1, 1),
            bias: torch.zeros(len(w), 1).double(),
        }

    observer = Decomposition(runtime)
    observer.begin(np.array([0, 1]))
    observer.see(Chunk(client_index=np.array([1]), arrays=model(3.0)))  # in any order
    observer.see(Chunk(client_index=np.array([0]), arrays=model(1.0)))
    terms = observer.end({name: rows[0] for name, rows in model(1.5).items()})
    # p = (1/3, 2/3); at home: 1 and 1; on all: w=1: (1 + 1 + 1)/3 = 1, w=3: (9 + 1 + 1)/3 = 11/3
    apart = 1 / 3 + 2 / 3 * 11 / 3
    together = (2.25 + 0.25 + 0.25) / 3
    expected = {LOSS: together, LOCAL: 1.0, SHIFT: apart - 1, AGGREGATION: together - apart}
    assert terms == pytest.approx(expected, abs=1e-14)


def test_who_is_not_admitted_does_not_count():
    """Of three that were asked, two replied: the third's samples are no part of the loss."""
    runtime = runtime_of()
    params = runtime.initial_params()
    observer = Decomposition(runtime)
    observer.begin(np.array([0, 2, 4]))
    pair = {name: torch.stack([t, t]) for name, t in params.items()}
    observer.see(Chunk(client_index=np.array([4, 0]), arrays=pair))
    assert observer.end(params)[LOSS] == pytest.approx(loss_of(runtime, params, [0, 4]), abs=1e-12)


def test_clients_that_hold_the_same_have_no_shift():
    data = helpers.classification(dtype=torch.float64)
    partition = helpers.ArrayPartition(np.tile(np.arange(30), 3), np.array([0, 30, 60, 90]))
    work = LocalSGD(lr=0.1, batch_size=30, epochs=3)
    runtime = helpers.make_runtime(data, MLP(hidden=[8]), partition=partition, work=work)
    for _, report in rounds(runtime, InProcess(), FedAvg()):
        assert report.diagnostics[SHIFT] == pytest.approx(0, abs=1e-12)
        assert report.diagnostics[AGGREGATION] == pytest.approx(0, abs=1e-12)


def test_a_client_is_judged_on_its_own_view_of_its_samples():
    """Feature skew: the loss is that of the transformed inputs."""
    data = helpers.classification(dtype=torch.float64)
    partition = Noise(num_clients=4, sigma=4.0).split(data, np.random.default_rng(0))
    runtime = helpers.make_runtime(data, MLP(hidden=[8]), partition=partition)
    ((params, report),) = rounds(runtime, Cohort(), FedAvg(), count=1)
    pool = runtime.pool(range(4))
    seen = evaluate(runtime, params, *pool.take(np.concatenate(pool.rows)))["loss"]
    assert report.diagnostics[LOSS] == pytest.approx(seen, abs=1e-12)
    assert abs(seen - loss_of(runtime, params, range(4))) > 1e-3


@pytest.mark.parametrize("engine", ["in_process", "cohort"])
def test_looking_changes_nothing(engine):
    """To the bit, with dropout, which the diagnostics must switch off and leave on."""
    data = helpers.classification(shape=(1, 8, 8))
    results = []
    for observe in (True, False):
        runtime = helpers.make_runtime(
            data,
            CNN(channels=[4], hidden=[8], dropout=0.5),
            partition=helpers.shares(data, SIZES),
            work=LocalSGD(lr=0.1, batch_size=8),
        )
        seen = rounds(runtime, ENGINES[engine], FedAvg(), observe=observe)
        results.append(seen[-1])
    assert helpers.distance(results[0][0], results[1][0]) == 0
    assert results[0][1].train == results[1][1].train
    assert results[0][1].diagnostics
    assert results[1][1].diagnostics == {}


def simulation(tmp_path, *words):
    small = ["rounds=3", "partition.num_clients=4", "participation.clients_per_round=3"]
    return Simulation(compose("quickstart", [*small, f"output.root={tmp_path}", *words]))


def test_it_is_off_unless_asked_for(tmp_path):
    assert simulation(tmp_path).loop.observer is None


def test_a_run_records_and_reports_it(tmp_path):
    asked = simulation(tmp_path, "evaluation.decomposition=true")
    run = Run(simulation=asked, folder=RunFolder.create(asked.config))
    reports = list(run.start())
    lines = [json.loads(line) for line in (run.folder.path / "metrics.jsonl").open()]
    assert [bool(line["diagnostics"]) for line in lines] == [False, True, True, True]
    assert lines[-1]["diagnostics"] == reports[-1].diagnostics
    summary = json.loads((run.folder.path / "summary.json").read_text())
    assert summary["metrics"]["diagnostics"] == reports[-1].diagnostics
    page = write_report(run.folder.path).read_text()
    assert "Where the loss comes from" in page
    for words in ("local", "distribution shift", "aggregation"):
        assert f'<th scope="row">{words}</th>' in page
    for value in reports[-1].diagnostics.values():
        assert f"{value:#.4g}" in page
    assert "diagnostics.loss-shift" in (run.folder.path / "curves.csv").read_text()


def test_a_report_without_it_does_not_mention_it(tmp_path):
    plain = simulation(tmp_path)
    run = Run(simulation=plain, folder=RunFolder.create(plain.config))
    list(run.start())
    assert "Where the loss comes from" not in write_report(run.folder.path).read_text()


def test_it_is_refused_where_the_data_are_elsewhere(tmp_path):
    asked = simulation(tmp_path, "evaluation.decomposition=true")
    asked.__dict__["grid"] = object()  # any grid that is not of this process
    with pytest.raises(ConfigError, match=r"evaluation\.decomposition=true.*use engine=cohort"):
        _ = asked.loop
