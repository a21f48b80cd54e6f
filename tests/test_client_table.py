"""Tables of per-client state, in memory and in a file, against plain dictionaries."""

import os

import numpy as np
import pytest
import torch

from fedsim.client_table import ClientTable, TableSpaceError
from fedsim.errors import ResumeError

LIKE = {
    "w": torch.zeros(3, 2),
    "large": torch.zeros(90, 100),
    "b": torch.zeros(5, dtype=torch.float64),
    "scale": torch.zeros((), dtype=torch.float16),
    "count": torch.zeros((), dtype=torch.int64),
    "mask": torch.zeros(3, dtype=torch.bool),
}
DENSE, IN_FILE = 2**30, 0
N = 40


def made(seed, count):
    """`count` random rows, numbers of all sizes among them."""
    rng = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(count, *t.shape, generator=rng) * 10 ** (seed % 5)).to(t.dtype)
        for name, t in LIKE.items()
    }


def filled(limit, *, total=True, calls=12, like=LIKE):
    """A table after some puts, and what it should hold: client -> row."""
    table, expected = ClientTable(total=total, limit_bytes=limit), {}
    table.fit(like, N)
    for seed in range(calls):
        clients = np.random.default_rng(seed).choice(N - 10, 5, replace=False)
        rows = made(seed, 5)
        table.put(clients, rows)
        for i, client in enumerate(clients):
            expected[int(client)] = {name: rows[name][i] for name in LIKE}
    return table, expected


