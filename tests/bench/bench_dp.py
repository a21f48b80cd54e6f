"""What clipping every sample's gradient costs: one DP-SGD step of K clients, in CPU-seconds.

Batches of 32, float32, one thread, random data, clip 1, noise multiplier 1, plain SGD. Contestants:

    sequential     no privacy, one client after another: backward pass, `torch.optim.SGD`
    cohort         no privacy, layer rules over blocks of clients
    hooks          Opacus, per-sample gradients, one client after another
    ghost          Opacus, ghost clipping, one client after another
    book-keeping   layer rules over blocks of clients: output gradients by one backward pass, norms,
                   one weighted contraction straight into the weights (arXiv:2210.00038)

The contestants take turns, one step each, in every repetition; figures are medians of CPU time,
the system's for fresh memory included. Each lives in a process of its own, as a user's run does:
what an allocator holds back for one would spare another the system's time. Opacus' modules and
optimizers are made beforehand, one set per client, and its per-sample gradients are dropped after
each step. Every private contestant draws as many normals as its clients have weights: Opacus by
torch's generator, *book-keeping* by ours.

Memory is what a process grows by at most in its first three steps, each contestant in a process of
its own: resident pages, looked at every half millisecond.

    python tests/bench/bench_dp.py [repetitions]
"""

from __future__ import annotations

import copy
import os
import platform
import resource
import statistics
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn

from fedsim.layers.model import StackedModel
from fedsim.records import Params
from privacy.normal import keyed

PAGE = Path(__file__).resolve().parents[2] / "results" / "dp" / "speed.md"
BATCH, CLIP, LR = 32, 1.0, 0.1


