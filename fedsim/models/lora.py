"""Low-rank adaptation (LoRA; Hu et al., arXiv:2106.09685, section 4.1): fine-tune few parameters.

    W x   becomes   W x + (alpha / rank) · B A x      W frozen; A [rank, in], B [out, rank] trained

A starts as PyTorch starts a linear layer, B at zero, so that the adapted model begins as its base.
Everything of the base is frozen for good: no gradient, noise or weight decay moves it on a client,
and a mean of equal tensors leaves it as it is on the server.

A and B are ordinary `nn.Linear` modules without bias beside the frozen one, so whatever knows
linear layers knows them too. Under differential privacy the noise has then as many dimensions as A
and B, not as W (Yu et al., arXiv:2110.06500; Li et al., arXiv:2110.05679).

Differs from the paper: A starts uniform in ±1/sqrt(in), as in the authors' code, not normal;
`train` may name whole layers beside the adapters, such as a new output layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor, nn

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError, did_you_mean
from fedsim.models.base import ModelPart
from fedsim.models.pretrained import Pretrained
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class LoRA(ModelPart):
    """Another model part, frozen, with adapters beside some of its linear layers.

    Attributes:
        rank: Rows of A.
        alpha: Scale of B A x, over `rank`.
        targets: Which linear layers, by their name or the end of their path: `query_key_value`
            means that of every block, `blocks.0.mlp_in` that of the first one.
        train: Further layers, named in the same way, that stay trainable as a whole.
        base: The model part that is adapted: by default one whose weights come from a file, since
            what is frozen should have learned something.
    """

    rank: Annotated[int, Range(ge=1)] = 4
    alpha: Annotated[float, Range(gt=0)] = 8.0
    targets: list[str] = field(default_factory=lambda: ["query_key_value", "mlp_in"])
    train: list[str] = field(default_factory=list)
    base: ModelPart = field(default_factory=Pretrained)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.base, ModelPart):
            raise ConfigError(
                f"base: {self.base!r} is no model part; give one as in scenarios/model, with a "
                "_target_ of its own"
            )
        if not self.targets:
            raise ConfigError(
                "targets: [] adapts no layer; name one or more, e.g. [query_key_value]"
            )

    def build(self, dataset: Dataset) -> nn.Module:
        """Make the base and adapt it; its inputs and outputs stay as they are.

        Raises:
            ConfigError: The base does not fit the data, or a name is of no such layer.
        """
        model = self.base.build(dataset)
        layers = dict(model.named_modules())
        targets = [path for name in self.targets for path in _found("targets", name, layers, True)]
        trained = [path for name in self.train for path in _found("train", name, layers, False)]
        model.requires_grad_(False)
        for path in trained:
            layers[path].requires_grad_(True)
        for path in dict.fromkeys(targets):
            layer = layers[path]
            if not isinstance(layer, nn.Linear):  # `_found` has seen to it
                raise TypeError(path)
            if any(parameter.requires_grad for parameter in layer.parameters()):
                raise ConfigError(
                    f"train: layer '{path}' is adapted already; take it out of model.train, or out "
                    "of model.targets"
                )
            adapted = Adapted(layer, self.rank, self.alpha / self.rank)
            if not path:
                return adapted
            model.set_submodule(path, adapted)
        return model


class Adapted(nn.Module):
    """A frozen linear layer and its adapter.

    Args:
        layer: W and its bias.
        rank: Rows of A.
        scale: Of B A x.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.scale = scale
        self.down = nn.Linear(layer.in_features, rank, bias=False, **like)
        self.up = nn.Linear(rank, layer.out_features, bias=False, **like)
        self.base = layer
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., in]` to `[..., out]`."""
        # The base last: what the model's last linear layer is given is its representation
        # (`ClientRuntime.features`), and that of an adapter would be of `rank` values.
        delta: Tensor = self.scale * self.up(self.down(x))
        y: Tensor = self.base(x) + delta
        return y

    def extra_repr(self) -> str:
        """Return what `print(model)` shows between the brackets."""
        return f"scale={self.scale}"


def _found(key: str, name: str, layers: dict[str, nn.Module], linear: bool) -> list[str]:
    """Return the paths of the layers that a name means.

    Raises:
        ConfigError: There are none.
    """
    able = {
        path: layer
        for path, layer in layers.items()
        if (isinstance(layer, nn.Linear) if linear else next(layer.parameters(), None) is not None)
    }
    found = [path for path in able if path == name or path.endswith(f".{name}")]
    if not found:
        what = "linear layer" if linear else "layer with parameters"
        ends = list(dict.fromkeys(path.rpartition(".")[2] for path in able if path))
        raise ConfigError(
            f"{key}: {name!r} is no {what} of the base model; allowed: {', '.join(ends)}, or the "
            f"end of a path such as '{next(reversed(able))}'{did_you_mean(name, ends)}"
        )
    return found
