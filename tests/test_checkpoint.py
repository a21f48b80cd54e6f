"""Checkpoints: what is saved comes back bit for bit, and nothing damaged comes back at all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsim import checkpoint
from fedsim.checkpoint import Checkpoint, load_latest, save
from fedsim.errors import ResumeError
from fedsim.strategy import State

FILES = ("manifest.json", "model.safetensors", "state.json", "strategy.safetensors")


def make(server_round: int = 3, state: State | None = None) -> Checkpoint:
    return Checkpoint(
        server_round=server_round,
        last_round=10,
        params={"w": torch.arange(6.0).reshape(2, 3) + server_round, "b": torch.tensor(0.5)},
        state={"steps": 7, "rate": 0.1, "last": np.arange(4)} if state is None else state,
        covers={"config.yaml": "abc", "metrics.jsonl": "def"},
        metrics_bytes=123,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    saved = make()
    assert save(tmp_path / "checkpoint", saved, keep=2).name == "round-000003"
    loaded = load_latest(tmp_path / "checkpoint")
    assert loaded is not None
    for field in ("server_round", "last_round", "covers", "metrics_bytes"):
        assert getattr(loaded, field) == getattr(saved, field)
    assert set(loaded.params) == {"w", "b"}
    for name, tensor in saved.params.items():
        assert loaded.params[name].dtype == tensor.dtype
        assert loaded.params[name].shape == tensor.shape
        assert torch.equal(loaded.params[name], tensor)
    assert loaded.state["steps"] == 7
    assert loaded.state["rate"] == 0.1
    assert torch.equal(torch.as_tensor(loaded.state["last"]), torch.arange(4))


def test_state_comes_back_in_its_order_where_torch_would_have_put_it(tmp_path: Path) -> None:
    """A strategy that adds over its names would round otherwise after a resume."""
    names = ["weight", "count", "bias", "a", "ratio", "c"]
    state: State = {name: torch.ones(k) for k, name in enumerate(names)} | {
        "count": 1,
        "ratio": 0.5,
    }
    save(tmp_path, make(state=state), keep=1)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert list(loaded.state) == names
    tensors = [*loaded.params.values(), *loaded.state.values()]
    assert all(t.data_ptr() % 64 == 0 for t in tensors if isinstance(t, torch.Tensor))


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "absent") is None


DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
    ),
)


@settings(max_examples=60, deadline=None, database=None)
@given(state=st.dictionaries(st.text("abc/_", min_size=1, max_size=8), VALUES, max_size=4))
def test_any_state_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, state: State
) -> None:
    folder = tmp_path_factory.mktemp("state")
    save(folder / "checkpoint", make(state=state), keep=1)
    loaded = load_latest(folder / "checkpoint")
    assert loaded is not None
    assert set(loaded.state) == set(state)
    for name, value in state.items():
        back = loaded.state[name]
        if isinstance(value, np.ndarray):
            array = torch.as_tensor(back).numpy()
            assert (array.dtype, array.shape) == (value.dtype, value.shape)
            assert array.tobytes() == value.tobytes()
        else:
            assert back == value
            assert type(back) is type(value)


def test_only_the_latest_are_kept(tmp_path: Path) -> None:
    for server_round in (0, 3, 6, 9):
        save(tmp_path / "checkpoint", make(server_round), keep=2)
    assert names(tmp_path / "checkpoint") == ["round-000006", "round-000009"]
    save(tmp_path / "checkpoint", make(12), keep=1)
    assert names(tmp_path / "checkpoint") == ["round-000012"]


def test_rounds_are_ordered_as_numbers(tmp_path: Path) -> None:
    for server_round in (999_998, 999_999, 1_000_000):
        save(tmp_path / "checkpoint", make(server_round), keep=2)
    assert names(tmp_path / "checkpoint") == ["round-1000000", "round-999999"]
    loaded = load_latest(tmp_path / "checkpoint")
    assert loaded is not None
    assert loaded.server_round == 1_000_000


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    save(folder, make(3), keep=2)
    (folder / "round-backup").mkdir()
    (folder / "round-000009.bak").mkdir()
    (folder / "notes.txt").write_text("mine")
    loaded = load_latest(folder)
    assert loaded is not None
    assert loaded.server_round == 3
    save(folder, make(6), keep=1)
    assert names(folder) == ["notes.txt", "round-000006", "round-000009.bak", "round-backup"]


def test_leftovers_of_a_kill_are_neither_read_nor_kept(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    save(folder, make(3), keep=2)
    for name in (".building-round-000006", ".removing-round-000000"):
        (folder / name).mkdir()
        (folder / name / "manifest.json").write_text("{}")
    loaded = load_latest(folder)
    assert loaded is not None
    assert loaded.server_round == 3
    checkpoint.sweep(folder)
    assert names(folder) == ["round-000003"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    final = save(tmp_path / "checkpoint", make(), keep=2)
    (final / name).unlink()
    with pytest.raises(ResumeError, match=name):
        load_latest(tmp_path / "checkpoint")


@pytest.mark.parametrize("name", FILES)
def test_every_byte_counts(tmp_path: Path, name: str) -> None:
    final = save(tmp_path / "checkpoint", make(), keep=2)
    whole = (final / name).read_bytes()
    for position in range(len(whole)):
        torn = bytearray(whole)
        torn[position] ^= 1 << (position % 8)
        (final / name).write_bytes(bytes(torn))
        with pytest.raises(ResumeError, match=name):
            load_latest(tmp_path / "checkpoint")
    for length in range(len(whole)):
        (final / name).write_bytes(whole[:length])
        with pytest.raises(ResumeError, match=name):
            load_latest(tmp_path / "checkpoint")
    (final / name).write_bytes(whole + b"\n")
    with pytest.raises(ResumeError, match=name):
        load_latest(tmp_path / "checkpoint")
    (final / name).write_bytes(whole)
    assert load_latest(tmp_path / "checkpoint") is not None


def test_the_error_says_how_to_go_back_and_that_works(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    save(folder, make(3), keep=2)
    newest = save(folder, make(6), keep=2)
    (newest / "model.safetensors").write_bytes(b"")
    with pytest.raises(ResumeError, match=f"remove the folder {newest}"):
        load_latest(folder)
    newest.rename(tmp_path / "away")
    loaded = load_latest(folder)
    assert loaded is not None
    assert loaded.server_round == 3


def test_a_damaged_older_checkpoint_is_of_no_consequence(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    older = save(folder, make(3), keep=2)
    save(folder, make(6), keep=2)
    for name in FILES:
        (older / name).write_bytes(b"x")
    loaded = load_latest(folder)
    assert loaded is not None
    assert loaded.server_round == 6


@pytest.mark.parametrize("text", ["[]", "1", '"x"', "null", "{", "{}", '{"files": 1}', "\xff"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    final = save(tmp_path / "checkpoint", make(), keep=2)
    (final / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ResumeError, match=r"manifest\.json"):
        load_latest(tmp_path / "checkpoint")


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    final = save(tmp_path / "checkpoint", make(), keep=2)
    scalars = json.loads((final / "state.json").read_text())
    del scalars["last_round"]
    (final / "state.json").write_bytes(checkpoint._json(scalars))
    manifest = json.loads((final / "manifest.json").read_text())
    manifest["files"]["state.json"] = checkpoint.sha256(checkpoint._json(scalars))
    body = {key: manifest[key] for key in ("files", "covers")}
    manifest["digest"] = checkpoint.sha256(checkpoint._json(body))
    (final / "manifest.json").write_bytes(checkpoint._json(manifest))
    with pytest.raises(ResumeError, match="another version"):
        load_latest(tmp_path / "checkpoint")


def test_an_error_while_saving_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint"
    save(folder, make(3), keep=2)

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_durable", full)
        with pytest.raises(OSError, match="No space"):
            save(folder, make(6), keep=2)
    loaded = load_latest(folder)
    assert loaded is not None
    assert loaded.server_round == 3
    save(folder, make(6), keep=2)
    assert names(folder) == ["round-000003", "round-000006"]


def test_tensors_that_share_memory_are_saved_by_value(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    views = {"a": base[:, 1], "b": base.t(), "c": base[1:, ::2], "d": base.view(-1), "e": base[1]}
    save(tmp_path / "c", dataclasses.replace(make(), params=views), keep=1)
    loaded = load_latest(tmp_path / "c")
    assert loaded is not None
    for name, tensor in views.items():
        assert torch.equal(loaded.params[name], tensor)
