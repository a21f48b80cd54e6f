"""A twin of `strategy=diff2`, `dp_gd` and `bvr_l_sgd` under `privacy=diff2`: many runs at once.

Runs of one model, settings and seeds stacked along an axis. No gradient of a record is ever laid
out: those of a layer are outer products, so their norms, and the norms of their differences at two
models, need only the factors. `check` compares it with the strategies themselves.

Shapes: M runs (setting and seed), N records, H hidden units, D inputs and a one, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from fedsim import seeds
from fedsim.config import compose
from fedsim.records import Params
from fedsim.simulation import Simulation
from privacy.diff2_schedule import of_rounds, tight
from privacy.normal import NoiseSource, keyed

CLIENTS, HIDDEN = 10, 10
SPLIT, LOCAL_SPLIT = 0.8, 0.2


@dataclass(frozen=True)
class Point:
    """One setting: R, T, C1, C2, η; K local steps of 1/m of a client's records each, or none."""

    rounds: int
    restart: int
    c1: float
    c2: float
    lr: float
    steps: int = 0
    parts: int = 1

    def __str__(self) -> str:
        own = "" if self.restart == 1 else f", T={self.restart}, C2={self.c2:g}"
        own += f", K={self.steps}" if self.steps else ""
        return f"C1={self.c1:g}{own}, η={self.lr:g}"