def same(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


@pytest.mark.parametrize("limit", [DENSE, IN_FILE])
def test_rows_are_those_put_last(limit):
    table, expected = filled(limit)
    clients = np.random.default_rng(99).permutation(N)
    rows = table.rows(clients)
    for i, client in enumerate(clients.tolist()):
        own = expected.get(client, LIKE)
        assert same({name: row[i] for name, row in rows.items()}, own)
    assert np.flatnonzero(table.seen).tolist() == sorted(expected)
    assert (table._file is not None) == (limit == IN_FILE)


@pytest.mark.parametrize("limit", [DENSE, IN_FILE])
def test_who_was_never_written_has_the_default(limit):
    table, expected = filled(limit)
    start = {name: row[0] for name, row in made(77, 1).items()}
    rows = table.rows(np.arange(N), start)
    for client in range(N):
        own = expected.get(client, start)
        assert same({name: row[client] for name, row in rows.items()}, own)


def test_in_a_file_and_in_memory_are_the_same_to_the_bit():
    dense, in_file = filled(DENSE)[0], filled(IN_FILE)[0]
    assert same(dense.rows(np.arange(N)), in_file.rows(np.arange(N)))
    assert same(dense.total, in_file.total)
    one, other = dense.state_dict("h/"), in_file.state_dict("h/")
    assert np.array_equal(one.pop("h/clients"), other.pop("h/clients"))
    assert same(one, other)


@pytest.mark.parametrize("limit", [DENSE, IN_FILE])
def test_rows_are_copies(limit):
    table, expected = filled(limit)
    client = next(iter(expected))
    for tensor in table.rows(np.array([client])).values():
        tensor.zero_()
    assert same({k: t[0] for k, t in table.rows(np.array([client])).items()}, expected[client])
    source = made(3, 1)
    table.put(np.array([client]), source)
    kept = {name: tensor[0].clone() for name, tensor in source.items()}
    for tensor in source.values():
        tensor.zero_()
    assert same({k: t[0] for k, t in table.rows(np.array([client])).items()}, kept)


def test_total_is_the_sum_of_the_rows():
    table, expected = filled(DENSE, calls=60)
    for name, total in table.total.items():
        rows = torch.stack([row[name].double() for row in expected.values()])
        assert total.dtype == torch.float64
        # Rows of size 10^4 come and go: what stays of their rounding is that of float64.
        torch.testing.assert_close(total, rows.sum(0), rtol=1e-12, atol=1e-9)


def test_total_by_hand():
    table = ClientTable(total=True)
    table.fit({"x": torch.zeros(1)}, 3)
    assert table.total["x"].tolist() == [0.0]
    table.put(np.array([0, 2]), {"x": torch.tensor([[1.0], [10.0]])})
    table.put(np.array([2, 1]), {"x": torch.tensor([[20.0], [5.0]])})
    assert table.total["x"].tolist() == [26.0]
    table.total["x"].zero_()  # a copy
    assert table.total["x"].tolist() == [26.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w", "large", "b", "scale"])
def test_a_row_that_is_not_finite_is_not_kept(name, bad):
    table, expected = filled(DENSE)
    first, *_, last = sorted(expected)
    before, total = table.rows(np.array([first])), table.total
    rows = made(2, 2)
    rows[name][0].view(-1)[-1] = bad
    rows["large"][1] = 3e38  # finite, though its sum is not
    table.put(np.array([first, last]), rows)
    assert same(table.rows(np.array([first])), before)
    assert same(
        {k: t[0] for k, t in table.rows(np.array([last])).items()},
        {k: t[1] for k, t in rows.items()},
    )
    change = table.total["b"] - total["b"]
    torch.testing.assert_close(change, rows["b"][1] - expected[last]["b"], rtol=1e-9, atol=1e-9)
    assert all(torch.isfinite(tensor).all() for tensor in table.total.values())


def test_a_row_that_is_not_finite_is_no_first_one():
    table = ClientTable(total=True)
    table.fit({"x": torch.zeros(())}, 2)
    table.put(np.array([0, 1]), {"x": torch.tensor([np.nan, 2.0])})
    assert table.seen.tolist() == [False, True]
    assert table.total["x"].item() == 2.0


def test_no_total_unless_asked_for():
    table, _ = filled(DENSE, total=False)
    with pytest.raises(ValueError, match="total=True"):
        _ = table.total
    assert not any("total" in key for key in table.state_dict("h/"))


@pytest.mark.parametrize(("before", "after"), [(DENSE, IN_FILE), (IN_FILE, DENSE)])
def test_state_round_trip_also_between_memory_and_file(before, after):
    table, expected = filled(before)
    state = table.state_dict("h/")
    assert len(state["h/clients"]) == len(expected)  # costs what was written, no more
    assert all(len(v) == len(expected) for k, v in state.items() if k.startswith("h/rows/"))
    second = ClientTable(total=True, limit_bytes=after)
    second.load_state_dict({"other": 3, **state}, "h/")
    second.fit(LIKE, N)
    for seed in (100, 101, 102):  # both go on, neither reaching the other
        clients = np.random.default_rng(seed).choice(N, 7, replace=False)
        for one in (table, second):
            one.put(clients, made(seed, 7))
    assert same(second.rows(np.arange(N)), table.rows(np.arange(N)))
    assert same(second.total, table.total)
    table.put(np.array([0]), made(5, 1))
    assert not same(second.rows(np.array([0])), table.rows(np.array([0])))


@pytest.mark.parametrize("fitted", [False, True])
def test_state_of_nobody(fitted):
    table = ClientTable(total=True)
    if fitted:
        table.fit(LIKE, N)
    second = ClientTable(total=True)
    second.load_state_dict(table.state_dict("h/"), "h/")
    second.fit(LIKE, 3)
    assert not second.seen.any()
    assert same(second.rows(np.arange(3)), {k: t.expand(3, *t.shape) for k, t in LIKE.items()})


@pytest.mark.parametrize("limit", [DENSE, IN_FILE, 20 * 40_000])
def test_clients_may_join(limit):
    """Also where the table outgrows the memory that it may have."""
    table, expected = ClientTable(total=True, limit_bytes=limit), {}
    for count in (1, 2, 5, 17, 40):
        table.fit(LIKE, count)
        rows = made(count, 1)
        table.put(np.array([count - 1]), rows)
        expected[count - 1] = rows
        for client, row in expected.items():
            assert same(table.rows(np.array([client])), row)
        assert len(table.seen) == count
    assert (table._file is None) == (limit == DENSE)


def test_a_table_is_of_one_model_and_one_population():
    table, _ = filled(DENSE)
    with pytest.raises(ResumeError, match=r"differs in 'w'.*was the model"):
        table.fit({**LIKE, "w": torch.zeros(2, 3)}, N)
    with pytest.raises(ResumeError, match="differs in 'b'"):
        table.fit({**LIKE, "b": LIKE["b"].float()}, N)
    with pytest.raises(ResumeError, match=r"state of client \d+, but there are 10 clients"):
        table.fit(LIKE, 10)
    table.fit(LIKE, N - 10)  # the last ten were never written


def bad_states():
    state = filled(DENSE)[0].state_dict("h/")
    clients = state["h/clients"]
    return {
        "foreign": {"momentum": np.zeros(2), "rounds": 3},
        "nothing": {},
        "another prefix": {k.replace("h/", "c/"): v for k, v in state.items()},
        "no total": {k: v for k, v in state.items() if "total" not in k},
        "part of a total": {k: v for k, v in state.items() if k != "h/total/b"},
        "no rows": {k: v for k, v in state.items() if "rows" not in k},
        "too few rows": {**state, "h/rows/w": state["h/rows/w"][:-1]},
        "negative client": {**state, "h/clients": clients - 1 - clients.min()},
        "clients as floats": {**state, "h/clients": clients / 2},
        "total as float32": {**state, "h/total/w": state["h/total/w"].float()},
        "total of another shape": {**state, "h/total/w": torch.zeros(2, dtype=torch.float64)},
    }


@pytest.mark.parametrize("what", list(bad_states()))
def test_a_foreign_state_is_refused_and_changes_nothing(what):
    table, _ = filled(DENSE)
    before = table.rows(np.arange(N))
    with pytest.raises(ResumeError, match="no state per client under 'h/'"):
        table.load_state_dict(bad_states()[what], "h/")
    assert same(table.rows(np.arange(N)), before)


def test_a_million_unseen_clients_cost_nothing():
    """40 GB of rows, of which two are written and read."""
    like = {"w": torch.zeros(100, 100)}
    table = ClientTable(total=True)
    table.fit(like, 1_000_000)
    far = np.array([17, 999_999])
    table.put(far, {"w": torch.ones(2, 100, 100)})
    assert table.rows(np.array([3, 999_999]))["w"].sum((1, 2)).tolist() == [0, 10_000]
    assert os.fstat(table._file.fileno()).st_blocks * 512 < 200_000
    assert os.fstat(table._file.fileno()).st_nlink == 0
    assert table.state_dict("h/")["h/rows/w"].shape == (2, 100, 100)


def test_a_full_disk_is_said():
    table, _ = filled(IN_FILE)

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

    table._file = Full(table._file)
    with pytest.raises(TableSpaceError, match=r"No space left .* set TMPDIR"):
        table.put(np.array([1]), made(0, 1))
