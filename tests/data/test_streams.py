"""Windows of sensor streams: cutting, the split of subjects, scaling, and every reader of them."""

import numpy as np
import pytest
import torch

from fedsim.data.arff import read_arff
from fedsim.data.har_spsw import HarSpSw
from fedsim.data.streams import SubjectSplit, Windows, cut
from fedsim.data.uci_har import UciHar
from fedsim.data.wearable import Wearable
from fedsim.data.wisdm import WisdmRaw
from fedsim.data.wisdm_features import WisdmFeatures
from fedsim.errors import ConfigError, DataError


def test_windows_cross_no_recording_and_ties_go_to_the_smaller_class():
    signal = np.arange(11.0)[:, None]
    label = np.array([1, 1, 0, 0, 2, 2, 2, 0, 0, 1, 1])
    run = np.array([0] * 5 + [1] * 6)
    x, y, first = cut(signal, label, run, window=4, step=1, what="s")
    assert first.tolist() == [0, 1, 5, 6, 7]
    assert x[:, 0, 0].tolist() == [0, 1, 5, 6, 7]
    assert y.tolist() == [0, 0, 0, 0, 0]
    assert cut(signal, label, run, window=3, step=3, what="s")[1].tolist() == [1, 2, 1]
    with pytest.raises(DataError, match=r"data\.window: 7 samples, but the longest .* has 6"):
        cut(signal, label, run, window=7, step=1, what="s")


def windows(seed=0):
    """Six subjects with unequal windows; subject 5 has no window of class 2."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(6), [10, 20, 30, 10, 20, 30])
    y = rng.integers(0, 3, len(user))
    y[(user == 5) & (y == 2)] = 0
    x = rng.normal(size=(len(user), 4, 2)) * (1 + user)[:, None, None] + np.array([3.0, -2.0])
    return Windows(x=x, y=y, user=user, class_names=("a", "b", "c"))


def test_subjects_are_the_servers_or_users_and_never_both():
    whole = windows()
    data = SubjectSplit(server_subjects=2, split_seed=3).dataset(whole, "w")
    server = {int(name) for name in data.server.names}
    assert len(server) == 2 and not server & set(data.columns["user"].tolist())
    assert server | set(data.columns["user"].tolist()) == set(range(6))
    count = sum(np.sum(whole.user == s) for s in server)
    assert len(data.server.x) + len(data.test_x) == count
    assert len(data.test_x) == int(np.ceil(0.2 * count))
    assert len(data.train_x) == len(whole.y) - count
    for m, name in enumerate(data.server.names):  # each source is its subject's windows
        rows = data.server.x[data.server.source == m]
        assert 0.5 < len(rows) / np.sum(whole.user == int(name)) < 1
    assert data.num_outputs == 3 and data.weighted_f1 and data.labelled == 0.1
    fewer = SubjectSplit(server_subjects=2, users=1, split_seed=3).dataset(whole, "w")
    assert len(set(fewer.columns["user"].tolist())) == 1 and fewer.server.names == data.server.names
    with pytest.raises(ConfigError, match="server_subjects: 6 and users=all others need 7"):
        SubjectSplit(server_subjects=6).dataset(whole, "w")


def test_labels_are_numbered_over_the_whole_file():
    """A user who lacks a class has the labels of all others; see the released code's defect."""
    whole = windows()
    data = SubjectSplit(server_subjects=1, split_seed=1).dataset(whole, "w")
    for user in np.unique(data.columns["user"]):
        own = data.train_y[torch.from_numpy(data.columns["user"] == user)]
        assert own.tolist() == whole.y[whole.user == user].tolist()


