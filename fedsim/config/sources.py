"""The files behind a scenario: finding them, composing them with Hydra, and who set which key.

The scenario is Hydra's *primary* config: as a group listed before `_self_` it would be ignored
without a word. A scenario outside the packaged folder has its own folder searched first and ours
second, so that it extends `base` and uses our parts as well as its own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import OmegaConf

from fedsim import catalog
from fedsim.config.overrides import OPTION
from fedsim.errors import ConfigError, did_you_mean

_MAX_BYTES = 1_000_000
_MAX_NODES = 100_000


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where one scenario is read from.

    Attributes:
        file: The scenario's own file.
        folders: Where `base`, parts and other scenarios are looked for, first match wins.
        keys: Top-level keys that the scenario's own file sets.
    """

    file: Path
    folders: tuple[Path, ...]
    keys: frozenset[str]

    def show(self, file: Path) -> str:
        """Return a short name of a file, as a user would type it."""
        root = self.folders[-1]
        if file.is_relative_to(root):
            return (Path(root.name) / file.relative_to(root)).as_posix()
        here = Path.cwd()
        return str(file.relative_to(here) if file.is_relative_to(here) else file)

    def options(self, group: str) -> list[str]:
        """Return the names of the parts that a group offers here."""
        found = {entry.name for root in self.folders for entry in catalog.entries(group, root)}
        return sorted(found)


def find(scenario: str, root: Path | None = None) -> Source:
    """Find a scenario, and read its own file once to check that it is one.

    Args:
        scenario: The name of a scenario in `root`, or a path (with a slash, or ending in `.yaml`).
        root: The scenarios folder; the packaged one by default.

    Raises:
        ConfigError: There is no such file, or it is not a mapping in YAML.
    """
    root = (root or catalog.ROOT).resolve()
    if "/" in scenario or "\\" in scenario or scenario.endswith((".yaml", ".yml")):
        file = _resolve(scenario)
        folders = (root,) if file.parent == root else (file.parent, root)
    else:
        file, folders = root / f"{scenario}.yaml", (root,)
        if not OPTION.fullmatch(scenario.replace("-", "_")) or not file.is_file():
            raise ConfigError(_no_scenario(scenario, root))
    content = _read(file)
    defaults = content.get("defaults")
    if isinstance(defaults, list) and "_self_" in defaults[:-1]:
        raise ConfigError(f"{file}: '_self_' must be the last of the defaults, or they override it")
    return Source(file=file, folders=folders, keys=frozenset(map(str, content)))


def _no_scenario(scenario: str, root: Path) -> str:
    """Say what was probably meant: a scenario's name, or the beginning of one, or a part's name."""
    names = [entry.name for entry in catalog.scenarios(root)]
    longer = [name for name in names if scenario and name.startswith(f"{scenario}_")]
    for group in ("strategy", *catalog.GROUPS):
        if scenario in {entry.name for entry in catalog.entries(group, root)}:
            near = f"; it is a {group}: scenario=NAME {group}={scenario}"
            near += f", or scenario={' or '.join(longer)}" if longer else ""
            return f"no scenario {scenario!r}{near}"
    near = did_you_mean(scenario, names) or f"; there are: {', '.join(longer or names) or 'none'}"
    return f"no scenario {scenario!r}{near} (or give the path of a .yaml file)"


def _resolve(scenario: str) -> Path:
    try:
        file = Path(scenario).expanduser().resolve()
        exists, folder = file.is_file(), file.is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"scenario {scenario[:200]!r}: {error}") from error
    if not exists:
        kind = "is a folder, not a file" if folder else "does not exist"
        ours = file.stem in {entry.name for entry in catalog.scenarios()}
        hint = f"ours is scenario={file.stem}" if ours else "give the path of a .yaml file"
        raise ConfigError(f"scenario {scenario!r} {kind}; {hint}")
    if file.suffix != ".yaml":
        raise ConfigError(f"scenario {scenario!r}: the file's name must end in .yaml")
    return file


def _read(file: Path) -> Mapping[Any, Any]:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{file}: too large for a scenario (more than {_MAX_BYTES} bytes)")
        return parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not a text file in UTF-8 ({error.reason})") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error


def parse_yaml(text: str, label: str) -> dict[Any, Any]:
    """Return the mapping that a YAML text holds; `${...}` and `???` stay as they are.

    Raises:
        ConfigError: It is not YAML, not a mapping, or so nested that only an attack would be. The
            message starts with `label`.
    """
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{label}: expected a mapping of keys to values")
        if _count(node, {}) > _MAX_NODES:
            raise ConfigError(f"{label}: its aliases expand to more than {_MAX_NODES} values")
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{label}{line}: not valid YAML: {error.problem}") from error
    # OmegaConf and PyYAML let many kinds through: bad UTF-8, odd keys, unknown types, deep nesting.
    except Exception as error:
        raise ConfigError(f"{label}: not valid YAML: {_brief(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{label}: expected a mapping of keys to values")
    if "hydra" in content:
        raise ConfigError(f"{label}: key 'hydra' is not allowed; fedsim sets Hydra up itself")
    return content


