"""What is done with classifiers that differ from user to user: trained on labels, and scored.

    a user:   w̃_j = Adam or SGD from w_j on the mean cross-entropy of what it knows the labels of

A model is that of the scenario, at what parts of it a user is sent: of an autoencoder with a head,
the decoder takes no part in a classification, and is not sent. K users' models are trained side by
side, so that no layer may hold what changes as it is used (`plain`).

Shapes: K users, `[K, ...]` one row for each; B samples of a batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.client.half import ClientHalf
from fedsim.client.objective import padded_scores
from fedsim.client.sequential import TRAIN_LOSS
from fedsim.client.whole import Cohort, Worked
from fedsim.errors import ConfigError
from fedsim.models.autoencoder import CodedClassifier
from fedsim.models.dropout import KeyedDropout
from fedsim.records import Params
from fedsim.stacked_fit import IGNORED, Optimiser, fit
from fedsim.strategy import FedsimStrategy

DECODER = "decoder."


def classifier_of(strategy: FedsimStrategy, params: Params) -> Params:
    """Return the tensors of a model that a classification depends on, and that are trained.

    Raises:
        ConfigError: Users' models cannot be trained side by side.
    """
    trained = strategy.trained(params)
    model = None if strategy.federation is None else strategy.federation.model
    if model is None:
        return trained
    if isinstance(plain(model), CodedClassifier):
        return {name: t for name, t in trained.items() if not name.startswith(DECODER)}
    return trained


def plain(model: nn.Module) -> nn.Module:
    """Return a model that is a function of its tensors and its inputs alone.

    Raises:
        ConfigError: It has dropout, or statistics of a running mean.
    """
    for layer in model.modules():
        drops = isinstance(layer, KeyedDropout) and layer.p > 0
        if drops or getattr(layer, "running_mean", None) is not None:
            raise ConfigError(
                f"model: the strategy trains users' classifiers side by side, which a layer "
                f"{type(layer).__name__} does not allow; use a model without dropout and without "
                "running statistics, e.g. model=autoencoder or model=mlp"
            )
    return model


def log_probabilities(model: nn.Module, params: Params, x: Tensor) -> Tensor:
    """Return those of one user's classifier, `[B, C]`; what is not given is the model's own."""
    return F.log_softmax(functional_call(model, params, (x,)), -1)


def losses(model: nn.Module, params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Return each sample's cross-entropy, `[B]`."""
    return F.nll_loss(log_probabilities(model, params, x), y, reduction="none")


@dataclass(frozen=True)
class OwnClassifiers(ClientHalf):
    """Users who are each sent a classifier, as `client-arrays`, and train it on their labels.

    Attributes:
        optimiser: Of its steps.
    """

    optimiser: Optimiser

    @property
    def ignored_work(self) -> tuple[str, ...]:  # type: ignore[override]
        return IGNORED[self.optimiser]

    def run(self, cohort: Cohort) -> Worked:
        model = cohort.model.train()
        fitted, loss_K = fit(
            cohort.arrays,
            (((batch.x, batch.y), true_KB) for batch, true_KB in cohort.steps()),
            lambda params, x, y: losses(model, params, x, y),
            lr=cohort.lr,
            optimiser=self.optimiser,
            momentum=cohort.momentum,
            weight_decay=cohort.weight_decay,
        )
        return Worked(arrays=fitted, metrics={TRAIN_LOSS: loss_K})

    @torch.no_grad()
    def score(self, cohort: Cohort) -> dict[str, Tensor]:
        model = cohort.model.eval()
        held, true_KB = cohort.stacked(held_out=True)
        log_KBC = torch.vmap(lambda p, x: log_probabilities(model, p, x))(cohort.arrays, held.x)
        return padded_scores(log_KBC, held.y, true_KB)