def test_nothing_of_a_user_or_of_the_test_set_is_in_the_scale():
    whole = windows()
    split = SubjectSplit(server_subjects=2, split_seed=3)
    data = split.dataset(whole, "w")
    flat = data.server.x.double().reshape(-1, 2)
    assert torch.allclose(flat.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(
        flat.std(0, unbiased=False), torch.ones(2, dtype=torch.float64), atol=1e-6
    )
    users = np.isin(whole.user, np.unique(data.columns["user"]))
    moved = Windows(
        x=np.where(users[:, None, None], 100 * whole.x, whole.x),
        y=whole.y,
        user=whole.user,
        class_names=whole.class_names,
    )
    again = split.dataset(moved, "w")
    assert torch.equal(again.server.x, data.server.x) and torch.equal(again.test_x, data.test_x)
    assert not torch.allclose(again.train_x, data.train_x)


def test_wearables_are_their_seeds_and_one_subjects_windows_do_not_depend_on_the_others():
    small = {"subjects": 6, "windows": 12, "server_subjects": 2}
    one, same, other = (Wearable(**small, data_seed=s).load() for s in (1, 1, 2))
    assert torch.equal(one.train_x, same.train_x)
    assert not torch.equal(one.train_x, other.train_x)
    assert one.train_x.shape == (48, 30, 3) and np.bincount(one.train_y).tolist() == [12] * 4
    still = Wearable(**small, noise=0, rotation=0, spread=0).load()
    rows = still.train_x[still.train_y == 0]
    assert (rows - rows[:1]).abs().max() < 1e-6  # nothing but gravity


# --- readers ---------------------------------------------------------------------------------


def spsw(folder, **changes):
    rng = np.random.default_rng(0)
    t = 240
    arrays = {
        "signal": rng.normal(size=(t, 2)).astype(np.float32),
        "label": np.arange(t, dtype=np.uint8) // 20 % 3,
        "subject": np.repeat(np.arange(1, 5, dtype=np.uint8), 60),
        "execution": np.tile(np.repeat(np.arange(2, dtype=np.uint8), 30), 4),
        "device": np.tile(np.repeat(np.arange(2, dtype=np.uint8), 15), 8),
        "activities": np.array(["sit", "walk", "turn"]),
        **changes,
    }
    np.savez(folder / "har_spsw.npz", **arrays)
    return arrays


def test_streams_of_an_npz_file(tmp_path):
    arrays = spsw(tmp_path)
    part = {"root": str(tmp_path), "window": 5, "step": 5, "server_subjects": 1}
    phone, watch, both = (HarSpSw(**part, device=d).load() for d in ("phone", "watch", "both"))
    for data, count in ((phone, 6), (watch, 6), (both, 12)):  # 2 executions of 3 windows a device
        assert np.unique(data.columns["user"], return_counts=True)[1].tolist() == [count] * 3
    assert phone.class_names == ("sit", "walk", "turn") and phone.input_shape == (5, 2)
    first = phone.columns["user"][0]
    where = (arrays["subject"] == first) & (arrays["device"] == 0)
    raw = arrays["signal"][where][:5]
    ratio = np.diff(raw, axis=0) / np.diff(phone.train_x[0].numpy(), axis=0)
    assert np.allclose(ratio, ratio[:1], rtol=1e-3)  # the file's samples, only scaled


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"signal": np.zeros((240, 2), np.int32)}, "'signal' .* is int32"),
        ({"label": np.zeros(3, np.uint8)}, r"'label' .* is uint8\[3\]"),
        ({"label": np.full(240, 3, np.uint8)}, "'label' .* holds 3 to 3"),
        ({"device": np.ones(240, np.uint8)}, "no samples of device phone"),
        ({"signal": np.full((240, 2), np.nan, np.float32)}, "240 values that are NaN"),
    ],
)
def test_a_damaged_npz_file_is_named(tmp_path, changes, words):
    spsw(tmp_path, **changes)
    with pytest.raises(DataError, match=words):
        HarSpSw(root=str(tmp_path), window=5, step=5, server_subjects=1).load()


def uci(root):
    folder = root / "UCI HAR Dataset"
    rng = np.random.default_rng(1)
    for half, users in (("train", [1, 1, 2, 2]), ("test", [3, 3])):
        signals = folder / half / "Inertial Signals"
        signals.mkdir(parents=True)
        for channel in ("a", "b"):
            np.savetxt(signals / f"{channel}_{half}.txt", rng.normal(size=(len(users), 3)))
        np.savetxt(folder / half / f"subject_{half}.txt", users, fmt="%d")
        np.savetxt(folder / half / f"y_{half}.txt", [5, 9] * (len(users) // 2), fmt="%d")
    (folder / "activity_labels.txt").write_text("5 SIT\n9 WALK FAST\n")
    return folder


def test_uci_folders_put_both_halves_together(tmp_path):
    uci(tmp_path)
    part = {"root": str(tmp_path), "channels": ["a", "b"], "server_subjects": 1}
    data = UciHar(**part, stride=1).load()
    assert data.class_names == ("SIT", "WALK FAST") and data.train_y.tolist() == [0, 1, 0, 1]
    assert data.input_shape == (3, 2) and len({*data.columns["user"], *data.server.names}) == 3
    assert UciHar(**{**part, "split_seed": 1}, stride=1).load().train_y.shape == (4,)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("train/y_train.txt", "5\n9\n5\n", "3 activities and 4 subjects"),
        ("train/y_train.txt", "5\n9\n5\n7\n", "activity 7"),
        ("train/y_train.txt", "5\n9\n5\n1.5\n", "one whole number"),
        ("test/Inertial Signals/b_test.txt", "1 2 3\n1 2\n", "line 2 .* has 2; expected 3"),
        ("test/Inertial Signals/b_test.txt", "1 2 x\n1 2 3\n", "line 1 .* is no numbers"),
        ("test/Inertial Signals/b_test.txt", "", "is empty"),
        ("activity_labels.txt", "SIT\n", "line 1 .* expected '1 WALKING'"),
        ("test/subject_test.txt", None, "subject_test.txt' is missing"),
    ],
)
def test_a_damaged_uci_folder_is_named(tmp_path, file, text, words):
    path = uci(tmp_path) / file
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=words):
        UciHar(root=str(tmp_path), channels=["a", "b"], server_subjects=1, stride=1).load()


