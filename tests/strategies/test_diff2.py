"""DIFF2: the recursion, its clipping, its noise, and what a change of membership does."""

import math

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord

import fedsim.client.whole as whole
from fedsim.client.whole import Cohort
from fedsim.config import compose
from fedsim.data.dataset import Dataset
from fedsim.engines.cohort import Cohort as CohortEngine
from fedsim.engines.in_process import InProcess
from fedsim.errors import BudgetError, ConfigError, DataError
from fedsim.models.linear import LinearModel
from fedsim.models.mlp import MLP
from fedsim.participation.sampling import Poisson
from fedsim.partition.base import ArrayPartition
from fedsim.records import to_record
from fedsim.simulation import Simulation
from privacy.diff2 import Diff2DP
from strategies.diff2 import Diff2
from tests.helpers import Everyone, distance, make_runtime, regression, run, shares
from tests.privacy._dp import private_runtime, setting
from tests.strategies._toy import Masks, Nodes, Stacked, chunk, federate, model

SIZES = (7, 5, 12, 10)
ENGINES = {"in_process": InProcess(), "cohort": CohortEngine(chunk=3)}


class Watched(Diff2):
    """Keeps each round's model and estimate of its gradient."""

    def aggregate(self, context, replies):
        after = super().aggregate(context, replies)
        self.seen.append((context.params, {n: t.clone() for n, t in self._estimate.items()}))
        return after


def watched(**values):
    strategy = Watched(**{"clip_gradients": 1e30, "clip_differences": 1e30, **values})
    strategy.seen = []
    return strategy


def exact(runtime, params, weights_N):
    """The gradient of Σ_i w_i ℓ_i, by plain autograd."""
    leaves = {name: params[name].detach().requires_grad_() for name in runtime.trainable}
    index = np.concatenate([runtime.samples(k) for k in range(runtime.partition.num_clients)])
    data = runtime.dataset
    outputs = runtime.apply({**params, **leaves}, data.train_x[index])
    losses = (outputs - data.train_y[index]).square().mean(1)
    value = (torch.as_tensor(weights_N) * losses).sum()
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("min_examples", [None, 5])
def test_without_noise_or_clipping_the_estimate_is_the_gradient(engine, min_examples, monkeypatch):
    """Acceptance 1: differences telescope, in ragged pieces of unequal clients."""
    monkeypatch.setattr(whole, "PIECE", 4)
    data = regression(60)
    strategy = watched(restart=9, server_lr=0.3, min_examples=min_examples)
    runtime = make_runtime(
        data,
        MLP(hidden=[5], activation="softplus"),
        partition=shares(data, SIZES),
        half=strategy.client_half,
    )
    run(runtime, ENGINES[engine], strategy=strategy, rounds=12)
    if min_examples is None:
        weights = np.full(sum(SIZES), 1 / sum(SIZES))
    else:  # the mean of the clients' means
        weights = np.repeat([1 / (n * len(SIZES)) for n in SIZES], SIZES)
    assert len(strategy.seen) == 12
    for params, estimate in strategy.seen:
        for name, gradient in exact(runtime, params, weights).items():
            assert float((estimate[name] - gradient).abs().max()) < 1e-10
            assert float(gradient.abs().max()) > 1e-4


