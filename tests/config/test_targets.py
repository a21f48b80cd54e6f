"""What a `_target_` may name, what keys it takes, and that nothing else is ever run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

import pytest

from fedsim.config.targets import fields_of, instantiate, locate, plugin_prefixes
from fedsim.errors import ConfigError, DataError
from fedsim.parts import describe

TOY = Path(__file__).parent.parent / "assets" / "toylab"
PLUGINS = ("toylab.",)


@pytest.fixture(autouse=True)
def _toylab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOY))


def made() -> list[str]:
    import toylab

    return toylab.MADE


HOSTILE = [
    # outside the allow-list
    "os.system",
    "posix.system",
    "subprocess.run",
    "builtins.eval",
    "builtins.exec",
    "shutil.rmtree",
    "pickle.loads",
    "numpy.load",
    "torch.load",
    "torch.hub.load",
    "torch.nnx.Linear",
    "hydra.utils.instantiate",
    "flwr.server.strategy.FedAvg",
    "fedsimx.parts.Range",
    # walks through what an allowed module imported
    "fedsim.errors.difflib.SequenceMatcher",
    "fedsim.errors.difflib.get_close_matches",
    "fedsim.errors.Iterable",
    "fedsim.parts.ConfigErrorr",
    "fedsim.parts.math.sqrt",
    "fedsim.config.targets.importlib.import_module",
    "fedsim.catalog.Path",
    "flwr.serverapp.strategy.strategy.time.sleep",
    "flwr.serverapp.strategy.fedavg.Message",
    "torch.nn.modules.module.torch.load",
    "torch.nn.modules.module.OrderedDict",
    "toylab.system",
    "toylab.rmtree",
    "toylab.Path",
    "toylab.DataPart",
    # functions, attributes and things that are no modules
    "fedsim.errors.did_you_mean",
    "fedsim.catalog.ROOT",
    "fedsim.errors.ConfigError.mro",
    "torch.nn.functional.relu",
    "torch.nn.init.normal_",
    "torch.nn.Parameter",
    "toylab.MADE",
    # abstract
    "fedsim.data.dataset.DataPart",
    "flwr.serverapp.strategy.Strategy",
    # private and special names
    "toylab._Private",
    "fedsim.errors.__builtins__",
    "fedsim.errors.FedsimError.__subclasses__",
    "fedsim._x.Y",
    # not a dotted path at all
    "",
    "fedsim",
    "fedsim.",
    ".fedsim.parts.Range",
    "fedsim..parts.Range",
    "../fedsim.parts.Range",
    "fedsim/parts.Range",
    "fedsim.parts.Range\n",
    "fedsim.parts.Range()",
    "fedsim.parts:Range",
    "ﬁlesim.parts.Range",
]


@pytest.mark.parametrize("target", HOSTILE)
def test_hostile_targets_are_refused_and_not_run(
    target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(os, "system", called.append)
    spec = {"_target_": target, "_args_": [f"touch {tmp_path / 'ran'}"]}
    with pytest.raises(ConfigError, match=r"^client\._target_: "):
        instantiate(spec, "client", PLUGINS)
    assert called == []
    assert list(tmp_path.iterdir()) == []
    assert made() == []


@pytest.mark.parametrize("target", [None, 3, 1.5, True, [], {}, ["fedsim.parts.Range"]])
def test_a_target_must_be_text(target: Any) -> None:
    with pytest.raises(ConfigError, match="not a dotted path"):
        locate(target)


@pytest.mark.parametrize(
    "plugin",
    [
        "os",
        "os.",
        "builtins.",
        "importlib.",
        "subprocess",
        "torch.",
        "numpy.lib.",
        "hydra.",
        "",
        ".",
        *("..", "*", "my lab.", "mylab..x", "_mylab.", "mylab._x", "../mylab", "mylab.\n", None, 3),
    ],
)
def test_plugins_must_be_packages_of_the_users_own(plugin: Any) -> None:
    with pytest.raises(ConfigError, match=r"^plugins: "):
        plugin_prefixes([plugin])


def test_plugin_prefixes_end_at_a_dot() -> None:
    assert plugin_prefixes(["mylab", "mylab.sub."]) == ("mylab.", "mylab.sub.")
    with pytest.raises(ConfigError, match=r"'toylab\.Sgd' is not allowed"):
        locate("toylab.Sgd", ["toy"])


@pytest.mark.parametrize(
    ("target", "plugins"),
    [
        ("fedsim.parts.Range", ()),
        ("torch.nn.Linear", ()),
        ("torch.nn.modules.linear.Linear", ()),
        ("flwr.serverapp.strategy.FedAvg", ()),
        ("flwr.serverapp.strategy.fedavg.FedAvg", ()),
        ("toylab.Tripwire", PLUGINS),
        ("toylab.tripwire", PLUGINS),
    ],
)
def test_allowed_targets_are_found(target: str, plugins: tuple[str, ...]) -> None:
    assert locate(target, plugins).__name__ == target.rpartition(".")[2]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "os.system",
            "allowed prefixes: fedsim., strategies., privacy., flwr.serverapp.strategy., ",
        ),
        ("fedsim.prats.Range", "no module 'fedsim.prats'; did you mean 'parts'?"),
        ("fedsim.parts.Rnage", "no class 'Rnage' in fedsim.parts; did you mean 'Range'?"),
        ("fedsim.parts.Range.x", "no module 'fedsim.parts.Range'"),
        ("nolab.Thing", "no module 'nolab'; is it installed, or its folder on PYTHONPATH?"),
    ],
)
def test_messages_say_what_to_type(target: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        locate(target, ["nolab."])
    assert message in str(raised.value)


def test_a_plugin_that_fails_to_import_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faillab.py").write_text("1 / 0")
    (tmp_path / "needlab.py").write_text("import not_a_module_at_all")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="ZeroDivisionError: division by zero"):
        locate("faillab.X", ["faillab."])
    with pytest.raises(ConfigError, match="cannot import 'needlab': No module named 'not_a_mod"):
        locate("needlab.X", ["needlab."])


def test_fields_of_a_part_carry_range_default_and_description() -> None:
    fields = fields_of(locate("toylab.Data", PLUGINS))
    assert list(fields) == ["size", "root"]
    assert describe(fields["size"].annotation) == "int in [1, inf)"
    assert (fields["size"].default, fields["size"].required) == (10, False)
    assert fields["size"].description == "How many samples, in all."
    assert fields["root"].description == "Where they lie."


def test_fields_of_a_part_include_those_of_its_bases() -> None:
    fields = fields_of(locate("toylab.Skewed", PLUGINS))
    assert list(fields)[:3] == ["num_clients", "holdout", "alpha"]
    assert fields["alpha"].required
    assert fields["holdout"].description.startswith("Share of each client's samples")


def test_fields_of_a_flower_strategy_come_from_its_signature() -> None:
    fields = fields_of(locate("flwr.serverapp.strategy.FedProx"))
    assert fields["fraction_train"].annotation is float
    assert fields["fraction_train"].default == 1.0
    assert "proximal" in fields["proximal_mu"].description
    assert get_args(fields["evaluate_metrics_aggr_fn"].annotation)


def test_fields_of_an_ordinary_class_leave_out_what_has_no_name() -> None:
    fields = fields_of(locate("toylab.Tripwire", PLUGINS))
    assert list(fields) == ["x", "y", "make"]
    assert [f.required for f in fields.values()] == [True, False, False]


def test_nested_parts_and_arguments_are_made_inside_out() -> None:
    spec = {
        "_target_": "torch.nn.Sequential",
        "_args_": [
            {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2},
            {"_target_": "torch.nn.ReLU"},
        ],
    }
    chain = instantiate(spec, "model")
    assert [type(m).__name__ for m in chain] == ["Linear", "ReLU"]
    assert tuple(chain[0].weight.shape) == (2, 3)


def test_containers_without_a_target_stay_what_they_are() -> None:
    value = {"a": [1, {"b": None}], "c": "d"}
    assert instantiate(value, "x") == value


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"_target_": "toylab.Data", "size": 0}, "data.size: 0 is out of range; allowed: [1, inf)"),
        (
            {"_target_": "toylab.Data", "sise": 1},
            "data: toylab.Data refused its arguments: TypeErr",
        ),
        (
            {"_target_": "toylab.Data", "_args_": [1]},
            "data: toylab.Data refused its arguments: Type",
        ),
        (
            {"_target_": "toylab.Data", "_args_": "1"},
            "data._args_: '1' is not allowed; expected a l",
        ),
        (
            {"_target_": "toylab.Broken"},
            "data: toylab.Broken refused its arguments: ZeroDivisionErr",
        ),
        ({"_target_": "toylab.Skewed", "alpha": 1, "low": 9}, "data.low: 9 is above high, 2"),
        (
            [{"_target_": "toylab.Data", "size": "x"}],
            "data[0].size: 'x' is not allowed; expected int",
        ),
        (
            {"_target_": "torch.nn.Linear", "in_features": "a", "out_features": 1},
            "data: torch.nn.L",
        ),
    ],
)
def test_a_refused_construction_is_a_config_error_with_its_path(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        instantiate(spec, "data", PLUGINS)
    assert str(raised.value).startswith(message)
    assert not isinstance(raised.value, DataError)


def test_nothing_is_made_when_a_nested_target_is_refused() -> None:
    spec = {"_target_": "toylab.Tripwire", "x": 1, "make": {"_target_": "os.system"}}
    with pytest.raises(ConfigError, match=r"^client\.make\._target_: 'os.system'"):
        instantiate(spec, "client", PLUGINS)
    assert made() == []
    del spec["make"]
    instantiate(spec, "client", PLUGINS)
    assert made() == ["Tripwire"], "the tripwire works"
    made().clear()
