"""Models as scenario parts: each builds a `torch.nn.Module` for a data set."""

from fedsim.models.base import ModelPart

__all__ = ["ModelPart"]
