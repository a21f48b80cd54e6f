"""Which devices can hold a client's work: by hand, and what becomes of those that cannot."""

import logging

import numpy as np
import pytest
from torch import nn

from fedsim.client.work import LocalSGD
from fedsim.config import compose
from fedsim.devices.drawn import Drawn
from fedsim.errors import ConfigError
from fedsim.memory import work_bytes
from fedsim.simulation import Simulation
from tests.helpers import classification


def test_bytes_by_hand():
    """6 -> 4 -> 3 has 43 numbers, and 4 + 4 + 3 outputs a sample; float32."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    x, samples = classification().train_x, np.array([0, 3, 10, 25])
    plain = work_bytes(model, x, LocalSGD(batch_size=10), samples)
    assert plain.tolist() == [4 * (43 + 43 + 2 * n * 11) for n in (0, 3, 10, 10)]
    heavy = work_bytes(model, x, LocalSGD(batch_size=10, momentum=0.9), samples)
    assert (heavy - plain).tolist() == [4 * 43] * 4
    model[0].weight.requires_grad_(False)  # 24 of them
    assert (plain - work_bytes(model, x, LocalSGD(batch_size=10), samples) == 4 * 24).all()
    model.append(nn.BatchNorm1d(3))  # 6 parameters, 6 buffers and a counter; 3 outputs more
    found = work_bytes(model, x, LocalSGD(batch_size=10), samples)
    assert found[1] == 4 * (43 + 6 + 6 + 2) + 4 * (19 + 6) + 4 * 2 * 3 * 14


def test_memory_is_drawn_around_its_median():
    assert Drawn().fleet(5, 0).memory_N is None
    assert Drawn(memory=3.0).fleet(2, 0).memory_N.tolist() == [3.0, 3.0]
    drawn = Drawn(memory=3.0, memory_spread=0.5).fleet(4000, 0)
    assert np.log(drawn.memory_N / 3).mean() == pytest.approx(0, abs=0.03)
    assert np.log(drawn.memory_N / 3).std() == pytest.approx(0.5, rel=0.03)


WORDS = ["partition.num_clients=4", "partition=iid", "participation=full", "model=linear",
         "rounds=2", "device=cpu", "client.epochs=1", "client.batch_size=10"]  # fmt: skip
NEED = 4 * (650 + 650 + 2 * 10 * (64 + 10))
"""Of the linear model on digits: 64 inputs, flattened, 10 outputs."""


def four(tmp_path, *memory, words=()):
    path = tmp_path / "devices.csv"
    rows = "".join(f"1e9,1e6,1e6,{bytes_}\n" for bytes_ in memory)
    path.write_text(f"flops,down,up,memory\n{rows}")
    own = ["devices=csv", f"devices.path={path}"]
    return Simulation(compose("quickstart", [*WORDS, *own, *words]))


def test_clients_without_the_memory_are_left_out_and_counted(tmp_path, caplog):
    simulation = four(tmp_path, NEED - 1, NEED, 10 * NEED, 100)
    with caplog.at_level(logging.WARNING):
        reports = [r for _, r in simulation.loop.run(simulation.runtime.initial_params())]
    assert [r.admitted for r in reports] == [[], [1, 2], [1, 2]]
    assert simulation.schedule.rates().tolist() == [0, 1, 1, 0]
    said = f"2 of 4 clients cannot hold their local work, of up to {NEED:,} bytes"
    assert caplog.text.count(said) == 1
    assert four(tmp_path, *[NEED] * 4).schedule.select(1).tolist() == [0, 1, 2, 3]


def test_if_nobody_has_the_memory_the_run_is_refused(tmp_path):
    said = rf"^devices\.memory: no client can .* client 2, .* {NEED:,} bytes of its 700;"
    with pytest.raises(ConfigError, match=said):
        four(tmp_path, 100, 500, 700, 600).check()


def test_where_sizes_are_hidden_all_batches_count_as_full(tmp_path):
    """Else who takes part would tell who holds little."""
    words = ["privacy=dp_sgd", "privacy.sample_rate=0.2", "privacy.delta=1e-5"]
    words += ["partition.num_clients=400", "client.batch_size=10"]
    tight = four(tmp_path, NEED - 1, words=words)  # clients hold three samples each
    with pytest.raises(ConfigError, match="no client can hold"):
        tight.check()
    open_ = four(tmp_path, NEED - 1, words=["partition.num_clients=400"])
    assert len(open_.schedule.select(1)) == 400


def test_the_hash_is_as_it_was_before_there_was_memory():
    config = compose("quickstart", ["devices=equal"])
    old = dict(config.values["devices"])
    del old["memory"], old["memory_spread"]
    before = type(config)(config.scenario, config.overrides, {**config.values, "devices": old})
    assert before.hash == config.hash
    assert compose("quickstart", ["devices=equal", "devices.memory=1e9"]).hash != config.hash
