"""A model that starts from the weights of a file, such as those that an earlier run left behind.

A run leaves its last model in its folder as `model.safetensors`, so fine-tuning is two commands:

    fedsim run scenario=polarity_pretrain      # leaves results/runs/polarity_pretrain/...
    fedsim run scenario=polarity               # model.file: results/runs/polarity_pretrain

The weights are public as far as this run's privacy statement goes: it speaks of the data of this
run alone, given where it started. That is right only if the file was made without these data, such
as from their public part (`data.split=public`, `data.roles=public`). What the file's own training
revealed of its own data is for the statement of that run to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError, DataError
from fedsim.files import sha256
from fedsim.models.base import ModelPart
from fedsim.models.structure import state_of
from fedsim.models.text_classifier import TextClassifier

_MODEL = "model.safetensors"
_SHOWN = 6
"""How many names an error lists."""


@dataclass(frozen=True, kw_only=True)
class Pretrained(ModelPart):
    """Another model part, with its initial weights replaced by those of a file, by name.

    Every tensor of the model must be in the file, in its shape, and none beside.

    Attributes:
        file: A safetensors file; or the folder of a run; or the folder of a scenario's runs, such
            as `results/runs/NAME`, for the newest of them that finished.
        sha256: Refuse any other file than the one with this digest; null: take what is there.
        fresh: Layers, by the beginning of their tensors' names, that keep the initial weights of
            the base, e.g. `[head]` where the classes differ. The file may lack them.
        base: The model part.
    """

    file: str | None = None
    sha256: str | None = None
    fresh: list[str] = field(default_factory=list)
    base: ModelPart = field(default_factory=TextClassifier)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.base, ModelPart):
            raise ConfigError(
                f"base: {self.base!r} is no model part; give one as in scenarios/model, with a "
                "_target_ of its own"
            )

    def build(self, dataset: Dataset) -> nn.Module:
        """Make the base and load the weights.

        Raises:
            ConfigError: The base does not fit the data; no file is named; a name is missing in the
                file or in the model, or a shape differs.
            DataError: The file is not there, not readable, or not the one of the digest.
        """
        model = self.base.build(dataset)
        path = _find(self.file)
        tensors = _read(path, self.sha256)
        wanted = state_of(model)
        for layer in self.fresh:
            if not any(_within(name, layer) for name in wanted):
                raise ConfigError(
                    f"model: fresh={layer!r} begins the name of no tensor of the model; its names "
                    f"are {_listed(wanted)}"
                )
        _check(path, self._loaded(wanted), self._loaded(tensors))
        for name, tensor in self._loaded(wanted).items():
            # `data`, not `copy_`: the file's precision may be higher than the model's before the
            # simulation has moved it to the scenario's.
            tensor.data = tensors[name]
        return model

    def _loaded(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all but the fresh ones."""
        return {
            name: tensor
            for name, tensor in tensors.items()
            if not any(_within(name, layer) for layer in self.fresh)
        }


def _within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def _check(path: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    missing = [name for name in wanted if name not in found]
    odd = [name for name in found if name not in wanted]
    apart = [
        f"{name} {list(found[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    problems = [
        f"{what}: {_listed(names)}"
        for what, names in (("missing", missing), ("unknown", odd), ("other shapes", apart))
        if names
    ]
    if problems:
        raise ConfigError(
            f"model: '{path}' holds another model than the base of Pretrained builds "
            f"({'; '.join(problems)}); give the base the fields of the run that wrote the file, or "
            "name layers that are to start anew, e.g. model.fresh=[head]"
        )


def _listed(names: Mapping[str, Tensor] | list[str]) -> str:
    shown = [*names][:_SHOWN]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _find(file: str | None) -> Path:
    if file is None:
        raise ConfigError(
            "model: Pretrained starts from the weights of a file, and none is named; give a "
            "safetensors file or the folder of a run that finished, e.g. "
            "model.file=results/runs/polarity_pretrain (model.base.file=... within LoRA)"
        )
    path = Path(file).expanduser()
    if path.is_dir():
        if (path / _MODEL).is_file():
            return path / _MODEL
        finished = sorted(run for run in path.iterdir() if _is_finished(run))
        if not finished:
            raise DataError(
                f"model: no run in '{path}' has finished (--smoke does not count); run it first, "
                "or name another file"
            )
        return finished[-1] / _MODEL
    if not path.is_file():
        raise DataError(
            f"model: the file '{file}' of weights to start from is not there; make it with the run "
            f"that is to come first, e.g. fedsim run scenario={path.name}, or name another file"
        )
    return path


def _is_finished(run: Path) -> bool:
    """Return whether a folder is that of a whole run, by the summary that a run leaves."""
    try:
        summary = json.loads((run / "summary.json").read_text())
        return summary["status"] == "finished" and not summary["smoke"] and (run / _MODEL).is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False  # not a run, or one that goes on


def _read(path: Path, digest: str | None) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
        tensors: dict[str, Tensor] = load_tensors(data)
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"model: '{path}' cannot be read as safetensors ({error})") from error
    if digest is not None and sha256(data) != digest.lower():
        raise DataError(
            f"model: '{path}' is not the file of sha256={digest}; its digest is {sha256(data)}"
        )
    return tensors
