"""Similarity to private data, by sums of features (Backurs et al. 2024, arXiv:2403.08917).

    server:    the summary's public parameters
    client k:  S_k = Σ_{x of k} φ(x)                                  (one round)
    server:    S = Σ_k S_k + noise;  mean f(x, y) ≈ (⟨S, ψ(y)⟩ + n·offset(y)) / n   for any y

or, with `classify`, one such sum per class: label(y) = the class of the largest average similarity.
Sums are integers, so the federated release is the central one, to the bit, given the same noise.
What is released, errors, sensitivities: `privacy.similarity`; noise: `privacy=similarity_noise`.

similarity: l1, l2, l2_squared, lp       distances; small is similar
            gaussian, exponential, laplace, rational_l2, rational_l2_squared, rational_l1   kernels
            inner_product
method:     auto          l1, lp of odd p: trees; l2: trees behind a projection; l2_squared, lp of
                          even p, inner products: moments; kernels: random features
            gaussian_process, lsq, bernstein     other ways to a kernel

Null sizes are planned (`privacy.similarity.planning`), from n, ε, the law of noise and a target.

Shapes: N records, Q queries, D inputs, F numbers of a sum.

Differs from the paper: see the summaries. Federated.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from fedsim.client.whole import Cohort, Worked
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.query import Findings, QueryHalf, Table
from fedsim.records import Params, Replies
from fedsim.strategy import Round
from privacy.similarity.base import Summary
from privacy.similarity.bernstein import Bernstein
from privacy.similarity.classes import PerClass, labelled
from privacy.similarity.exact import Kernel
from privacy.similarity.gaussian_process import GaussianProcess
from privacy.similarity.kinds import from_json
from privacy.similarity.lsq import LSQ
from privacy.similarity.moments import EvenPower, InnerProduct, SquaredDistance
from privacy.similarity.noise import Law
from privacy.similarity.planning import VARIANCE, feature_count, projection_size, tree_depth
from privacy.similarity.projection import Projected, l2_bound
from privacy.similarity.random_features import RandomFeatures
from privacy.similarity.released import COUNT, NOISE, PUBLIC_BYTES, SUMS_NAME, Released, no_privacy
from privacy.similarity.tree import Tree
from privacy.similarity_noise import Adding

log = logging.getLogger(__name__)

PLAN_DELTA = 1e-5
ASKED = 300
"""How many test samples are asked about, to score a release."""

SHOWN = 8
"""How many of them a report shows."""


@dataclass(frozen=True)
class Sums(QueryHalf):
    """Adds up features of a client's records."""

    strategy: KernelDensity

    def run(self, cohort: Cohort) -> Worked:
        summary = from_json(json.loads(bytes(cohort.start[PUBLIC_BYTES].cpu().tolist())))
        rows = []
        for k, client in enumerate(cohort.clients.tolist()):
            x_ND = cohort.inputs(k).flatten(1)
            if isinstance(summary, PerClass):
                x_ND = labelled(x_ND, cohort.targets(k))
            sums_F = summary.sums(x_ND)
            rows.append(self.strategy.noise.of_client(summary, sums_F, cohort.server_round, client))
        return Worked(arrays={}, upload={SUMS_NAME: torch.stack(rows)})