def _count(node: yaml.Node | None, seen: dict[int, float]) -> float:
    """Count the values that a YAML node has once its aliases are written out."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in seen:
        seen[id(node)] = math.inf  # what a node that contains itself would expand to
        pairs = node.value if isinstance(node, yaml.MappingNode) else ((n,) for n in node.value)
        seen[id(node)] = 1 + sum(_count(child, seen) for pair in pairs for child in pair)
    return seen[id(node)]


def load(source: Source, choices: Mapping[str, str]) -> dict[str, Any]:
    """Compose a scenario with the chosen parts.

    Args:
        source: From `find`.
        choices: {group: name of a part}; replaces what the scenario's files choose.

    Returns:
        Plain containers, with `${...}` and `???` as written.

    Raises:
        ConfigError: A choice does not exist, or the files do not compose.
    """
    for group, option in choices.items():
        known = source.options(group)
        if option not in known:
            raise ConfigError(_no_option(group, option, known))
    try:
        with _hydra(source.folders[0]):
            overrides = _overrides(source, choices)
            config = compose(source.file.name, overrides, return_hydra_config=True)
            chosen = OmegaConf.to_container(config.hydra.runtime.choices)
            tree = OmegaConf.to_container(config, resolve=False)
    except MissingConfigException as error:
        group, _, option = str(error.missing_cfg_file or "").rpartition("/")
        near = _no_option(group or "scenario", option, error.options or [])
        raise ConfigError(f"{source.show(source.file)}: {near}") from error
    # Hydra meets malformed files with assertions and attribute errors as well as its own.
    except Exception as error:
        raise ConfigError(f"{source.show(source.file)}: {_brief(error)}") from error
    if not isinstance(tree, dict) or not isinstance(chosen, dict):
        raise ConfigError(f"{source.show(source.file)}: expected a mapping of keys to values")
    for group in catalog.GROUPS:
        name = chosen.get(group)
        if name is not None and not OPTION.fullmatch(str(name)):
            raise ConfigError(f"{source.show(source.file)}: {group}: {name!r} is not a name")
    tree.pop("hydra", None)
    return {str(key): value for key, value in tree.items()}


def origin(source: Source, choices: Mapping[str, str], path: str) -> str | None:
    """Return the file that sets a key, or None; costs as much as `load`, so for messages only."""
    with _hydra(source.folders[0]):
        loader = GlobalHydra.instance().config_loader()
        overrides = _overrides(source, choices)
        used = loader.compute_defaults_list(source.file.name, overrides, RunMode.RUN).defaults
    for default in reversed(used):
        name = default.config_path or ""
        if name.startswith("hydra/"):
            continue
        name = name if name.endswith(".yaml") else f"{name}.yaml"
        file = next((f for root in source.folders if (f := root / name).is_file()), None)
        package = [key for key in (default.package or "").split(".") if key]
        if file is not None and _sets(file, package, path.split(".")):
            return source.show(file)
    return None


def _sets(file: Path, package: Sequence[str], keys: Sequence[str]) -> bool:
    if list(keys[: len(package)]) != list(package):
        return False
    node: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    for key in keys[len(package) :]:
        if not isinstance(node, dict) or key not in node:
            return False
        node = node[key]
    return True


def _overrides(source: Source, choices: Mapping[str, str]) -> list[str]:
    # Always given, so that a search path in a file of the scenario, which may import, is not used.
    paths = [QuotedString(f"file://{f}", Quote.single).with_quotes() for f in source.folders[1:]]
    # Quoted, so that a part may be called `on` or `1e3`.
    chosen = [f"{group}='{option}'" for group, option in choices.items()]
    return [f"hydra.searchpath=[{','.join(paths)}]", *chosen]


@contextmanager
def _hydra(folder: Path) -> Iterator[None]:
    """Initialise Hydra for one call, and leave its global state as it was."""
    state = GlobalHydra.instance()
    outer, state.hydra = state.hydra, None
    try:
        with warnings.catch_warnings():
            # Hydra warns of a missing `_self_`, and then puts it last, as we ask for.
            warnings.simplefilter("ignore", UserWarning)
            with initialize_config_dir(config_dir=str(folder), version_base=None):
                yield
    finally:
        GlobalHydra.instance().hydra = outer


def _no_option(group: str, option: str, known: Sequence[str]) -> str:
    if near := did_you_mean(option, known):
        return f"no {group} called {option!r}{near} (fedsim list {group} shows all)"
    return f"no {group} called {option!r}; available: {', '.join(known) or 'none'}"


def _brief(error: Exception) -> str:
    text = " ".join(str(error or error.__cause__).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]}..."
