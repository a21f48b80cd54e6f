import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from fedsim.errors import ConfigError, DataError
from fedsim.models.pretrained import Pretrained
from fedsim.models.transformer import Transformer
from tests.helpers import make_model, tokens

BASE = Transformer(width=8, heads=2, layers=1, tied=True)
DATA = tokens()


def weights():
    """The tensors that a run of `BASE` leaves: each parameter once, though two layers share one."""
    model = make_model(BASE, DATA)
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for name, p in model.named_parameters()
    }


@pytest.fixture
def start(tmp_path):
    path = tmp_path / "start.safetensors"
    save_file(weights(), path)
    return path


def test_weights_are_those_of_the_file(start):
    model = make_model(Pretrained(file=str(start), base=BASE), DATA)
    named = dict(model.named_parameters())
    assert named.keys() == weights().keys()
    assert all(torch.equal(named[name], tensor) for name, tensor in weights().items())
    assert model.head.weight is model.tokens.weight


def test_doubles_keep_their_precision_until_the_simulation_casts(tmp_path):
    double = {name: tensor.double() + 1e-12 for name, tensor in weights().items()}
    save_file(double, tmp_path / "double.safetensors")
    part = Pretrained(file=str(tmp_path / "double.safetensors"), base=BASE)
    model = make_model(part, DATA).double()
    assert all(torch.equal(p, double[name]) for name, p in model.named_parameters())


def test_fresh_layers_keep_the_base_s_start(start):
    model = make_model(Pretrained(file=str(start), fresh=["blocks.0.mlp_in"], base=BASE), DATA)
    base = dict(make_model(BASE, DATA).named_parameters())
    for name, p in model.named_parameters():
        like = base if name.startswith("blocks.0.mlp_in.") else weights()
        assert torch.equal(p, like[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("norm.bias"), r"missing: norm\.bias\)"),
        (lambda t: t.update(odd=torch.zeros(1)), r"unknown: odd\)"),
        (
            lambda t: t.update({"norm.bias": torch.zeros(1, 8)}),
            r"other shapes: norm\.bias \[1, 8\] instead of \[8\]\)",
        ),
    ],
)
def test_another_model_is_refused_by_name(tmp_path, change, message):
    tensors = weights()
    change(tensors)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=message):
        Pretrained(file=str(tmp_path / "other.safetensors"), base=BASE).build(DATA)


def test_files_that_are_not_there_or_not_right(tmp_path, start):
    with pytest.raises(ConfigError, match=r"none is named.*model\.file="):
        Pretrained(base=BASE).build(DATA)
    with pytest.raises(DataError, match="is not there"):
        Pretrained(file=str(tmp_path / "nothing"), base=BASE).build(DATA)
    (tmp_path / "bad").write_bytes(b"not tensors")
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        Pretrained(file=str(tmp_path / "bad"), base=BASE).build(DATA)
    with pytest.raises(ConfigError, match=r"fresh='hea' begins"):
        Pretrained(file=str(start), fresh=["hea"], base=BASE).build(DATA)


def test_a_digest_refuses_any_other_file(start):
    digest = hashlib.sha256(start.read_bytes()).hexdigest()
    Pretrained(file=str(start), sha256=digest, base=BASE).build(DATA)
    with pytest.raises(DataError, match=f"its digest is {digest}"):
        Pretrained(file=str(start), sha256="0" * 64, base=BASE).build(DATA)


def test_the_newest_whole_run_of_a_scenario(tmp_path):
    def leave(name, value, **summary):
        (tmp_path / name).mkdir()
        tensors = {key: torch.full_like(tensor, value) for key, tensor in weights().items()}
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))

    part = Pretrained(file=str(tmp_path), base=BASE)
    leave("20260101-1_a", 1.0, status="interrupted", smoke=False)
    leave("20260101-2_a", 2.0, status="finished", smoke=True)
    with pytest.raises(DataError, match=r"no run in .* has finished"):
        part.build(DATA)
    leave("20260101-3_a", 3.0, status="finished", smoke=False)
    leave("20260101-4_a", 4.0, status="finished", smoke=False)
    leave("20260101-5_a", 5.0, status="finished", smoke=True)
    (tmp_path / "20260101-6_a").mkdir()
    assert (make_model(part, DATA).norm.bias == 4).all()
    one = Pretrained(file=str(tmp_path / "20260101-3_a"), base=BASE)
    assert (make_model(one, DATA).norm.bias == 3).all()
