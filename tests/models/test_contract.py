"""What every model part must do, over every YAML of the model group."""

import dataclasses
import importlib
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from fedsim.models.base import ModelPart
from fedsim.models.check import check_model
from fedsim.models.dropout import install
from fedsim.models.text_classifier import TextClassifier

FOLDER = Path(__file__).parents[2] / "scenarios" / "model"
OF_STRATEGIES = {"none", "autoencoder"}
"""What only some strategies can use; tests/test_query.py and tests/strategies/test_semipfl.py."""
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.stem not in OF_STRATEGIES)
LEAVES = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.Embedding)
SHAPES = {"cnn_svhn": (3, 32, 32), "cnn_cifar10": (3, 32, 32), "cnn_cifar100": (3, 32, 32)}
OUTPUTS = {"cnn_cifar100": 100}
PARAMETERS = {
    "cnn": 27_370,  # 1x8x8: 320 + 9,248 + 129 * 128 + 1,290
    "cnn_cifar10": 551_786,
    "cnn_cifar100": 1_216_260,
    "cnn_svhn": 273_706,
    "linear": 650,
    "mlp": 15_010,
    "resnet": 78_042 - 2 * 16 * 9,  # one input channel for three
    "transformer": 417_601,
    "text_classifier": 56_970,  # 97 * 64 embeddings, 49,984 of a block, 128, 65 * 10 of the head
    "pretrained": 56_970,
    "lora": 56_970 + 4 * (64 + 192) + 4 * (64 + 256),
}


TOKENS = {"transformer", "text_classifier", "pretrained", "lora"}


def load(file: Path) -> ModelPart:
    return made(yaml.safe_load(file.read_text()))


def made(keys: dict) -> ModelPart:
    """Make a part and those within it."""
    module, name = keys.pop("_target_").rsplit(".", 1)
    inner = {key: made(value) for key, value in keys.items() if isinstance(value, dict)}
    return getattr(importlib.import_module(module), name)(**{**keys, **inner})


def started(part: ModelPart, path: Path) -> ModelPart:
    """Name the file that a part within this one starts from, wherever it stands."""
    if hasattr(part, "file"):
        return dataclasses.replace(part, file=str(path))
    return (
        dataclasses.replace(part, base=started(part.base, path)) if hasattr(part, "base") else part
    )


def build(part, dataset, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return part.build(dataset)


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def case(request, images, text, tmp_path):
    name = request.param.stem
    if name == "transformer":
        return request.param, load(request.param), text()
    if name in TOKENS:
        dataset = text(outputs=10, per_position=False)
        path = tmp_path / "start.safetensors"
        save_file(build(TextClassifier(), dataset, 9).state_dict(), path)
        return request.param, started(load(request.param), path), dataset
    dataset = images(*SHAPES.get(name, (1, 8, 8)), outputs=OUTPUTS.get(name, 10))
    return request.param, load(request.param), dataset


def test_all_files_are_known():
    assert {file.stem for file in FILES} == set(PARAMETERS)


def test_yaml_has_a_description_and_every_field(case):
    file, part, _ = case
    first, second = file.read_text().splitlines()[:2]
    assert first.startswith("# ") and second.startswith("_target_: fedsim.models.")
    fields = [field.name for field in dataclasses.fields(part)]
    assert list(yaml.safe_load(file.read_text())) == ["_target_", *fields]


def test_plain_yaml_holds_the_defaults(case):
    file, _, _ = case
    part = load(file)
    if not file.stem.startswith("cnn_"):
        assert part == type(part)()


def test_shape_and_parameters(case):
    file, part, dataset = case
    model = build(part, dataset)
    check_model(model, dataset)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[file.stem]


def test_building_depends_on_the_seed_alone(case):
    file, part, dataset = case
    before = torch.get_rng_state()
    first, again, other = (build(part, dataset, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], again[key]) for key in first)
    differs = any(not torch.equal(first[key], other[key]) for key in first)
    # The linear model starts at zero, the pretrained one from its file.
    assert differs != (file.stem in ("linear", "pretrained"))


def test_parameters_sit_in_layers_that_can_be_stacked(case):
    _, part, dataset = case
    for name, module in build(part, dataset).named_modules():
        assert not list(module.parameters(recurse=False)) or type(module) in LEAVES, name
        assert not list(module.buffers(recurse=False)), name


def test_samples_are_independent(case):
    _, part, dataset = case
    model, x = build(part, dataset), dataset.train_x
    with torch.no_grad():
        for p in model.parameters():  # away from zero, or the linear model would see no input
            p.add_(0.01)
    changed = x.clone()
    changed[2] = (x[2] + 1) % 65 if x.dtype == torch.int64 else x[2] + 1
    outputs = []
    for batch in (x, changed):
        install(model, [torch.Generator().manual_seed(0)], [len(x)])
        outputs.append(model(batch))
    others = [0, 1, 3, 4, 5]
    assert torch.equal(outputs[0][others], outputs[1][others])
    assert not torch.equal(outputs[0][2], outputs[1][2])


def test_every_parameter_gets_a_gradient(case):
    _, part, dataset = case
    model = build(part, dataset).eval()
    with torch.no_grad():
        for p in model.parameters():  # an adapter starts at zero, and its other half sees nothing
            p.add_(0.01 * (not p.any()))
    z = model(dataset.train_x)
    (z * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        assert p.grad is not None and p.grad.any() and p.grad.isfinite().all(), name