def mlp(width: int) -> nn.Module:
    """Make an MLP of two hidden layers on 784 inputs."""
    return nn.Sequential(
        nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def cnn() -> nn.Module:
    """Make the CNN of McMahan et al. (arXiv:1602.05629): 1,663,370 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "MLP 784-200-200-10": (lambda: mlp(200), (784,), 50, 10),
    "CNN 1.66M": (cnn, (1, 28, 28), 10, 5),
    "MLP 784-3072-3072-10": (lambda: mlp(3072), (784,), 1, 1),
}
"""name -> (how to make it, shape of an input, clients, clients per block)."""
TIMED = ("MLP 784-200-200-10", "CNN 1.66M")


class Contestant:
    """Takes one step of all clients at a time, each on a batch of its own.

    Args:
        name: Of the model.
        sigma: The noise multiplier.
    """

    def __init__(self, name: str, sigma: float = 1.0) -> None:
        make, shape, self.clients, self.block = MODELS[name]
        torch.manual_seed(0)
        self.model, self.sigma = make(), sigma
        self.x_KB = torch.randn(self.clients, BATCH, *shape)
        self.y_KB = torch.randint(10, (self.clients, BATCH))
        self.generators = [torch.Generator().manual_seed(k) for k in range(self.clients)]
        self.prepare()

    def prepare(self) -> None:
        """Make everything that lives longer than a step."""
        raise NotImplementedError

    def step(self) -> None:
        """Take one step of every client."""
        raise NotImplementedError

    def weights(self) -> list[Tensor]:
        """Return the clients' weights, each `[K, ...]`."""
        raise NotImplementedError


class Sequential(Contestant):
    """No privacy, one client after another; also what Opacus' two have in common."""

    def prepare(self) -> None:
        self.parts = []
        for generator in self.generators:
            module = copy.deepcopy(self.model)
            sgd = torch.optim.SGD(module.parameters(), lr=LR)
            self.parts.append(self.wrap(module, sgd, generator))

    def wrap(
        self, module: nn.Module, sgd: torch.optim.Optimizer, generator: torch.Generator
    ) -> tuple[nn.Module, torch.optim.Optimizer, nn.Module]:
        """Return (model, optimizer, criterion) of one client."""
        return module, sgd, nn.CrossEntropyLoss()

    def step(self) -> None:
        for (module, optimizer, criterion), x, y in zip(
            self.parts, self.x_KB, self.y_KB, strict=True
        ):
            criterion(module(x), y).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def weights(self) -> list[Tensor]:
        clients = [list(module.parameters()) for module, _, _ in self.parts]
        return [torch.stack([p.detach() for p in same]) for same in zip(*clients, strict=True)]


class Hooks(Sequential):
    """Opacus with per-sample gradients."""

    def wrap(self, module, sgd, generator):  # type: ignore[no-untyped-def]
        optimizer = DPOptimizer(
            sgd, noise_multiplier=self.sigma, max_grad_norm=CLIP, expected_batch_size=BATCH,
            generator=generator,
        )  # fmt: skip
        return GradSampleModule(module), optimizer, nn.CrossEntropyLoss()


class Ghost(Sequential):
    """Opacus with ghost clipping."""

    def wrap(self, module, sgd, generator):  # type: ignore[no-untyped-def]
        wrapped = GradSampleModuleFastGradientClipping(
            module, max_grad_norm=CLIP, use_ghost_clipping=True
        )
        optimizer = DPOptimizerFastGradientClipping(
            sgd, noise_multiplier=self.sigma, max_grad_norm=CLIP, expected_batch_size=BATCH,
            generator=generator,
        )  # fmt: skip
        return wrapped, optimizer, DPLossFastGradientClipping(
            wrapped, optimizer, nn.CrossEntropyLoss(), "mean"
        )  # fmt: skip


class Cohort(Contestant):
    """No privacy, layer rules."""

    def prepare(self) -> None:
        self.stacked = StackedModel(self.model)
        self.params: Params = {
            name: p.detach().expand(self.clients, *p.shape).clone()
            for name, p in self.model.named_parameters()
        }

    def step(self) -> None:
        for start in range(0, self.clients, self.block):
            clients = slice(start, start + self.block)
            params = {name: t[clients] for name, t in self.params.items()}
            self.stacked.tape.weights = params
            x, y = self.x_KB[clients].flatten(0, 1), self.y_KB[clients].flatten()
            losses = F.cross_entropy(self.stacked.forward(x, self.block), y, reduction="sum")
            self.update(params, self.stacked.backward(losses), clients)

    def update(self, params: Params, grads: list[Tensor | None], clients: slice) -> None:
        """Take one block's step, given the gradients of layer outputs."""
        self.stacked.contract_(params, grads, -LR / BATCH)

    def weights(self) -> list[Tensor]:
        return list(self.params.values())


class BookKeeping(Cohort):
    """DP-SGD by layer rules: w -= lr/B (Σ_b min(1, C/‖g_b‖) g_b + σ C z)."""

    def prepare(self) -> None:
        super().prepare()
        self.sources = [keyed(0, 1, k, "dp-sgd") for k in range(self.clients)]

    def update(self, params: Params, grads: list[Tensor | None], clients: slice) -> None:
        squares = self.stacked.square_norms(grads)
        norms = torch.stack(list(squares.values())).sum(0).sqrt()
        factors = (CLIP / (norms + 1e-6)).clamp_max(1)
        self.stacked.contract_(params, grads, -LR / BATCH, factors)
        flat = [rows.view(len(rows), -1) for rows in params.values()]
        sizes = [rows.shape[1] for rows in flat]
        for k, source in enumerate(self.sources[clients]):
            noise = source.normal(sum(sizes)).split(sizes)
            alpha = -LR * self.sigma * CLIP / BATCH
            torch._foreach_add_([rows[k] for rows in flat], list(noise), alpha=alpha)


CONTESTANTS: dict[str, type[Contestant]] = {
    "sequential": Sequential,
    "cohort": Cohort,
    "hooks": Hooks,
    "ghost": Ghost,
    "book-keeping": BookKeeping,
}


def check_same(name: str) -> None:
    """Check that without noise the contestants take the same step, and that it clips."""
    updates = {}
    for label, kind in CONTESTANTS.items():
        contestant = kind(name, sigma=0.0)
        contestant.step()
        start = contestant.model.parameters()
        moved = [(w - s.detach()).flatten(1) for w, s in zip(contestant.weights(), start)]  # noqa: B905
        updates[label] = torch.cat(moved, 1)
    for one, other in (
        ("sequential", "cohort"), ("hooks", "ghost"), ("hooks", "book-keeping"),
    ):  # fmt: skip
        difference = (updates[one] - updates[other]).norm() / updates[one].norm()
        if not difference < 1e-3:  # weights of order 0.1 in float32, moved by 1e-4
            raise RuntimeError(f"{name}: {other} differs from {one} by {difference:.1e}")
    if torch.allclose(updates["cohort"], updates["book-keeping"], rtol=0.1):
        raise RuntimeError(f"{name}: nothing is clipped")


def seconds(name: str, repetitions: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median CPU-seconds of one step, by contestant, and how many are the system's."""
    taken: dict[str, list[float]] = {label: [] for label in CONTESTANTS}
    system: dict[str, list[float]] = {label: [] for label in CONTESTANTS}
    with ExitStack() as stack:
        homes = {label: stack.enter_context(own_process()) for label in CONTESTANTS}
        for _ in range(1 + repetitions):  # the first warms caches up
            for label, home in homes.items():
                user, kernel = home.submit(step_of, name, label).result()
                taken[label].append(user + kernel)
                system[label].append(kernel)
    medians = [{label: statistics.median(v[1:]) for label, v in t.items()} for t in (taken, system)]
    return medians[0], medians[1]


@cache
def contestant_of(name: str, label: str) -> Contestant:
    """Return this process's contestant."""
    return CONTESTANTS[label](name)


def step_of(name: str, label: str) -> tuple[float, float]:
    """Take a step in this process; return the CPU-seconds of its own and of the system."""
    contestant = contestant_of(name, label)
    before = resource.getrusage(resource.RUSAGE_SELF)
    contestant.step()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime


def resident_mb() -> float:
    """Return the memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def memory(name: str, label: str) -> float:
    """Return how many MB three steps of one contestant take at most."""
    contestant = CONTESTANTS[label](name)
    before = peak = resident_mb()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.0005):
            peak = max(peak, resident_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(3):
        contestant.step()
    done.set()
    watcher.join()
    return max(peak, resident_mb()) - before


def own_process() -> ProcessPoolExecutor:
    """Return one fresh copy of this process."""
    # Forked before anything has run here, so that no threads of autograd are lost.
    return ProcessPoolExecutor(1, mp_context=get_context("fork"))


def in_own_process(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Return `measure(*arguments)`, called in a fresh copy of this process."""
    with own_process() as pool:
        return pool.submit(measure, *arguments).result()


def page(
    times: dict[str, tuple[dict[str, float], dict[str, float]]],
    peaks: dict[str, dict[str, float]],
    repetitions: int,
) -> str:
    """Return the results as Markdown."""
    lines = [
        "# What clipping every sample's gradient costs", "",
        "    python tests/bench/bench_dp.py [repetitions]", "",
        "One DP-SGD step of K clients with noise, batches of 32, float32, one thread; CPU time,",
        f"medians of {repetitions}, the contestants in turn, each in a process. Opacus 1.6 trains",
        "one client after another; *cohort* and *book-keeping* use layer rules over blocks of 10",
        "(MLP) or 5 (CNN) clients. Without noise, all private contestants take the same step, as",
        f"is checked beforehand. {platform.machine()}, {os.cpu_count()} cores, load average"
        f" {os.getloadavg()[1]:.0f}, PyTorch {torch.__version__}.", "",
        "| CPU-ms per step | K | sequential | cohort | hooks | ghost | book-keeping |"
        " hooks / b.-k. | ghost / b.-k. | b.-k. / sequential |",
        "|" + " --- |" * 10,
    ]  # fmt: skip
    for name, (t, _) in times.items():
        own = t["book-keeping"]
        cells = [f"{t[label] * 1e3:.1f}" for label in CONTESTANTS]
        ratios = [t["hooks"] / own, t["ghost"] / own, own / t["sequential"]]
        row = [name, str(MODELS[name][2]), *cells, *(f"{r:.2f}" for r in ratios)]
        lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        "The first two contestants give no privacy. Of *hooks*' time, "
        + " and ".join(f"{system['hooks'] * 1e3:.0f} ms" for _, system in times.values())
        + " are the system's, for fresh",
        "memory.", "",
        "Peak memory on top of models and data, MB:", "",
        "| MB | K | " + " | ".join(CONTESTANTS) + " |", "|" + " --- |" * (2 + len(CONTESTANTS)),
    ]  # fmt: skip
    for name, mb in peaks.items():
        cells = [f"{mb[label]:.0f}" for label in CONTESTANTS]
        lines.append("| " + " | ".join([name, str(MODELS[name][2]), *cells]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write the page."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Full backward hook is firing")
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    for name in TIMED:
        in_own_process(check_same, name)
    times = {name: seconds(name, repetitions) for name in TIMED}
    peaks = {
        name: {label: in_own_process(memory, name, label) for label in CONTESTANTS}
        for name in MODELS
    }
    text = page(times, peaks, repetitions)
    print(text)
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
