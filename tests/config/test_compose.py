"""From a scenario's name and overrides to checked values, and all ways in which that is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from fedsim.catalog import GROUPS
from fedsim.config import Config, build_part, compose
from fedsim.config.settings import Evaluation
from fedsim.errors import ConfigError

TOY = Path(__file__).parent.parent / "assets" / "toylab"
ROOT = TOY / "scenarios"


@pytest.fixture(autouse=True)
def _toylab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOY))


def values(scenario: str, *overrides: str) -> dict[str, Any]:
    return compose(scenario, overrides, root=ROOT).values


def refusal(scenario: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        compose(scenario, overrides, root=ROOT)
    assert type(raised.value) is ConfigError
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_scenario_beats_base_and_defaults_fill_the_rest() -> None:
    found = values("private")
    assert found["name"] == "private"
    assert (found["rounds"], found["seed"], found["device"]) == (7, 0, "auto")
    assert found["privacy"] == {
        "_target_": "toylab.Gaussian",
        "sigma": 3.0,
        "clip_norm": 1.0,
        "accountant": {"_target_": "toylab.Accountant", "orders": [2, 4]},
    }
    assert found["partition"]["weights"] == [1.0, 2.0], "tuples are lists, as in YAML"
    assert found["evaluation"] == {
        "every": 1,
        "central": True,
        "clients": "none",
        "batch_size": 4096,
        "fused": False,
        "decomposition": False,
    }
    assert list(found)[-len(GROUPS) :] == list(GROUPS)


def test_settings_are_typed() -> None:
    settings = compose("private", ["evaluation.clients=all"], root=ROOT).settings
    assert settings.rounds == 7
    assert settings.evaluation == Evaluation(clients="all")
    assert settings.plugins == ("toylab.",)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("rounds=3", "rounds", 3),
        ("rounds=1e3", "rounds", 1000),
        ("+rounds=3", "rounds", 3),
        ("++rounds=3", "rounds", 3),
        ("~rounds", "rounds", 50),
        ("~rounds=7", "rounds", 50),
        ("name='a-b.c'", "name", "a-b.c"),
        ("seed=${rounds}", "seed", 7),
        ("evaluation={every:3,central:false}", "evaluation.every", 3),
        ("admission.timeout_s=5", "admission.timeout_s", 5.0),
        ("data.root='a, b=c'", "data.root", "a, b=c"),
        ("data.root=null", "data.root", None),
        ("partition=iid", "partition.num_clients", 100),
        ("partition.holdout=0.25", "partition.holdout", 0.25),
        ("partition.weights=[3]", "partition.weights", [3.0]),
        ("partition.weights.1=5", "partition.weights", [1.0, 5.0]),
        ("partition.names={a:1}", "partition.names", {"a": 1.0}),
        ("privacy.accountant.orders=[8]", "privacy.accountant.orders", [8]),
        ("~privacy.accountant", "privacy.accountant", None),
        ("strategy.fraction_train=1", "strategy.fraction_train", 1.0),
        ("client.decay=${client.lr}", "client.decay", 0.1),
    ],
)
def test_overrides_reach_every_declared_key(override: str, path: str, value: Any) -> None:
    node: Any = values("private", override)
    for key in path.split("."):
        node = node[key]
    assert node == value
    assert type(node) is type(value)


def test_a_reference_sees_what_the_command_line_set_and_what_only_a_part_declares() -> None:
    assert values("linked")["rounds"] == 100
    assert values("linked")["client"]["decay"] == 0.1, "client.lr is in no YAML file"
    found = values("linked", "partition.num_clients=7", "client.lr=0.5")
    assert (found["rounds"], found["client"]["decay"]) == (7, 0.5)


def test_a_target_on_the_command_line_goes_first_whatever_the_order() -> None:
    found = values("base", "partition.alpha=0.3", "partition._target_=toylab.Skewed")
    assert found["partition"]["alpha"] == 0.3


EXACT = {
    ("base", "roudns=3"): "unknown key 'roudns'; did you mean 'rounds'? (scenarios/base.yaml)",
    (
        "base",
        "evaluation.evry=3",
    ): "unknown key 'evaluation.evry'; did you mean 'evaluation.every'? (scenarios/base.yaml)",
    ("base", "partition.num_clint=3"): "unknown key 'partition.num_clint'; did you mean "
    "'partition.num_clients'? (scenarios/partition/iid.yaml)",
    ("base", "client.llr=3"): "unknown key 'client.llr'; did you mean 'client.lr'? (toylab.Sgd)",
    ("base", "num_clients=3"): "unknown key 'num_clients'; did you mean 'partition.num_clients'? "
    "(scenarios/partition/iid.yaml)",
    ("base", "partition.foo=3"): "unknown key 'partition.foo'; keys of toylab.Iid: num_clients, "
    "holdout",
    ("private", "privacy=none"): "unknown key 'privacy.sigma' (set in scenarios/private.yaml, but "
    "the part is from scenarios/privacy/none.yaml); keys of toylab.NoPrivacy: none",
    ("base", "rounds=fifty"): "rounds: 'fifty' is not allowed; expected int in [1, 4294967296) "
    "(set on the command line)",
    ("base", "rounds=0"): "rounds: 0 is out of range; allowed: [1, 4294967296) (set on the command "
    "line)",
    ("base", "evaluation={every:0}"): "evaluation.every: 0 is out of range; allowed: [1, inf) (set "
    "on the command line)",
    ("private", "partition.low=5"): "partition.low: 5 is above high, 2 (set on the command line)",
    (
        "private",
        "partition.weights.0=x",
    ): "partition.weights[0]: 'x' is not allowed; expected float (set on the command line)",
    (
        "base",
        "data=rooted",
    ): "data.folder: required, but not set; add data.folder=<value> (required "
    "in scenarios/data/rooted.yaml)",
    (
        "base",
        "partition._target_=toylab.Skewed",
    ): "partition.alpha: required, but not set; expected float in (0, inf)",
    (
        "base",
        "strategy=fedporx",
    ): "no strategy called 'fedporx'; did you mean 'fedprox'? (fedsim list strategy shows all)",
    (
        "base",
        "rounds=1,2",
    ): "'rounds=1,2' asks for several runs; fedsim sweep takes several values, fedsim run "
    "one; a list is rounds=[a,b], a decimal has a point, as in 0.1",
    (
        "base",
        "seed=${sed}",
    ): "seed: cannot resolve '${sed}': Interpolation key 'sed' not found (set on the command line)",
    ("base", "strategy.fraction_train=x"): "strategy.fraction_train: 'x' is not allowed; expected "
    "float (set on the command line)",
    ("base", "rounds.x=1"): "rounds: 50 has no keys of its own; set it as a whole (set in "
    "scenarios/base.yaml)",
    ("base", "~rounds=7"): "rounds: is 50, not 7: kept (set on the command line)",
    ("base", "client._target_=os.system"): "client._target_: 'os.system' is not allowed; allowed "
    "prefixes: fedsim., strategies., privacy., flwr.serverapp.strategy., torch.nn., toylab. (to "
    "use code of your own, list its package under 'plugins:') (set on the command line)",
    (
        "base",
        "partition._target_=toylab.Sgd",
    ): "partition._target_: 'toylab.Sgd' is not a partition "
    "part (a fedsim.partition.base.PartitionPart) (set on the command line)",
}


@pytest.mark.parametrize(("case", "message"), EXACT.items(), ids=[" ".join(case) for case in EXACT])
def test_messages(case: tuple[str, str], message: str) -> None:
    assert refusal(*case) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=${seed}", "seed: cannot resolve '${seed}': Recursive interpolation"),
        ("data.root='${oc.env:NOT_SET_ANYWHERE}'", "data.root: cannot resolve"),
        ("data.root='\\${x}'", "data.root: '${x}': a value may not hold '${'"),
        ("plugins=[]", "data._target_: 'toylab.Data' is not allowed"),
        ("plugins=[os.]", "plugins: 'os.' is a general library"),
        ("plugins='${seed}'", "plugins: '${seed}' is not allowed; expected a list"),
        ("client._target_='${name}'", "client._target_: '${name}' is not a dotted path"),
        ("~client._target_", "client: has no '_target_', so it is no part"),
        ("model._args_=[1]", "model._args_: toylab.Mlp: too many positional arguments"),
        ("model._args_=1", "model._args_: 1 is not allowed; expected a list"),
        (
            "model.activation={_target_:os.system}",
            "model.activation._target_: 'os.system' is not all",
        ),
        ("model.activation=[{_target_:os.system}]", "model.activation[0]._target_: 'os.system'"),
        (
            "model.activation='${oc.create:{_target_:os.system}}'",
            "model.activation._target_: 'os.sys",
        ),
        (
            "model.activation='${oc.create:{_target_:toylab.Accountant,order:[1]}}'",
            "unknown key 'model.activation.order'; did you mean 'model.activation.orders'? (",
        ),
        ("model.activation={null:1}", "model.activation: key None is not allowed"),
        ("model.activation={1:1,a:1}", "model.activation: keys must be all text or all integers"),
        ("data.size=1e300", "data.size: the integer is too large"),
        ("output.root=''", "output.root: '' is not a folder"),
        ("name=a/b", "name: 'a/b' is not allowed"),
        ("hydra.run.dir=x", "unknown key 'hydra'"),
        ("scenario=x", "unknown key 'scenario'"),
        ("defaults=[]", "unknown key 'defaults'"),
    ],
)
def test_refusals(override: str, message: str) -> None:
    assert refusal("base", override).startswith(message)


def test_a_cycle_of_references_is_refused() -> None:
    message = refusal("base", "seed=${rounds}", "rounds=${seed}")
    assert message.startswith("seed: cannot resolve '${rounds}'") or "rounds: cannot" in message


def test_checking_makes_dataclasses_and_nothing_else() -> None:
    import toylab

    target = ["client._target_=toylab.Tripwire", "client.x=1", "client._args_=[]"]
    config = compose("base", target, root=ROOT)
    assert toylab.MADE == []
    assert build_part(config, "client").x == 1
    assert toylab.MADE == ["Tripwire"]
    toylab.MADE.clear()


def test_a_function_of_a_plugin_may_make_a_part_and_takes_any_key() -> None:
    import toylab

    config = compose("base", ["client._target_=toylab.tripwire", "client.foo=[1]"], root=ROOT)
    assert build_part(config, "client") == {"foo": [1]}
    toylab.MADE.clear()
    config = compose("base", ["data._target_=toylab.tripwire", "~data.size"], root=ROOT)
    with pytest.raises(ConfigError, match=r"^data\._target_: 'toylab.tripwire' is not a data part"):
        build_part(config, "data")
    toylab.MADE.clear()


def test_every_part_is_built() -> None:
    config = compose("private", ["model=chain", "strategy=fedprox"], root=ROOT)
    parts = {group: build_part(config, group) for group in GROUPS}
    assert parts["partition"].weights == (1.0, 2.0)
    assert parts["privacy"].accountant.orders == [2, 4]
    assert len(parts["model"]) == 2
    assert parts["strategy"].proximal_mu == 0.1


def test_a_broken_part_is_refused_when_it_is_composed() -> None:
    message = refusal("base", "client._target_=toylab.Broken")
    assert message.startswith(
        "client: toylab.Broken refused its arguments: ZeroDivisionError: no re"
    )


def test_yaml_round_trip_keeps_everything() -> None:
    overrides = ["name='1e5'", "data.root='a: b #\u00e9\n\\'x\\''", "client.lr=1e-5", "rounds=1e3"]
    config = compose("private", overrides, root=ROOT)
    again = Config.from_yaml(config.to_yaml())
    assert again == config
    assert again.hash == config.hash
    assert again.values["name"] == "1e5", "a text that looks like a number stays one"


def test_a_saved_configuration_is_itself_a_scenario(tmp_path: Path) -> None:
    config = compose("private", ["seed=3"], root=ROOT)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    again = compose(str(tmp_path / "config.yaml"), root=ROOT)
    assert again.values == config.values
    changed = compose(str(tmp_path / "config.yaml"), ["seed=4"], root=ROOT)
    assert changed.values == {**config.values, "seed": 4}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rounds: 7", "rounds: 0", "rounds: 0 is out of range"),
        (
            "rounds: 7",
            "roudns: 7",
            "unknown key 'roudns' (set in c.yaml); did you mean 'rounds'? (c",
        ),
        ("toylab.Sgd", "os.system", "client._target_: 'os.system' is not allowed"),
        ("rounds: 7", "rounds: [", "c.yaml, line 7: not valid YAML"),
        ("rounds: 7", "hydra: {}", "c.yaml: key 'hydra' is not allowed"),
        ('scenario: "private"', "scenario: 3", "c.yaml: its first two lines are damaged"),
        ("overrides: []", "overrides: [1]", "c.yaml: its first two lines are damaged"),
        ("overrides: []", "overrides: [", "c.yaml: its first two lines are damaged"),
        ("overrides: []", "overrides: null", "c.yaml: its first two lines are damaged"),
    ],
)
def test_a_damaged_saved_configuration_is_refused(old: str, new: str, message: str) -> None:
    text = compose("private", root=ROOT).to_yaml()
    assert old in text
    with pytest.raises(ConfigError) as raised:
        Config.from_yaml(text.replace(old, new), "c.yaml")
    assert str(raised.value).startswith(message)


def test_a_saved_configuration_without_its_comments_is_read() -> None:
    config = compose("private", ["seed=1"], root=ROOT)
    body = "\n".join(config.to_yaml().split("\n")[2:])
    again = Config.from_yaml(body)
    assert (again.scenario, again.overrides, again.values) == ("private", (), config.values)


def test_hash_is_of_what_decides_the_result() -> None:
    first = compose("private", root=ROOT)
    assert len(first.hash) == 64
    assert int(first.hash, 16) >= 0
    same = ["output.root=x", "checkpoint.every=3", "rounds=7", "privacy.sigma=3"]
    assert compose("private", same, root=ROOT).hash == first.hash
    other = [["seed=1"], ["privacy.sigma=3.1"], ["evaluation.every=2"], ["strategy=fedprox"]]
    hashes = {compose("private", change, root=ROOT).hash for change in other}
    assert len(hashes | {first.hash}) == 5


def test_hash_does_not_depend_on_the_process() -> None:
    code = (
        "import sys; from pathlib import Path; from fedsim.config import compose;"
        f"print(compose('private', root=Path({str(ROOT)!r})).hash)"
    )
    path = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}; "
    run = subprocess.run(
        [sys.executable, "-c", path + code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == compose("private", root=ROOT).hash


def test_values_are_plain() -> None:
    assert json.loads(json.dumps(values("private"))) == values("private")


def test_hydra_is_left_as_it_was() -> None:
    compose("base", root=ROOT)
    assert not GlobalHydra.instance().is_initialized()
    refusal("base", "strategy=nope")
    refusal("base", "rounds=0")
    assert not GlobalHydra.instance().is_initialized()
    assert values("base") == values("base")


def test_compose_inside_somebody_elses_hydra_application() -> None:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(config_dir=str(ROOT), version_base=None):
        assert values("private")["rounds"] == 7
        assert hydra_compose("private").rounds == 7
