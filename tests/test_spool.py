"""The spool: rows come back as they went in, from memory and from the file; memory is bounded."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from fedsim.spool import Spool, SpoolError

LIKE = {
    "a": torch.zeros(3, 5),
    "b": torch.zeros(7, dtype=torch.float64),
    "n": torch.tensor(0),
    "empty": torch.zeros(0),
}


def chunks(counts, like=LIKE):
    rng = torch.Generator().manual_seed(0)
    return [
        {
            name: (100 * torch.randn(count, *t.shape, generator=rng)).to(t.dtype)
            for name, t in like.items()
        }
        for count in counts
    ]


@pytest.mark.parametrize("memory_bytes", [0, 150, 2**20])
@pytest.mark.parametrize("block_bytes", [1, 200, 2**20])
def test_rows_come_back(memory_bytes, block_bytes):
    """All in the file, some of each, all in memory; one column a block, several, all."""
    parts = chunks([2, 1, 4])
    with Spool(LIKE, memory_bytes, block_bytes) as spool:
        for part in parts:
            spool.add(part)
            for tensor in part.values():  # the engine reuses the memory behind a chunk
                tensor.fill_(-1)
        assert spool.count == 7
        for name in LIKE:
            expected = torch.cat(
                [part[name].reshape(len(part[name]), -1) for part in chunks([2, 1, 4])]
            )
            for _ in range(2):  # two passes
                seen = torch.full(expected.shape, -7.0, dtype=torch.float64)
                for columns, rows in spool.blocks(name):
                    assert rows.dtype == torch.float64
                    assert rows.numel() * 8 <= max(block_bytes, 8 * 7)
                    seen[:, columns] = rows
                    rows.fill_(-3)  # a reader may write into its block
                assert torch.equal(seen, expected.double())


def test_nothing_in_it():
    with Spool(LIKE) as spool:
        assert spool.count == 0


def test_the_file_is_used_only_past_the_memory(monkeypatch):
    def refuse(**kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with Spool(LIKE, 2**20) as spool:
        spool.add(chunks([3])[0])
    with Spool(LIKE, 10) as spool, pytest.raises(SpoolError, match=r"No space left.*TMPDIR"):
        spool.add(chunks([3])[0])


PEAK = """
import resource, torch
from fedsim.records import Chunk
from fedsim.strategy import Round
from strategies.fedld import FedLD
from tests.strategies._toy import Stacked, chunk
import numpy as np
torch.set_num_threads(1)
clients, each = 100, 5
class Drawn(Stacked):
    def chunks(self):
        rng = torch.Generator().manual_seed(0)
        for start in range(0, clients, each):
            rows.normal_(generator=rng)
            yield chunk(range(start, start + each), rows)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
for size in (1000, 500_000):  # the first is to load what is loaded late
    strategy = FedLD(margin="none", memory_mb=16)
    strategy.load_state_dict({"moved": np.array([True])})
    rows = torch.zeros(each, size)
    context = Round(server_round=2, num_clients=clients, asked=np.arange(clients),
                    params={"x": torch.zeros(size)})
    before = peak()
    moved = strategy.aggregate(context, Drawn())["x"]
print(peak() - before, float(moved.double().norm()))
"""


def test_memory_does_not_grow_with_the_number_of_replies():
    """100 replies of a layer of half a million values are 191 MiB; its peak is a quarter."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    grown_mib, norm = map(float, done.stdout.split())
    assert norm > 0
    assert grown_mib < 50  # 16 held, a block of 16