def points(*pairs):
    """One client per list of (x, y): scalar least squares without an intercept."""
    x = torch.tensor([[a] for part in pairs for a, _ in part], dtype=torch.float64)
    y = torch.tensor([[b] for part in pairs for _, b in part], dtype=torch.float64)
    data = Dataset(
        name="made_up", task="regression", train_x=x, train_y=y, test_x=x, test_y=y, num_outputs=1
    )
    bounds = np.cumsum([0, *(len(part) for part in pairs)])
    return make_runtime(
        data,
        lambda: torch.nn.Linear(1, 1, bias=False),
        partition=ArrayPartition(np.arange(len(x)), bounds),
        half=Diff2().client_half,
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_three_rounds_by_hand(engine):
    """Gradients 2 x (w x − y): from w0 = 0, records (1, 1), (2, 3), (1, −1) of two clients."""
    runtime = points([(1.0, 1.0), (2.0, 3.0)], [(1.0, -1.0)])
    strategy = watched(restart=2, clip_gradients=5.0, clip_differences=4.0, server_lr=0.5)
    start = {"weight": torch.zeros(1, 1, dtype=torch.float64)}
    runtime.initial_params = lambda: {n: t.clone() for n, t in start.items()}
    _, reports = run(runtime, ENGINES[engine], strategy=strategy, rounds=3)
    # Round 1, w = 0: −2, −12 → −5, 2. Sum −5, v = −5/3, w = 5/6.
    # Round 2, c = 4 · 5/6: differences 2·5/6, 8·5/6 → 4·5/6, 2·5/6. v = −5/3 + 20/9 = 5/9.
    # Round 3, a restart at w = 5/6 − 5/18 = 5/9: −8/9, −68/9 → −5, 28/9. v = −25/27.
    found = [float(estimate["weight"]) for _, estimate in strategy.seen]
    assert found == pytest.approx([-5 / 3, 5 / 9, -25 / 27], rel=1e-14)
    clipped = [report.train["clipped-fraction"] for report in reports]
    assert clipped == pytest.approx([1 / 3] * 3)
    assert reports[0].train["train-loss"] == pytest.approx(11 / 3)


def test_a_record_whose_gradient_is_not_finite_counts_as_zero():
    """It must not be told from others by a reply that is refused."""
    data = regression(60)
    strategy = watched(clip_gradients=1.0)
    runtime = private_runtime(
        data,
        LinearModel(),
        Diff2DP(epsilon=1e4),
        sizes=SIZES,
        half=strategy.client_half,
        strategy=strategy,
    )
    first = runtime.samples(0)
    data.train_y[first[0]], data.train_y[first[1]] = math.inf, math.nan
    data.train_x[first[2]] = 1e200
    _, (report,) = run(runtime, InProcess(), strategy=strategy, rounds=1)
    assert report.admitted == [0, 1, 2, 3]
    assert all(torch.isfinite(t).all() for t in strategy.seen[0][1].values())


REAL = {
    "california": ["data=california_housing", "data.target=max"],
    "adult": ["data=adult"],
    "sparse binary": ["data=adult_binary"],
    "digits": ["data=digits"],
    "made up": ["data=ill_conditioned", "data.samples=500"],
}
MODELS = {
    "linear": ["model=linear"],  # least squares, or logistic
    "softplus": ["model=mlp", "model.hidden=[10]", "model.activation=softplus"],
}
LOSSES = [
    ("california", "softplus"),
    pytest.param("adult", "softplus", marks=pytest.mark.nightly),
    ("sparse binary", "linear"),
    ("digits", "linear"),
    ("digits", "softplus"),
    ("made up", "linear"),
]


@pytest.mark.parametrize(("data", "loss"), LOSSES)
def test_every_loss_descends_by_its_gradient_on_every_data_set(data, loss):
    """Least squares, logistic and the softplus network, against plain full-batch descent."""
    words = [
        *(*REAL[data], *MODELS[loss], "partition=iid", "partition.num_clients=4", "rounds=2"),
        *("participation=full", "strategy=diff2", "strategy.clip_gradients=1e9", "device=cpu"),
        *("strategy.clip_differences=1e9", "precision=float64", "evaluation.central=false"),
    ]
    simulation = Simulation(compose("quickstart", words))
    try:
        runtime = simulation.runtime
    except DataError as error:
        if "is missing; looked" not in str(error) and "is needed, and no data" not in str(error):
            raise
        pytest.skip(str(error))
    x, y = simulation.dataset.train_x, simulation.dataset.train_y
    params = runtime.initial_params()
    *_, (end, _) = simulation.loop.run(params)
    for _ in range(2):
        leaves = {name: tensor.requires_grad_() for name, tensor in params.items()}
        outputs = runtime.apply(leaves, x)
        of = torch.nn.functional.cross_entropy if y.dtype == torch.int64 else torch.nn.MSELoss()
        grads = torch.autograd.grad(of(outputs, y), list(leaves.values()))
        params = {
            n: (p - 0.1 * g).detach() for (n, p), g in zip(leaves.items(), grads, strict=True)
        }
    assert distance(end, params) < 1e-10


# --- noise ---------------------------------------------------------------------------------------

D, N = 101, 5000
STD = torch.logspace(-1, 0, D, dtype=torch.float64)


def bound(part, strategy, *, seed=0, rounds=10, clients=4, **values):
    schedule = Masks(np.ones((rounds, clients)))
    federate(strategy, schedule)
    made = part.bind(
        setting(
            regression(),
            None,
            strategy=strategy,
            schedule=schedule,
            seed=seed,
            rounds=rounds,
            num_clients=clients,
            **values,
        )
    )
    made.sizes_N, made._trainable = np.full(clients, N / clients), ("x",)
    return made


def turn(strategy, made, server_round, params, answers, *, clients=(0, 1, 2, 3)):
    """One round in which clients answer with `answers(x, x_before or None)`, their mean."""
    asked = strategy.federation.schedule.select(server_round)
    before = dict(strategy._previous)
    strategy.configure_train(
        server_round, to_record(params, zero_copy=True), ConfigRecord(), Nodes()
    )
    told = strategy._sent.config
    lines = made.releases(server_round, asked)
    for line in lines:
        made.record(line)
    row = answers(params["x"]) - (0 if told["restart"] else answers(before["x"]))
    rows = (row * N / 4).expand(len(clients), -1).clone()
    if made.seals:
        weights = {"x": rows}
        made.seal_(weights, params, np.array(clients), server_round, np.zeros(4), told)
    replies = Stacked(chunk(list(clients), rows, 1.0))
    return strategy.aggregate(strategy._round, replies), told


@pytest.mark.parametrize(
    ("trust", "excess"), [("central", 1.0), ("distributed", 4 / 3), ("local", 4.0)]
)
def test_the_noise_has_its_law(trust, excess):
    """Acceptance 2: E‖v − ∇f‖² = d [(C1 σ1)² + Σ since the restart (c_j σ2)²], and it is reset."""
    seeds, ratios = 200 if trust == "central" else 60, []
    for seed in range(seeds):
        strategy = Diff2(restart=5, clip_gradients=2.0, clip_differences=3.0, server_lr=0.3)
        part = Diff2DP(
            epsilon=3.0, trust=trust, min_survivors=3 if trust == "distributed" else None
        )
        made = bound(part, strategy, seed=seed, rounds=8)
        params, variance, row = model(*[1.0] * D), 0.0, []
        for server_round in range(1, 9):
            here = params["x"]
            params, told = turn(strategy, made, server_round, params, lambda x: STD * x)
            plan = made.schedule
            z = plan.restart_noise if told["restart"] else plan.difference_noise
            step = (z * told["clip-norm"] / N) ** 2 * excess
            variance = step if told["restart"] else variance + step
            error = strategy._estimate["x"] - STD * here
            row.append(float(error.square().sum()) / (D * variance))
        ratios.append(row)
    bounds = 5 * math.sqrt(2 / (seeds * D))
    assert np.abs(np.mean(ratios, 0) - 1).max() < bounds
    if trust == "central":
        assert bounds < 0.051


def test_distributed_noise_below_the_fewest_survivors_opens_nothing():
    strategy = Diff2(restart=5)
    made = bound(Diff2DP(epsilon=3.0, trust="distributed", min_survivors=3), strategy)
    start = model(*[1.0] * D)
    params, told = turn(strategy, made, 1, start, lambda x: x, clients=(0, 2))
    assert torch.equal(params["x"], start["x"]) and told["restart"]
    params, told = turn(strategy, made, 2, params, lambda x: x, clients=(0, 2, 3))
    assert not torch.equal(params["x"], start["x"]) and told["restart"]


def test_a_change_of_membership_forces_a_restart_which_is_charged():
    strategy = Diff2(restart=100)
    made = bound(Diff2DP(epsilon=3.0), strategy, rounds=100)
    planned = made.planned().epsilon
    params, kinds, moved = model(*[1.0] * D), [], []
    for server_round in range(1, 8):
        clients = (0, 1, 2) if server_round in (3, 4, 5) else (0, 1, 2, 3)
        after, told = turn(strategy, made, server_round, params, lambda x: x, clients=clients)
        kinds.append(told["restart"])
        moved.append(not torch.equal(after["x"], params["x"]))
        params = after
    # 3 is left out in round 3: that round is lost, round 4 restarts with three; it is back in 6.
    assert kinds == [True, False, False, True, False, False, True]
    assert moved == [True, True, False, True, True, False, True]
    plan = made.schedule
    counted = {e.mechanism.noise_multiplier: count for e, count in made._tally._counted.items()}
    assert counted == {plan.restart_noise: 3, plan.difference_noise: 4}
    assert made.spent() > planned  # one restart was planned for all 100 rounds
    with pytest.raises(BudgetError, match="over the budget"):
        made.afford([{"round": 8, **line} for line in made.releases(8, np.arange(4))])


def test_a_schedule_that_changes_who_is_asked_restarts_at_once():
    strategy = Diff2(restart=100)
    made = bound(Diff2DP(epsilon=3.0), strategy)
    strategy.federation.schedule.masks[3:, 1] = False
    params, kinds = model(*[1.0] * D), []
    for server_round in range(1, 6):
        clients = (0, 1, 2, 3) if server_round <= 3 else (0, 2, 3)
        params, told = turn(strategy, made, server_round, params, lambda x: x, clients=clients)
        kinds.append(told["restart"])
    assert kinds == [True, False, False, True, False]


# --- sensitivity ---------------------------------------------------------------------------------


@pytest.mark.parametrize("relation", ["replace_one", "add_remove"])
def test_one_record_moves_the_sum_by_no_more_than_is_claimed(relation, monkeypatch):
    """Acceptance 3: 1651 records in pieces of 200, the last of 51; large gradients put in."""
    monkeypatch.setattr(whole, "PIECE", 200)
    data = regression(1651, inputs=3, outputs=1)
    clip_norm, places = 0.5, [*range(0, 1651, 400), 1599, 1600, 1625, 1650]
    strategy = Diff2()

    def sums(x, y, sizes=(1651,), **told):
        changed = Dataset(
            name="d", task="regression", train_x=x, train_y=y, test_x=x, test_y=y, num_outputs=1
        )
        runtime = make_runtime(
            changed, LinearModel(), partition=shares(changed, sizes), half=strategy.client_half
        )
        start = {n: t + 0.3 for n, t in runtime.initial_params().items()}
        previous = {f"previous/{n}": (t - 0.1).unsqueeze(0) for n, t in start.items()}
        cohort = Cohort(
            runtime,
            clients=np.arange(1),
            server_round=1,
            params=start,
            client_arrays=previous,
            told={"clip-norm": clip_norm, **told},
        )
        worked = runtime.half.run(cohort)
        return torch.cat([rows.flatten() for rows in worked.arrays.values()])

    largest = 0.0
    for restart in (True, False):
        whole_sum = sums(data.train_x, data.train_y, restart=restart)
        for place in places:
            x, y = data.train_x.clone(), data.train_y.clone()
            if relation == "add_remove":
                keep = torch.arange(1651) != place
                other = sums(x[keep], y[keep], (1650,), restart=restart)
                limit = clip_norm
            else:
                # x of opposite sign pulls the gradient, and the difference, far to the other side
                x[place], y[place] = -1e3 * x[place], 1e4
                other = sums(x, y, restart=restart)
                limit = 2 * clip_norm
            change = float((other - whole_sum).norm())
            assert change <= limit * (1 + 1e-9)
            largest = max(largest, change / limit)
    assert largest > 0.5  # the bound is not an idle one


# --- whole runs ----------------------------------------------------------------------------------


def test_the_clipped_fraction_is_shown_where_it_is_asked_for_and_the_statement_says_so():
    data = regression()
    for shown in (False, True):
        strategy = Diff2()
        runtime = private_runtime(
            data,
            LinearModel(),
            Diff2DP(epsilon=3.0, clipped_fraction=shown),
            half=strategy.client_half,
            strategy=strategy,
        )
        _, (report,) = run(runtime, InProcess(), strategy=strategy, rounds=1)
        assert set(report.train) - {"num-examples"} == ({"clipped-fraction"} if shown else set())
        notes = " ".join(runtime.protection.statement().notes)
        assert ("fractions of clipped vectors are not covered" in notes) == shown


def test_the_rule_of_stability_warns(caplog):
    for server_lr, warned in ((1e-5, False), (1.0, True)):
        caplog.clear()
        strategy = Diff2(server_lr=server_lr)
        private_runtime(
            regression(),
            LinearModel(),
            Diff2DP(epsilon=1.0),
            half=strategy.client_half,
            strategy=strategy,
            rounds=40,
        )
        assert ("may grow without bound" in caplog.text) == warned


def test_drawn_clients_are_refused():
    class Drawn(Everyone):
        def sampling(self):
            return Poisson(rate=0.5)

    runtime = points([(1.0, 1.0)], [(1.0, -1.0)])
    with pytest.raises(ConfigError, match="participation=full"):
        run(runtime, InProcess(), strategy=Diff2(), schedule=Drawn(2), rounds=1)
    with pytest.raises(ConfigError, match="participation=full"):
        Diff2DP(epsilon=1.0).bind(
            setting(regression(), None, strategy=Diff2(), schedule=Drawn(2), num_clients=2)
        )
