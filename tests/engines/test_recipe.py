"""A run as one string: written, read, rebuilt in another process."""

import json

import numpy as np
import pytest
import torch

from fedsim.config import compose
from fedsim.engines import recipe
from fedsim.errors import ConfigError
from fedsim.simulation import Simulation
from fedsim.smoke import Smoke
from tests.strategies._toy import equal

WORDS = ["model.hidden=[8]", "partition.num_clients=5", "participation.clients_per_round=2"]
ODD = 'a "quoted" name, üñï 🙂, back\\slash'


@pytest.fixture(scope="module")
def config():
    return compose("quickstart", [*WORDS, f"output.root={json.dumps(ODD, ensure_ascii=False)}"])


@pytest.mark.parametrize("smoke", [False, True])
def test_what_is_written_is_read(config, smoke):
    told, small = recipe.read(recipe.write(config, smoke=smoke))
    assert told == config
    assert told.hash == config.hash
    assert "🙂" in told.settings.output.root
    assert small is smoke


def test_a_device_sets_its_own_data_and_device(config):
    text = recipe.write(compose("cnn_fashion", []), smoke=False)
    told, _ = recipe.read(text, {"data.root": "/a folder/ü", "device": "cpu"})
    assert told.values["data"]["root"] == "/a folder/ü"
    assert told.settings.device == "cpu"
    plain, _ = recipe.read(text)
    assert plain.values["data"]["root"] != "/a folder/ü"
    kept = {key: value for key, value in plain.values.items() if key not in ("data", "device")}
    assert kept == {key: told.values[key] for key in kept}


@pytest.mark.parametrize(
    "key",
    [
        *("seed", "partition.num_clients", "partition._target_", "model.hidden", "client.lr"),
        *("data", "datax", "datax.root", "devices", "device.x", "plugins", "strategy", "rounds"),
        "",
    ],
)
def test_a_device_sets_nothing_else(config, key):
    with pytest.raises(ConfigError, match="a node may set only its own device and keys of data"):
        recipe.read(recipe.write(config, smoke=False), {key: 1})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.rooot", "/x", "data.rooot"),
        ("data.image", "perhaps", r"data\.image"),
        ("device", 3, "device"),
        ("data._target_", "os.system", r"os\.system"),
    ],
)
def test_a_devices_own_keys_are_checked_too(config, key, value, message):
    with pytest.raises(ConfigError, match=message):
        recipe.read(recipe.write(config, smoke=False), {key: value})


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[1]", "3", "null", '"config"', "{}", '{"config": "a: 1"}', '{"smoke": false}'],
)
def test_damaged_text_is_told(text):
    with pytest.raises(ConfigError, match="submitted by another version"):
        recipe.read(text)


@pytest.mark.parametrize("inner", ["", "a: [", "- 1", "seed: 0", "rounds: many"])
def test_a_damaged_configuration_is_told(inner):
    with pytest.raises(ConfigError):
        recipe.read(json.dumps({"config": inner, "smoke": False}))


def test_a_runtime_is_the_simulations_and_made_once(config):
    simulation = Simulation(config)
    text = recipe.write(config, smoke=False)
    assert simulation.runtime.recipe == text
    rebuilt = recipe.runtime(text)
    assert rebuilt is recipe.runtime(text)
    assert rebuilt is not recipe.runtime(text, (("device", "cpu"),))
    assert equal(rebuilt.initial_params(), simulation.runtime.initial_params())
    assert torch.equal(rebuilt.dataset.train_x, simulation.dataset.train_x)
    for client in range(5):
        np.testing.assert_array_equal(
            rebuilt.partition.indices(client), simulation.partition.indices(client)
        )
    assert (rebuilt.work, rebuilt.seed) == (simulation.runtime.work, simulation.runtime.seed)
    assert rebuilt.recipe == text


def test_a_smoke_run_is_rebuilt_as_one(config):
    simulation = Simulation(config, Smoke())
    rebuilt = recipe.runtime(simulation.runtime.recipe)
    assert rebuilt.work == simulation.runtime.work
    assert rebuilt.work.steps == 1
    assert rebuilt.work != Simulation(config).runtime.work