def entries(*, users=(7, 8, 9), samples=12, end=";"):
    return [
        f"{user},{activity},{100 * t},{t / 10},{-t},{user}{end}"
        for user in users
        for activity in ("Walking", "Sitting")
        for t in range(samples)
    ]


def test_wisdm_raw_as_one_file_and_as_a_folder(tmp_path):
    lines = entries()
    lines[3] += lines.pop(4)  # two entries in a line, and an empty one, as published
    (tmp_path / "WISDM_ar_v1.1_raw.txt").write_text("\n".join([*lines, ";", "", ""]))
    part = {"window": 4, "step": 4, "server_subjects": 1}
    data = WisdmRaw(root=str(tmp_path), **part).load()
    assert data.class_names == ("Sitting", "Walking")
    assert data.train_y.tolist() == [1, 1, 1, 0, 0, 0] * 2
    folder = tmp_path / "raw"
    folder.mkdir()
    for user in (7, 8, 9):
        (folder / f"data_{user}.txt").write_text("\n".join(entries(users=[user])))
    again = WisdmRaw(file=str(folder), **part).load()
    assert torch.equal(again.train_x, data.train_x)


def test_a_few_damaged_wisdm_entries_are_left_out_and_many_are_refused(tmp_path, caplog):
    lines = entries()
    lines[5] = "7,Walking,500,0.5,;"
    (tmp_path / "WISDM_ar_v1.1_raw.txt").write_text("\n".join(lines))
    part = {"root": str(tmp_path), "window": 4, "step": 4, "server_subjects": 1}
    with pytest.raises(DataError, match=r"1 of 72 entries .* \(line 6: '7,Walking,500,0.5,'\)"):
        WisdmRaw(**part).load()
    data = WisdmRaw(**part, damaged=0.02).load()
    assert "1 damaged entries" in caplog.text
    assert len(data.train_y) + len(data.server.y) + len(data.test_y) == 3 * 6 - 1
    (tmp_path / "WISDM_ar_v1.1_raw.txt").write_text("\n")
    with pytest.raises(DataError, match="it is empty"):
        WisdmRaw(**part).load()


ARFF = """% transformed
@relation person_activity
@attribute "UNIQUE_ID" numeric
@attribute user numeric
@ATTRIBUTE 'X 0' real
@attribute Y0 NUMERIC
@attribute class {Walking, 'Up stairs'}

@data
1,33,0.5,?,Walking
2,33,1.5,4,'Up stairs'
3,34,2.5,2,Walking
4,34,3.5,6,'Up stairs'
"""


def test_transformed_wisdm_is_arff(tmp_path):
    path = tmp_path / "WISDM_ar_v1.1_transformed.arff"
    path.write_text(ARFF)
    table = read_arff(path)
    assert table.numbers["X 0"].tolist() == [0.5, 1.5, 2.5, 3.5]
    assert np.isnan(table.numbers["Y0"][0]) and table.text("user") == ["33", "33", "34", "34"]
    assert table.allowed == {"class": ("Walking", "Up stairs")}
    part = {"root": str(tmp_path), "server_subjects": 1, "test_fraction": 0.4}
    loaded = [WisdmFeatures(**part, split_seed=seed).load() for seed in range(4)]
    assert {data.server.names for data in loaded} == {("33",), ("34",)}
    for data in loaded:
        assert data.input_shape == (2,) and data.class_names == ("Up stairs", "Walking")
        assert torch.isfinite(data.train_x).all() and data.train_y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("1,33,0.5,?,Walking", "1,33,0.5,Walking", "line 10 .* has 4 values; expected 5"),
        ("1,33,0.5,?", "1,33,x,?", "attribute 'X 0' .* could not convert"),
        ("1,33,0.5,?,Walking", "1,33,0.5,?,Jogging", "is 'Jogging', which is none of"),
        ("1,33", "1,?", "attribute 'user' .* missing values"),
        ("'X 0' real", "'X 0' date", "line 5 .* declares"),
        ("@data\n", "", "line 9 .* expected @attribute"),
        ("user numeric", "users numeric", "no attribute 'user'.*did you mean"),
        ("1,33,0.5", "1,33,1e999", "infinite"),
    ],
)
def test_a_damaged_arff_file_is_named(tmp_path, old, new, words):
    assert old in ARFF
    (tmp_path / "WISDM_ar_v1.1_transformed.arff").write_text(ARFF.replace(old, new))
    with pytest.raises(DataError, match=words):
        WisdmFeatures(root=str(tmp_path), server_subjects=1).load()


def test_the_published_recordings(real_root):
    data = HarSpSw(root=real_root).load()
    assert len(data.server.names) + len(np.unique(data.columns["user"])) == 23
    assert data.input_shape == (100, 6) and data.num_outputs == 5
    assert len(data.train_y) + len(data.server.y) + len(data.test_y) == 2488
