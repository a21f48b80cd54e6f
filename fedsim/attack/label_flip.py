"""Label flip: attackers train honestly on wrong targets, class y taken for C − 1 − y.

Fang et al. 2020 (arXiv:1911.11815), section 5.1; Tolpegin et al. 2020 (arXiv:2007.08432) flip
chosen pairs of classes. Attackers' held-out samples keep their true targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedsim.attack.base import Attackers, SomeMalicious
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LabelFlip(SomeMalicious):
    """Training targets in reverse order of the classes."""

    def arm(
        self, clients: np.ndarray, dataset: Dataset, client_index: Callable[[int], int]
    ) -> Attackers:
        if dataset.task != "classification":
            raise ConfigError(
                f"share: data set '{dataset.name}' is a {dataset.task}; label_flip needs classes; "
                "use another attack, e.g. attack=sign_flip"
            )
        if dataset.bags is not None:
            raise ConfigError(
                f"share: data set '{dataset.name}' has bags, whose class shares label_flip can not "
                "flip; use another attack, e.g. attack=sign_flip"
            )
        liars, last = set(clients.tolist()), dataset.num_outputs - 1

        def targets(client: int, y: Tensor) -> Tensor:
            return last - y if client in liars else y

        return Attackers(clients=clients, targets=targets)
