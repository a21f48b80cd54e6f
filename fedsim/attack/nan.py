"""NaN: attackers send models in which every weight is NaN; admission rejects these replies.

What a client with a broken accelerator may send as well. The attackers' share of the replies is
lost, and nothing else should be.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.attack.update import UpdateAttack


@dataclass(frozen=True, kw_only=True)
class NaN(UpdateAttack):
    """Updates that are no numbers."""

    def forge(self, updates: Tensor, num_replies: int) -> Tensor:
        return torch.full_like(updates, torch.nan)
