"""`audit=inversion`: digits are read out of a client's first step, and not under DP."""

from pathlib import Path

import pytest
import torch

from fedsim.client.half import Batch
from fedsim.config import compose
from fedsim.errors import ConfigError
from fedsim.protection import Protection
from fedsim.simulation import Simulation
from privacy.audit.inversion_audit import UNDER, WITHOUT, _sent, first_linear, picture_shape
from tests.privacy.audit._command import audit, no_report, scale_noise, written

Patch = pytest.MonkeyPatch
QUICK = ("audit=inversion", "audit.images=2", "audit.steps=40")
NOISE = ("privacy.epsilon=null", "privacy.noise_multiplier=1")


def test_digits_are_recovered_and_not_under_dp_sgd(tmp_path: Path) -> None:
    told = audit(tmp_path, "dp_sgd", *QUICK, *NOISE, "rounds=5", clients=4)
    assert told.exit_code == 0, told.output
    found = written(tmp_path)
    without, under = found["recovered"][WITHOUT], found["recovered"][UNDER]
    assert min(without["psnr_db"]) > 50 and min(without["ssim"]) > 0.99
    assert max(under["psnr_db"]) < 15 and max(under["ssim"]) < 0.5
    assert not found["refuted"] and "nothing is refuted" in told.output
    assert found["claim"]["sampling"].endswith("in 1 rounds of the client that takes part most")
    assert written(tmp_path, "summary.json")["server_round"] == 1
    (png,) = tmp_path.glob("runs/toy/*/audit.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    (page,) = tmp_path.glob("runs/toy/*/report.html")
    assert "gradient inversion" in page.read_text()


def test_clients_that_add_noise_themselves(tmp_path: Path, monkeypatch: Patch) -> None:
    """Their whole update is noised; what the audit shows is that, and without noise it is a leak:
    clipping alone hides nothing."""
    no_report(monkeypatch)
    assert audit(tmp_path / "noise", "local_dp", *QUICK, *NOISE, clients=4).exit_code == 0
    assert max(written(tmp_path / "noise")["recovered"][UNDER]["psnr_db"]) < 15
    scale_noise(monkeypatch, 0.0)
    assert audit(tmp_path / "none", "local_dp", *QUICK, *NOISE, clients=4).exit_code == 0
    assert min(written(tmp_path / "none")["recovered"][UNDER]["psnr_db"]) > 40


def test_without_a_mechanism_there_is_one_row(tmp_path: Path, monkeypatch: Patch) -> None:
    no_report(monkeypatch)
    told = audit(tmp_path, "none", *QUICK, "data.image=true", clients=4)
    assert told.exit_code == 0 and "claimed: nothing" in told.output, told.output
    assert list(written(tmp_path)["recovered"]) == [WITHOUT]


def test_what_is_sent_by_hand(monkeypatch: Patch) -> None:
    """Without noise: g min(1, C / ‖g‖) / m of DP-SGD, and g without it."""
    scale_noise(monkeypatch, 0.0)
    words = [
        "privacy=dp_sgd",
        *NOISE,
        "privacy.clip_norm=0.3",
        "precision=float64",
        "client.batch_size=8",
    ]
    simulation = Simulation(compose("quickstart", words))
    runtime, start = simulation.runtime, simulation.runtime.initial_params()
    batch = Batch(x=runtime.dataset.train_x[:1], y=runtime.dataset.train_y[:1])
    leaves = {name: t.requires_grad_() for name, t in runtime.initial_params().items()}
    loss = torch.nn.functional.cross_entropy(runtime.apply(leaves, batch.x), batch.y)
    grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    norm = float(torch.cat([g.flatten() for g in grads.values()]).norm())
    assert norm > 0.3
    plain = _sent(runtime, start, batch, 0, 1, Protection())
    private = _sent(runtime, start, batch, 0, 1, simulation.protection)
    for name, grad in grads.items():
        torch.testing.assert_close(plain[name], grad, atol=1e-12, rtol=0)
        torch.testing.assert_close(private[name], grad * 0.3 / norm / 8, atol=1e-6, rtol=1e-5)


def test_shapes_and_layers() -> None:
    assert picture_shape((64,)) == (1, 8, 8) and picture_shape((3, 4, 5)) == (3, 4, 5)
    with pytest.raises(ConfigError, match="no picture"):
        picture_shape((10,))
    mlp = Simulation(compose("quickstart", ["data.image=true"])).runtime
    assert first_linear(mlp) == ("hidden1.weight", "hidden1.bias")


@pytest.mark.parametrize(
    ("word", "expected"),
    [("privacy=user_dp", "the server is trusted"), ("data=diabetes", "one class per sample")],
)
def test_what_cannot_be_attacked_is_refused(tmp_path: Path, word: str, expected: str) -> None:
    more = NOISE if "user_dp" in word else ()
    told = audit(tmp_path, "none", "audit=inversion", word, *more, clients=4)
    assert told.exit_code == 2 and expected in told.output, told.output
    assert not (tmp_path / "runs").exists()