@dataclass(kw_only=True)
class KernelDensity(Adding):
    """Similarity queries, and classification by them.

    Attributes:
        similarity, method: See this file's header.
        bandwidth: σ of a kernel.
        power: p of `lp`.
        low, high: Range of every coordinate: of trees, `lsq` and `bernstein`.
        radius: R of the ball that records lie in (of each coordinate, for even p); records beyond
            are pulled in.
        bound: Coordinates of records for random features and projections are within ±bound.
        features: I; null for the planned number.
        pairs: Whether features are pairs of a cosine and a sine.
        terms: Of the quadrature of rational kernels; 0 for the mixture.
        depth: h of a tree; null for the planned one.
        project: k of a projection in front: of `l2` (null for 100), or Johnson and Lindenstrauss's
            (null for none).
        distortion: With `project` null: Johnson and Lindenstrauss's projection to as many
            dimensions as keep squared distances within 1 ± this (a deviation); null for none.
        points: With `gaussian_process`: the points that will be asked about.
        order: ρ of `lsq`.
        degree, iterations: k and h of `bernstein`.
        classify: Whether classes are told apart.
        rule: With `classify`: `similarity`, or `mean` for the nearest class mean (inner products).
        plan_epsilon, plan_noise: What sizes are planned for.
        variance: v, that of one feature's answer, as far as it is known.
        target: The error of a mean that is good enough; null for the least.
    """

    similarity: Literal[
        "l1", "l2", "l2_squared", "lp", "inner_product",
        "gaussian", "exponential", "laplace", "rational_l2", "rational_l2_squared", "rational_l1",
    ] = "gaussian"  # fmt: skip
    method: Literal["auto", "gaussian_process", "lsq", "bernstein"] = "auto"
    bandwidth: Annotated[float, Range(gt=0)] = 1.0
    power: Annotated[int, Range(ge=1, le=8)] = 3
    low: float = 0.0
    high: float = 1.0
    radius: Annotated[float, Range(gt=0)] = 1.0
    bound: Annotated[float, Range(gt=0)] = 32.0
    features: Annotated[int, Range(ge=2, le=2**20)] | None = None
    pairs: bool = True
    terms: Annotated[int, Range(ge=0, le=200)] = 0
    depth: Annotated[int, Range(ge=1, le=24)] | None = None
    project: Annotated[int, Range(ge=1)] | None = None
    distortion: Annotated[float, Range(gt=0, lt=1)] | None = None
    points: Sequence[Sequence[float]] | None = None
    order: Annotated[int, Range(ge=1, le=12)] = 4
    degree: Annotated[int, Range(ge=1, le=200)] = 8
    iterations: Annotated[int, Range(ge=1, le=10)] = 2
    classify: bool = False
    rule: Literal["similarity", "mean"] = "similarity"
    plan_epsilon: Annotated[float, Range(gt=0)] = 1.0
    plan_noise: Law = "gaussian"
    variance: Annotated[float, Range(gt=0, le=1.5)] = VARIANCE
    target: Annotated[float, Range(gt=0)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._summary: Summary | None = None
        self._sizes_N = np.zeros(0, np.int64)

    @property
    def client_half(self) -> Sums:
        return Sums(self)

    @property
    def sketch(self) -> Summary:
        """See `Adding.sketch`."""
        if self._summary is None:
            raise ConfigError("strategy: kernel_density knows its data in a fedsim simulation only")
        return self._summary

    def rounds(self) -> int:
        return 1

    # --- the summary -----------------------------------------------------------------------------

    def begin(self, dataset: Dataset, sizes_N: np.ndarray) -> Params:
        if not dataset.train_x.is_floating_point() or dataset.bags is not None:
            raise ConfigError(
                f"data: {dataset.name} is of {dataset.task} with inputs of "
                f"{dataset.train_x.dtype}; similarity is of vectors, such as data=digits"
            )
        dimension = int(np.prod(dataset.input_shape))
        summary = self.plan(dimension, max(1, int(sizes_N.sum())))
        if self.classify:
            if dataset.task != "classification" or dataset.train_y.dim() != 1:
                raise ConfigError(
                    f"classify: {dataset.name} has no classes; set strategy.classify=false"
                )
            summary = PerClass(
                dimension=dimension + 1,
                inner=summary,
                classes=dataset.num_outputs,
                rule=self.rule,
            )
        self._summary, self._sizes_N = summary, sizes_N.astype(np.int64)
        return {
            SUMS_NAME: torch.zeros(summary.size, dtype=torch.int64),
            COUNT: torch.zeros((), dtype=torch.int64),
            NOISE: torch.zeros(2, dtype=torch.float64),
            PUBLIC_BYTES: self._public(),
        }

    def _public(self) -> Tensor:
        text = json.dumps(self.sketch.to_json()).encode()
        return torch.tensor(list(text), dtype=torch.uint8)

    def plan(self, dimension: int, records: int) -> Summary:
        """Return the summary for n records of D inputs, without classes."""
        d, kind = dimension, self.similarity
        if self.method != "auto":
            return self._other(d)
        if kind == "l1" or (kind == "lp" and self.power % 2):
            return self._tree(d, records, self.low, self.high, 1 if kind == "l1" else self.power)
        if kind == "l2":
            k = self.project or 100
            reach = l2_bound(self.radius, k, records)
            inner = self._tree(k, records, -reach, reach, 1)
            return self._projected(d, inner, "l2")
        if kind == "lp":
            return EvenPower(dimension=d, radius=self.radius, power=self.power)
        to = self.project or (projection_size(self.distortion) if self.distortion else None)
        found = self._of_vectors(to or d, records)
        if to is None:
            return found
        if kind in ("laplace", "rational_l1"):
            raise ConfigError(
                f"project: {to} dimensions keep L2 distances, and similarity={kind} is of L1 "
                "distances; set strategy.project=null and strategy.distortion=null"
            )
        return self._projected(d, found, "jl")

    def _of_vectors(self, d: int, records: int) -> Summary:
        """Return what a projection may go in front of."""
        if self.similarity == "l2_squared":
            return SquaredDistance(dimension=d, radius=self.radius)
        if self.similarity == "inner_product":
            return InnerProduct(dimension=d, radius=self.radius)
        return RandomFeatures(
            dimension=d,
            kernel=cast(Kernel, self.similarity),
            bandwidth=self.bandwidth,
            count=self.features or self._planned(records),
            pairs=self.pairs,
            bound=self.bound,
            terms=self.terms,
        )

    def _planned(self, records: int) -> int:
        return feature_count(
            records=records,
            law=self.plan_noise,
            epsilon=self.plan_epsilon,
            delta=PLAN_DELTA,
            relation="replace_one",
            pairs=self.pairs,
            variance=self.variance,
            target=self.target,
        )

    def _tree(self, d: int, records: int, low: float, high: float, power: int) -> Tree:
        depth = self.depth or tree_depth(
            dimension=d,
            records=records,
            law=self.plan_noise,
            epsilon=self.plan_epsilon,
            delta=PLAN_DELTA,
            relation="replace_one",
        )
        return Tree(dimension=d, depth=depth, low=low, high=high, power=power)

    def _projected(self, d: int, inner: Summary, law: Literal["l2", "jl"]) -> Projected:
        return Projected(dimension=d, inner=inner, law=law, bound=self.bound)

    def _other(self, d: int) -> Summary:
        if self.similarity in ("l1", "l2", "l2_squared", "lp", "inner_product"):
            raise ConfigError(
                f"method: {self.method} is for kernels, and similarity is {self.similarity}; use "
                "strategy.method=auto, or strategy.similarity=gaussian"
            )
        kernel = cast(Kernel, self.similarity)
        if self.method == "gaussian_process":
            if self.points is None:
                raise ConfigError(
                    "points: null, but method=gaussian_process answers at fixed points only; set "
                    "strategy.points=[[...], ...]"
                )
            return GaussianProcess(
                dimension=d, points=self.points, kernel=kernel, bandwidth=self.bandwidth
            )
        if self.method == "bernstein":
            return Bernstein(
                dimension=d,
                kernel=kernel,
                bandwidth=self.bandwidth,
                degree=self.degree,
                iterations=self.iterations,
                low=self.low,
                high=self.high,
            )
        if kernel != "gaussian":
            raise ConfigError(f"method: lsq is for similarity=gaussian, and this is {kernel}")
        return LSQ(
            dimension=d, bandwidth=self.bandwidth, order=self.order, low=self.low, high=self.high
        )

    # --- the round -------------------------------------------------------------------------------

    def question(self, context: Round) -> Params:
        return {PUBLIC_BYTES: self._public()}

    def upload_like(self, context: Round) -> Params:
        return {SUMS_NAME: torch.zeros(self.sketch.size, dtype=torch.int64)}

    def aggregate(self, context: Round, replies: Replies) -> Params:
        total_F = torch.zeros_like(context.params[SUMS_NAME])
        members = []
        for chunk in replies.chunks():
            total_F += chunk.client_arrays[SUMS_NAME].sum(0).to(total_F.device)
            members.append(chunk.client_index)
        who = np.concatenate([np.arange(0), *members]).astype(np.int64)
        count = int(self._sizes_N[who].sum())
        if len(who) < max(1, self.noise.min_clients) or not count:
            log.warning(
                "kernel_density: %d clients replied with %d records, and it takes %d; nothing is "
                "released",
                len(who),
                count,
                self.noise.min_clients,
            )
            return context.params
        noise = self.noise.released(len(who))
        return {
            **context.params,
            SUMS_NAME: self.noise.of_server(self.sketch, total_F, context.server_round),
            COUNT: torch.tensor(count).to(total_F.device),
            NOISE: torch.tensor(
                [0.0, 0.0] if noise is None else [1 + (noise.law == "gaussian"), noise.scale],
                dtype=torch.float64,
            ).to(total_F.device),
        }

    # --- what came of it -------------------------------------------------------------------------

    def _asked(self, dataset: Dataset) -> Tensor:
        inner = self.sketch.inner if isinstance(self.sketch, PerClass) else self.sketch
        if isinstance(inner, GaussianProcess):
            return torch.tensor(inner.points, dtype=torch.float64)
        return dataset.test_x[:ASKED].flatten(1)

    def _truth(self, released: Released, dataset: Dataset) -> tuple[Tensor, Tensor]:
        """Return the queries and the exact means of all train samples."""
        y_QD, x_ND = self._asked(dataset), dataset.train_x.flatten(1)
        if isinstance(released.summary, PerClass):
            counts_C = torch.bincount(dataset.train_y, minlength=released.summary.classes)
            total_QC = released.summary.exact(labelled(x_ND, dataset.train_y), y_QD)
            return y_QD, total_QC / counts_C.clamp(min=1)
        return y_QD, released.summary.exact(x_ND, y_QD) / len(x_ND)

    def score(self, release: Params, dataset: Dataset) -> dict[str, float]:
        if not int(release[COUNT]):
            return {}
        released = Released.of_run(release, no_privacy())
        y_QD, truth = self._truth(released, dataset)
        answer, error = released.query(y_QD)
        away = (answer - truth).abs()
        found = {
            "relative-error": float((away / truth.abs().clamp(min=1e-12)).mean()),
            "rmse": float(away.square().mean().sqrt()),
            "stated-error": float(error.square().mean().sqrt()),
        }
        if isinstance(released.summary, PerClass):
            guess = released.labels(dataset.test_x.flatten(1))
            found["accuracy"] = float((guess == dataset.test_y).double().mean())
        return found

    def findings(self, release: Params, dataset: Dataset) -> Findings:
        if not int(release[COUNT]):
            return Findings()
        released = Released.of_run(release, no_privacy())
        y_QD, truth = self._truth(released, dataset)
        answer, error = released.query(y_QD[:SHOWN])
        head: list[str] = ["query", "answer", "standard error", "exact (simulation only)"]
        rows: list[list[str]] = []
        for q in range(min(SHOWN, len(y_QD))):
            values: list[Any] = [answer[q], error[q], truth[q]]
            if isinstance(released.summary, PerClass):  # of the query's own class
                own = int(dataset.test_y[q])
                values = [value[own] for value in values]
            rows.append([str(q), *(f"{float(value):.4g}" for value in values)])
        title = f"Mean {self.similarity.replace('_', ' ')} to {int(release[COUNT])} records"
        if self.classify:
            title += ", of each query's own class"
        return Findings(tables=[Table(title=title, head=head, rows=rows)])