class Softplus:
    """θ = (W [H, D], b [H], w [H], c), as the parameters of `model=mlp` lie in a row."""

    def __init__(self, x_ND: Tensor, y_N: Tensor) -> None:
        self.x_DN, self.y_N = torch.cat([x_ND, x_ND.new_ones(len(x_ND), 1)], 1).T.contiguous(), y_N
        self.square_N = self.x_DN.square().sum(0)
        self.inputs = x_ND.shape[1]
        self.size = HIDDEN * (self.inputs + 2) + 1

    def part(self, rows: np.ndarray) -> Softplus:
        index = torch.from_numpy(rows)
        return Softplus(self.x_DN[:-1, index].T, self.y_N[index])

    def start(self, seed: int) -> Tensor:
        """As `nn.Linear` draws: uniform in ± 1/sqrt(inputs)."""
        rng = torch.Generator().manual_seed(seed)
        sizes = ((HIDDEN * (self.inputs + 1), self.inputs), (HIDDEN + 1, HIDDEN))
        drawn = [
            (2 * torch.rand(n, generator=rng, dtype=torch.float64) - 1) / math.sqrt(fan)
            for n, fan in sizes
        ]
        return torch.cat(drawn).to(self.y_N.dtype)

    def records(self, theta_MP: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return each record's gradient as (A, Q), of layer 1 A ⊗ x and of layer 2 Q; its loss."""
        count, split = len(theta_MP), HIDDEN * self.inputs
        weight_MHD = theta_MP[:, :split].view(count, HIDDEN, self.inputs)
        bias_MH = theta_MP[:, split : split + HIDDEN]
        last_MH, shift_M = theta_MP[:, split + HIDDEN : -1], theta_MP[:, -1:]
        both = torch.cat([weight_MHD, bias_MH.unsqueeze(2)], 2).view(count * HIDDEN, -1)
        z_MHN = (both @ self.x_DN).view(count, HIDDEN, -1)
        h_MHN = softplus(z_MHN)
        slope_MHN = torch.sigmoid_(z_MHN)
        error_MN = torch.bmm(last_MH.unsqueeze(1), h_MHN).squeeze(1) + shift_M - self.y_N
        delta_MN = 2 * error_MN
        a_MHN = slope_MHN.mul_(last_MH.unsqueeze(2)).mul_(delta_MN.unsqueeze(1))
        q_MHN = torch.cat([h_MHN.mul_(delta_MN.unsqueeze(1)), delta_MN.unsqueeze(1)], 1)
        return (a_MHN, q_MHN), error_MN.square()

    def norms(self, vectors: tuple[Tensor, Tensor]) -> Tensor:
        a_MHN, q_MHN = vectors
        square_MN = torch.einsum("mhn,mhn->mn", a_MHN, a_MHN).mul_(self.square_N)
        return (square_MN + torch.einsum("mhn,mhn->mn", q_MHN, q_MHN)).sqrt_()

    def total(self, vectors: tuple[Tensor, Tensor], weight_MN: Tensor | None = None) -> Tensor:
        """Return Σ_n weight_n g_n, `[M, P]`."""
        a_MHN, q_MHN = vectors
        if weight_MN is None:
            q_MH = q_MHN.sum(2)
        else:
            q_MH = torch.bmm(q_MHN, weight_MN.unsqueeze(2)).squeeze(2)
            a_MHN = a_MHN * weight_MN.unsqueeze(1)
        count = len(a_MHN)
        both = (a_MHN.view(count * HIDDEN, -1) @ self.x_DN.T).view(count, HIDDEN, -1)
        return torch.cat([both[:, :, :-1].flatten(1), both[:, :, -1], q_MH], 1)


class Logistic:
    """θ = (W [2, D], b [2]), as the parameters of `model=linear` lie in a row; starts at zero."""

    def __init__(self, x_ND: Tensor, y_N: Tensor) -> None:
        self.x_ND, self.y_N = torch.cat([x_ND, x_ND.new_ones(len(x_ND), 1)], 1), y_N
        self.root_N = (2 * self.x_ND.square().sum(1)).sqrt()
        self.inputs = x_ND.shape[1]
        self.size = 2 * (self.inputs + 1)

    def part(self, rows: np.ndarray) -> Logistic:
        index = torch.from_numpy(rows)
        return Logistic(self.x_ND[index, :-1], self.y_N[index])

    def start(self, seed: int) -> Tensor:
        return self.x_ND.new_zeros(self.size)

    def records(self, theta_MP: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return p(1) − y, of which each gradient is a multiple; the loss."""
        weight_M2D = theta_MP[:, : 2 * self.inputs].view(-1, 2, self.inputs)
        bias_M2 = theta_MP[:, 2 * self.inputs :]
        way_MD = torch.cat(
            [weight_M2D[:, 1] - weight_M2D[:, 0], bias_M2[:, 1:] - bias_M2[:, :1]], 1
        )
        z_MN = way_MD @ self.x_ND.T
        return (torch.sigmoid(z_MN) - self.y_N,), softplus(z_MN * (1 - 2 * self.y_N))

    def norms(self, vectors: tuple[Tensor, ...]) -> Tensor:
        return vectors[0].abs().mul_(self.root_N)

    def total(self, vectors: tuple[Tensor, ...], weight_MN: Tensor | None = None) -> Tensor:
        g_MN = vectors[0] if weight_MN is None else vectors[0] * weight_MN
        way_MD = g_MN @ self.x_ND
        weight_MD, bias_M1 = way_MD[:, :-1], way_MD[:, -1:]
        return torch.cat([-weight_MD, weight_MD, -bias_M1, bias_M1], 1)


Loss = Softplus | Logistic
Noise = Callable[[int, int, int], Tensor]
"""(seed, server round, local step or −1 for the server's) -> standard normals `[P]`."""


def torch_noise(size: int) -> Noise:
    """Return noise that is the same for all settings of a seed."""

    def noise(seed: int, server_round: int, step: int) -> Tensor:
        return torch.randn(size, generator=generators[seed])

    class Generators(dict[int, torch.Generator]):
        def __missing__(self, seed: int) -> torch.Generator:
            self[seed] = torch.Generator().manual_seed(seed + 7_000_000)
            return self[seed]

    generators = Generators()
    return noise


@dataclass
class Trace:
    """What a run of M settings and S seeds met, `[M, S]` each."""

    loss: np.ndarray
    gradient: np.ndarray
    least_loss: np.ndarray
    least_gradient: np.ndarray
    test_loss: np.ndarray
    theta: Tensor


def run_many(
    loss: Loss,
    test: Loss | None,
    points: Sequence[Point],
    run_seeds: Sequence[int],
    levels: Callable[[Point, int], tuple[float, float, float]],
    noise: Noise,
    clients: Sequence[np.ndarray],
    worker: Callable[[int, int], int],
    start: Callable[[int], Tensor] | None = None,
) -> Trace:
    """Run settings with equal R, T, K and m, for several seeds each.

    Args:
        loss: The train records.
        test: The test records; None for none.
        points: The settings.
        run_seeds: Seeds.
        levels: (setting, seed) -> z1, z2, z3.
        noise: See `Noise`.
        clients: Each client's records.
        worker: (seed, server round) -> who is drawn.
        start: Seed -> the initial model; None: the loss's own.
    """
    first = points[0]
    rounds, restart, steps, parts = first.rounds, first.restart, first.steps, first.parts
    pairs = [(point, seed) for seed in run_seeds for point in points]
    dtype = loss.y_N.dtype
    c1_M, c2_M, lr_M = (
        torch.tensor([[getattr(p, n)] for p, _ in pairs], dtype=dtype) for n in ("c1", "c2", "lr")
    )
    z1_M, z2_M, z3_M = torch.tensor([levels(*pair) for pair in pairs], dtype=dtype).T.unsqueeze(2)
    theta_MP = torch.stack([(start or loss.start)(seed) for _, seed in pairs])
    before_MP = v_MP = theta_MP
    local = {k: [loss.part(rows) for rows in np.array_split(own, parts)] for k, own in
             enumerate(clients)} if steps else {}  # fmt: skip
    taken = {seed: [0] * len(clients) for seed in run_seeds}
    alive = torch.ones(len(pairs), dtype=torch.bool)
    count = len(loss.y_N)
    least = torch.full((2, len(pairs)), math.inf)
    late: list[Tensor] = []

    def noises(server_round: int, step: int) -> Tensor:
        each = [noise(seed, server_round, step) for seed in run_seeds]
        return torch.stack(each).repeat_interleave(len(points), 0)

    previous: tuple[Tensor, ...] = ()
    for r in range(rounds):
        server_round = 2 * r + 1 if steps else r + 1
        vectors, losses_MN = loss.records(theta_MP)
        if r % restart == 0:
            given, bound_M, z_M, v_MP = vectors, c1_M, z1_M, torch.zeros_like(theta_MP)
        else:
            given = tuple(new - old for new, old in zip(vectors, previous, strict=True))
            bound_M, z_M = c2_M * (theta_MP - before_MP).norm(dim=1, keepdim=True), z2_M
        mean_M = losses_MN.mean(1)
        last_tenth = r >= rounds - rounds // 10
        if last_tenth or r % 10 == 0:
            square_M = (loss.total(vectors) / count).square().sum(1)
            found = torch.stack([mean_M, square_M]).to(torch.float32)
            least = torch.minimum(least, torch.where(torch.isfinite(found), found, math.inf))
            if last_tenth:
                late.append(found)
        factor_MN = (bound_M / loss.norms(given).clamp_(min=1e-30)).clamp_(max=1)
        sums_MP = loss.total(given, factor_MN)
        v_MP = v_MP + (sums_MP + z_M * bound_M * noises(server_round, -1)) / count
        previous, before_MP = vectors, theta_MP
        theta_MP = theta_MP - lr_M * v_MP
        if steps:
            old_MP, u_MP = before_MP, v_MP
            for k in range(steps):
                bound_M = c2_M * (theta_MP - old_MP).norm(dim=1, keepdim=True)
                ways = []
                for i, seed in enumerate(run_seeds):
                    own = slice(i * len(points), (i + 1) * len(points))
                    who = worker(seed, server_round + 1)
                    batch = local[who][(taken[seed][who] + k) % parts]
                    new, _ = batch.records(theta_MP[own])
                    old, _ = batch.records(old_MP[own])
                    change = tuple(a - b for a, b in zip(new, old, strict=True))
                    factor = (bound_M[own] / batch.norms(change).clamp_(min=1e-30)).clamp_(max=1)
                    drawn = noise(seed, server_round + 1, k)
                    total = batch.total(change, factor) + z3_M[own] * bound_M[own] * drawn
                    ways.append(total / len(batch.y_N))
                u_MP = u_MP + torch.cat(ways)
                old_MP, theta_MP = theta_MP, theta_MP - lr_M * u_MP
            for seed in run_seeds:
                taken[seed][worker(seed, server_round + 1)] += steps
        if r % 25 == 24:  # what has left for good is held at its last finite model
            lost = ~(torch.isfinite(mean_M) & (mean_M < 1e3))
            if bool(lost.any()):
                alive &= ~lost
                theta_MP[lost] = before_MP[lost] = v_MP[lost] = 0
                lr_M = torch.where(lost.unsqueeze(1), 0.0, lr_M)
                previous, _ = loss.records(before_MP)
        if not bool(alive.any()):
            break
    shape = (len(run_seeds), len(points))
    tail = torch.stack(late).mean(0) if late else torch.full((2, len(pairs)), math.inf)
    tail = torch.where(alive & torch.isfinite(tail), tail, math.inf)
    scores = [tail[0], tail[1], *least]
    scores.append(test.records(theta_MP)[1].mean(1).float() if test else tail[0])
    arrays = [values.view(shape).T.numpy() for values in scores]
    return Trace(*arrays, theta=theta_MP)


def worker(seed: int, server_round: int) -> int:
    """Return who does the local steps of a round, as `strategy=bvr_l_sgd` draws."""
    return int(seeds.rng(seed, server_round, seeds.SERVER, "worker").integers(CLIENTS))


def levels_at(noise: float) -> Callable[[Point, int], tuple[float, float, float]]:
    """Return (setting, seed) -> z1, z2, z3 of a run that costs what one release with it does."""

    def levels(point: Point, seed: int) -> tuple[float, float, float]:
        visits = 0
        if point.steps:
            drawn = [worker(seed, 2 * r) for r in range(1, point.rounds + 1)]
            visits = math.ceil(int(np.bincount(drawn).max()) * point.steps / point.parts)
        planned = of_rounds(point.rounds, point.restart, visits)
        plan = tight(planned, noise=noise, split=SPLIT, local_split=LOCAL_SPLIT)
        return plan.restart_noise, plan.difference_noise, plan.local_noise

    return levels


def check(loss: type[Loss], strategy: str) -> float:
    """Return the largest difference between the twin's model and that of the strategy itself.

    Clipped and noisy, with an unequal share of a client's records in each batch, in float64.
    """
    lines = {
        Softplus: ("data=ill_conditioned", "data.samples=503", "data.inputs=4", "model=mlp",
                   f"model.hidden=[{HIDDEN}]", "model.activation=softplus"),
        Logistic: ("data=breast_cancer", "model=linear"),
    }[loss]  # fmt: skip
    local = (3, 2) if strategy == "bvr_l_sgd" else (0, 1)
    point = Point(8, 3, 0.4, 0.7, 0.1, *local)
    words = [
        *(*lines, "partition=iid", f"partition.num_clients={CLIENTS}", "participation=full"),
        *(f"strategy={strategy}", "privacy=diff2", "privacy.epsilon=null", "precision=float64"),
        *("privacy.noise_multiplier=2", f"strategy.clip_gradients={point.c1}", "device=cpu"),
        *(f"strategy.clip_differences={point.c2}", "strategy.restart=3", "seed=3"),
        *(f"strategy.server_lr={point.lr}", "evaluation.central=false"),
        f"rounds={16 if point.steps else 8}",
    ]
    if point.steps:
        words += ["strategy.local_steps=3", "strategy.local_batches=2", "strategy.clip_local=0.7"]
    simulation = Simulation(compose("quickstart", words))
    begin = simulation.runtime.initial_params()
    names = simulation.runtime.trainable
    *_, (params, _) = simulation.loop.run(begin)
    data = simulation.dataset
    made = loss(data.train_x, data.train_y.flatten().double())
    clients = [simulation.runtime.samples(k) for k in range(CLIENTS)]

    class Sources(dict[int, NoiseSource]):
        """Of the rounds of local steps, each of which goes on in its own stream."""

        def __missing__(self, server_round: int) -> NoiseSource:
            self[server_round] = keyed(3, server_round, worker(3, server_round), "diff2-local")
            return self[server_round]

    sources = Sources()

    def noise(seed: int, server_round: int, step: int) -> Tensor:
        one = (
            keyed(seed, server_round, seeds.SERVER, "diff2") if step < 0 else sources[server_round]
        )
        return one.normal(made.size, dtype=torch.float64)

    def row(tensors: Params) -> Tensor:
        return torch.cat([tensors[name].flatten() for name in names])

    trace = run_many(
        made, None, [point], [3], levels_at(2.0), noise, clients, worker, lambda _: row(begin)
    )
    return float((trace.theta[0] - row(params)).abs().max() / row(params).abs().max())
