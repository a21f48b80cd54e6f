"""Random scenarios and overrides end in a checked configuration or in one `ConfigError`.

`FEDSIM_FUZZ` sets the number of examples per test (200 by default, 300 in CI). Hydra's own part of
composing costs 0.07 s, so most examples start from trees that were composed once.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedsim.catalog import GROUPS
from fedsim.config import composition as config
from fedsim.config import overrides, sources
from fedsim.config.composition import Config, assemble, build_part, compose
from fedsim.errors import ConfigError

TOY = Path(__file__).parents[1] / "assets" / "toylab"
ROOT = TOY / "scenarios"
EXAMPLES = int(os.environ.get("FEDSIM_FUZZ", "200"))
FAST = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SLOW = settings(FAST, max_examples=max(10, EXAMPLES // 20))

KEYS = (
    *("name", "seed", "rounds", "device", "precision", "plugins", "evaluation", "output.root"),
    *("evaluation.every", "evaluation.clients", "checkpoint.keep", "admission.timeout_s"),
    *("data.size", "data.root", "partition.num_clients", "partition.alpha", "partition.low"),
    *("partition.weights", "partition.weights.0", "partition.names", "partition.names.x"),
    *("model.hidden", "model.activation", "model._args_", "strategy.fraction_train"),
    *("strategy.proximal_mu", "client.lr", "client.optimizer", "privacy.sigma"),
    *("privacy.accountant", "privacy.accountant.orders", "roudns", "a.b.c", "hydra.run.dir"),
    *(f"{group}._target_" for group in GROUPS),
)
TARGETS = (
    *("toylab.Data", "toylab.Skewed", "toylab.Broken", "toylab.Tripwire", "toylab.tripwire"),
    *("toylab.system", "toylab._Private", "toylab", "toylab.", "fedsim.errors.ConfigError"),
    *("fedsim.errors.difflib.SequenceMatcher", "fedsim.parts.Range", "fedsim.nope.Nope"),
    *("torch.nn.Linear", "torch.nn.Sequential", "torch.nn.functional.relu", "torch.load"),
    *("flwr.serverapp.strategy.Krum", "flwr.serverapp.strategy.Strategy", "os.system"),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 200),
    st.sampled_from([0.0, 0.5, 1.0, -1.0, 1e308, math.inf, math.nan, 2**63, 2**64, -(2**70)]),
    st.sampled_from(["", "none", "cohort", "sgd", "cpu", "cuda:1", "float64", "???", "${rounds}"]),
    st.sampled_from(["${client.lr}", "${nope}", "${", "$${a}", "${oc.env:HOME}", "\\${a}", "1e5"]),
    st.sampled_from(
        ["${oc.decode:'{_target_: os.system}'}", "${oc.create:{a:1}}", "${.x}", "\ud800"]
    ),
    st.sampled_from(TARGETS),
    st.text(max_size=6),
)
NAMES = st.one_of(
    st.sampled_from(["_target_", "_args_", "x", "lr", "alpha", "orders", "make", "every", ""]),
    st.text(max_size=4),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(NAMES, inner, max_size=3)
        | st.dictionaries(st.one_of(st.integers(), st.none(), st.booleans()), inner, max_size=2)
        | st.builds(lambda t, x: {"_target_": t, "x": x}, st.sampled_from(TARGETS), inner)
    ),
    max_leaves=6,
)
VALUE_TEXTS = st.one_of(
    st.sampled_from(["1", "0", "-1", "1e9", "0.5", "null", "true", "nan", "[1,2]", "[]", "{}", ""]),
    st.sampled_from(["a,b", "range(1,3)", "choice(1,2)", "interval(0,1)", "glob(*)", "int(x)"]),
    st.sampled_from(["{a:1,b:[2]}", "{_target_:os.system}", "${rounds}", "'${'", "'x", "[[", "]"]),
    st.sampled_from(
        ["str(1)", "shuffle(1,2)", "sort(2,1)", "extend_list(1)", "json_str(a)", "9" * 5000]
    ),
    st.sampled_from(["{_target_:toylab.Accountant,orders:[1]}", "{every:3}", "'a b'", "\\", "a=b"]),
    st.sampled_from(["[" * 200 + "1" + "]" * 200, "{1:2,a:3}", "{null:1}", "0x10", "1_000"]),
    st.sampled_from(TARGETS),
    st.text(max_size=8),
)
PLAUSIBLE = st.sampled_from(
    [
        *(
            "rounds=3",
            "+seed=7",
            "++device=cpu",
            "precision=float64",
            "evaluation.every=2",
            "~seed",
        ),
        *("evaluation={every:3,clients:all}", "rounds=${partition.num_clients}", "name='a-b'"),
        *("partition.num_clients=1e2", "data.root=null", "data.size='${rounds}'", "~data.size"),
        *("participation.per_round=3", "client.lr=1", "client.optimizer=momentum", "output.root=x"),
        *("partition._target_=toylab.Skewed", "partition.alpha=0.3", "checkpoint.keep=1"),
        *("model._target_=torch.nn.Linear", "model.in_features=3", "model.out_features=3"),
        *("strategy.fraction_train=0.5", "engine.chunk=4", "plugins=[toylab,mylab.]"),
    ]
)
OVERRIDES = st.one_of(
    PLAUSIBLE,
    st.builds(
        "{}{}={}".format,
        st.sampled_from(["", "", "", "+", "++"]),
        st.sampled_from(KEYS),
        VALUE_TEXTS,
    ),
    st.builds("~{}".format, st.sampled_from(KEYS)),
    st.builds("{}={}".format, st.text(max_size=8), VALUE_TEXTS) | st.text(max_size=12),
)


@pytest.fixture(autouse=True)
def _toylab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOY))


@cache
def _tree(scenario: str, choices: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    return sources.load(sources.find(scenario, ROOT), dict(choices))


@cache
def _text(scenario: str, choices: tuple[tuple[str, str], ...]) -> str:
    return Config("x", (), assemble(_tree(scenario, choices), (), lambda path: None)).to_yaml()


STARTS = [
    (scenario, choices)
    for scenario, choices in itertools.product(
        ("base", "private", "linked"),
        ((), (("privacy", "none"),), (("model", "chain"), ("strategy", "fedprox"))),
    )
]


def _config_or_error(make: Callable[[], Config]) -> Config | None:
    """Return a configuration that survives its own file, or None after one clear error."""
    try:
        made = make()
    except ConfigError as error:
        assert type(error) is ConfigError, "every error leaves with the place that caused it"
        assert str(error).strip()
        assert "Traceback" not in str(error)
        return None
    again = Config.from_yaml(made.to_yaml())
    assert again.hash == made.hash
    assert again.settings.rounds == made.settings.rounds >= 1
    for group in GROUPS:
        try:
            build_part(made, group)
        except ConfigError:
            assert group in ("model", "strategy"), (
                "a part that was made while checking is made again"
            )
    return made


def test_starts_are_valid() -> None:
    """Without this, every fuzzed example could be an error for one and the same reason."""
    made = []
    for scenario, choices in STARTS:
        tree = _tree(scenario, choices)
        made.append(
            _config_or_error(lambda t=tree: Config("x", (), assemble(t, (), lambda path: None)))  # type: ignore[misc]
        )
    # `private` sets privacy.sigma, which privacy=none refuses.
    assert [m is not None for m in made] == [True, True, True, True, False, True, True, True, True]


@FAST
@given(
    start=st.sampled_from(STARTS),
    texts=st.tuples(st.lists(PLAUSIBLE, max_size=2), st.lists(OVERRIDES, max_size=1)).map(
        lambda pair: [*pair[0], *pair[1]]
    ),
)
def test_overrides(start: tuple[str, Any], texts: list[str]) -> None:
    def make() -> Config:
        choices, changes = overrides.parse(texts)
        if choices:
            raise ConfigError("composed anew; test_compose does")
        return Config("x", tuple(texts), assemble(_tree(*start), changes, lambda path: None))

    _config_or_error(make)


@example(start=("base", ()), changes=[("model.activation", "\x85")])  # YAML's third line end
@settings(FAST, max_examples=max(10, EXAMPLES // 4))
@given(
    start=st.sampled_from(STARTS),
    changes=st.lists(
        st.tuples(st.sampled_from(KEYS[:28]), VALUES | SCALARS), min_size=1, max_size=2
    ),
)
def test_trees(start: tuple[str, Any], changes: list[tuple[str, Any]]) -> None:
    """Any plain value, at any key, as a YAML file could have set it."""
    tree = config.specs.plain(_tree(*start))
    for key, value in changes:
        node, names = tree, key.split(".")
        for name in names[:-1]:
            node = node[name] if isinstance(node.get(name), dict) else node.setdefault(name, {})
            if not isinstance(node, dict):
                return
        node[names[-1]] = value
    _config_or_error(lambda: Config("x", (), assemble(tree, (), lambda path: "x.yaml")))


@FAST
@given(
    text=st.one_of(st.text(), st.builds(str, VALUES), st.binary().map(lambda b: b.decode("latin1")))
)
def test_files(text: str) -> None:
    _config_or_error(lambda: Config.from_yaml(text))


@settings(FAST, max_examples=max(10, EXAMPLES // 4))
@given(
    start=st.sampled_from([STARTS[0], STARTS[2], STARTS[3]]),
    at=st.floats(0, 1),
    length=st.integers(0, 8),
    new=st.text(max_size=4)
    | st.sampled_from(["\n", ": ", "- ", "  ", "{", "'", "0", "&a ", "*a", "!"]),
)
def test_damaged_files(start: tuple[str, Any], at: float, length: int, new: str) -> None:
    text = _text(*start)
    cut = int(at * len(text))
    _config_or_error(lambda: Config.from_yaml(text[:cut] + new + text[cut + length :]))


@SLOW
@given(
    scenario=st.one_of(st.sampled_from(["base", "private", "linked"]), st.text(max_size=8)),
    texts=st.lists(
        st.one_of(
            OVERRIDES,
            st.builds("{}={}".format, st.sampled_from(GROUPS), st.text(max_size=4)),
            st.sampled_from(
                ["privacy=none", "privacy=gaussian", "partition=skewed", "model=chain"]
            ),
        ),
        max_size=3,
    ),
)
def test_compose(scenario: str, texts: list[str]) -> None:
    _config_or_error(lambda: compose(scenario, texts, root=ROOT))


DEFAULTS = st.recursive(
    st.one_of(
        st.none(),
        st.sampled_from(
            ["base", "_self_", "s", "private", "nope", "../x", "optional nope", "hydra"]
        ),
        st.dictionaries(
            st.sampled_from(
                [
                    "override /privacy",
                    "override /data",
                    "data",
                    "/x",
                    "override hydra/launcher",
                    "a@b",
                ]
            ),
            st.sampled_from(["none", "toy", "nope", "../../base", None, "???", "${rounds}", "x/y"]),
            max_size=2,
        ),
        SCALARS,
    ),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=4,
)


@SLOW
@given(
    defaults=st.lists(DEFAULTS, max_size=3) | DEFAULTS,
    rest=st.dictionaries(NAMES, VALUES, max_size=1),
)
def test_scenario_files(defaults: Any, rest: dict[str, Any], tmp_path: Path) -> None:
    import yaml

    file = tmp_path / "s.yaml"
    file.write_bytes(
        yaml.safe_dump({"defaults": defaults, **rest}).encode("utf-8", "surrogatepass")
    )
    _config_or_error(lambda: compose(str(file), root=ROOT))


@SLOW
@given(content=st.binary(max_size=200))
def test_binary_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(content)
    _config_or_error(lambda: compose(str(tmp_path / "s.yaml"), root=ROOT))


def test_nothing_hostile_was_imported() -> None:
    assert "antigravity" not in sys.modules
