"""Label DP: each training label is randomised once, before anything is learnt from it.

    P[ỹ = y] = e^ε / (e^ε + k − 1),   P[ỹ = any other] = 1 / (e^ε + k − 1)      k classes

k-ary randomised response (Kairouz et al. 2014, arXiv:1407.1338): the ratio of any output's
probabilities under two labels is at most e^ε, so (ε, 0)-DP for one label; inputs are not hidden.
All training, in any number of rounds and by any strategy, is post-processing of the randomised
labels: they are drawn once for each sample, from a key of the client alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fedsim.client.runtime import ClientRuntime
from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection import Line, PrivacyPart, Setting, Statement
from privacy.accounted import Accounted, check_one_holder
from privacy.events import Event, PureDP
from privacy.normal import KEYED_STATEMENT, keyed
from privacy.randomised_response import RandomisedResponse


@dataclass(frozen=True, kw_only=True)
class LabelDP(PrivacyPart):
    """Randomised response on the labels that clients train on.

    Attributes:
        epsilon: Of each label; δ is 0.
    """

    releases_on_client = True

    epsilon: Annotated[float, Range(gt=0, le=16)] = 1.0

    def bind(self, setting: Setting) -> LabelDPProtection:
        """See `PrivacyPart.bind`."""
        data = setting.dataset
        if data.bags is not None:
            raise ConfigError(
                "privacy=label_dp: a client with bags knows no sample's own class, so there is "
                "none to randomise; use privacy=aggregate_labels"
            )
        if data.task != "classification" or data.train_y.dim() != 1:
            raise ConfigError(
                "privacy=label_dp: randomised response is for one class per sample, and "
                f"{data.name} has none; use data of a classification task, such as data=digits"
            )
        if setting.deployed:
            raise ConfigError(
                "privacy=label_dp: devices would have to keep their randomised labels between "
                "processes, which they do not do yet; use a simulating engine, such as "
                "engine=cohort"
            )
        claim = Statement(
            mechanism=f"randomised response on each training label (k = {data.num_outputs})",
            delta=0.0,
            unit="label",
            relation="replace_one",
            trust="none but each client itself; inputs are not protected",
            noise=KEYED_STATEMENT,
            notes=("Scores of clients on their own held-out samples use the true labels",),
        )
        return LabelDPProtection(self, claim, setting, data.num_outputs)


class LabelDPProtection(Accounted):
    """One run of `LabelDP`."""

    def __init__(self, part: LabelDP, claim: Statement, setting: Setting, num_classes: int) -> None:
        super().__init__(
            claim=claim,
            sampling="each label is released once, before the first round",
            events=[Event(mechanism=PureDP(epsilon=part.epsilon))],
            setting=setting,
            planned=1,
            budget=None,
            per_client=False,
        )
        self.seed = setting.seed
        self.channel = RandomisedResponse(kinds=num_classes, epsilon=part.epsilon)

    def check(self, runtime: ClientRuntime) -> None:
        """See `Protection.check`: each label must be released by one client only."""
        super().check(runtime)
        check_one_holder(runtime, "labels")

    def releases(self, server_round: int, clients: np.ndarray) -> Sequence[Line]:
        """See `Protection.releases`: all labels at once, before the first round."""
        return super().releases(1, clients) if server_round == 0 else ()

    def targets(self, client: int, y: Tensor) -> Tensor:
        """See `Protection.targets`."""
        reports = self.channel.privatise(y.cpu().numpy(), keyed(self.seed, 0, client, "label-dp"))
        return torch.from_numpy(reports).to(y.device, y.dtype)
