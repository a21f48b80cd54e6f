"""From the `_target_` of a part to an object: what may be named, and what keys it takes.

A scenario may come from anyone, so a target is looked up in an allow-list, never merely imported:
our own packages, Flower's strategies, torch.nn's modules, and the packages under `plugins:`. The
object must also be *defined* there, so that no walk through an imported module reaches `os.system`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

from fedsim.errors import ConfigError, did_you_mean

Target = Callable[..., Any]

OWN = ("fedsim.", "strategies.", "privacy.")
STRATEGIES = "flwr.serverapp.strategy."
MODULES = "torch.nn."

SPECIAL = ("_target_", "_args_")
"""Keys of a part that are not fields: what to make, and its positional arguments."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)+")
_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)*\.?")
# What fedsim itself stands on is no plugin: it can load, run or delete anything when called freely.
_LIBRARIES = sys.stdlib_module_names | {
    *("flwr", "hydra", "matplotlib", "networkx", "numpy", "omegaconf", "opacus", "pip", "ray"),
    *("safetensors", "scipy", "sklearn", "torch", "yaml"),
}


class KeyedError(ConfigError):
    """A `ConfigError` that knows which key it is about; `fedsim.config` adds where that was set.

    Args:
        path: The key, from the top of the scenario.
        reason: What is wrong with it.
        verb: What a file that holds the key did to it.
    """

    def __init__(self, path: str, reason: str, verb: str = "set") -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.verb = verb


class UnknownKeyError(KeyedError):
    """A key that nothing reads."""

    def __init__(self, path: str, known: Sequence[str], owner: str) -> None:
        self.parent, _, self.word = path.rpartition(".")
        listed = ", ".join(known) or "none"
        super().__init__(path, f"unknown key; keys of {owner}: {listed}")
        self.known = tuple(known)
        self.owner = owner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One argument of a target.

    Attributes:
        annotation: Its type, `Annotated` kept; `Any` where none is declared.
        default: Its default; meaningless where `required`.
        required: Whether it has none.
        description: From the target's docstring, or empty.
    """

    annotation: Any
    default: Any
    required: bool
    description: str


def plugin_prefixes(plugins: Sequence[str]) -> tuple[str, ...]:
    """Return `plugins` as prefixes that end in a dot.

    Raises:
        KeyedError: One is not a dotted name, or names Python's library or a dependency of ours.
    """
    prefixes = []
    for plugin in plugins:
        if not isinstance(plugin, str) or not _PREFIX.fullmatch(plugin):
            raise KeyedError(
                "plugins", f"{plugin!r} is not a package prefix; write one such as 'mylab.'"
            )
        if plugin.split(".")[0] in _LIBRARIES:
            raise KeyedError(
                "plugins",
                f"{plugin!r} is a general library, not a plugin; write a class in a package of "
                "your own that uses it, and list that package",
            )
        prefixes.append(plugin.rstrip(".") + ".")
    return tuple(prefixes)


def locate(target: str, plugins: Sequence[str] = (), path: str = "_target_") -> Target:
    """Return the class (or a plugin's function) that a `_target_` names.

    Args:
        target: Dotted path, e.g. `"fedsim.partition.iid.Iid"`.
        plugins: Further allowed package prefixes.
        path: The key that holds `target`, for messages.

    Raises:
        KeyedError: It is not allowed, does not exist, or is not something that can be made.
    """
    if not isinstance(target, str) or not _NAME.fullmatch(target):
        raise KeyedError(path, f"{target!r} is not a dotted path of public names")
    extra = plugin_prefixes(plugins)
    allowed = (*OWN, STRATEGIES, MODULES, *extra)
    prefix = next((p for p in allowed if target.startswith(p)), None)
    if prefix is None:
        raise KeyedError(
            path,
            f"{target!r} is not allowed; allowed prefixes: {', '.join(allowed)} "
            "(to use code of your own, list its package under 'plugins:')",
        )
    module_name, _, name = target.rpartition(".")
    module = _import(module_name, path)
    found = getattr(module, name, None)
    if not isinstance(found, (type, FunctionType)):
        near = did_you_mean(name, _public(module))
        raise KeyedError(path, f"no class {name!r} in {module_name}{near}")
    _check_allowed(found, prefix, extra, target, path)
    return found


def _import(name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise KeyedError(path, f"cannot import {name!r}: {error}") from error
        parent, _, word = error.name.rpartition(".")
        near = did_you_mean(word, _submodules(parent)) if parent else ""
        hint = "" if parent else "; is it installed, or its folder on PYTHONPATH?"
        raise KeyedError(path, f"no module {error.name!r}{near}{hint}") from None
    except Exception as error:  # any code may run, and fail, when a module is imported
        reason = f"cannot import {name!r}: {type(error).__name__}: {error}"
        raise KeyedError(path, reason) from error


def _submodules(package: str) -> list[str]:
    return [m.name for m in pkgutil.iter_modules(getattr(sys.modules[package], "__path__", ()))]


def _public(module: ModuleType) -> list[str]:
    return [n for n, v in vars(module).items() if isinstance(v, type) and not n.startswith("_")]


def _check_allowed(
    found: type | FunctionType, prefix: str, extra: Sequence[str], target: str, path: str
) -> None:
    home = f"{found.__module__}."
    if prefix == STRATEGIES:
        from flwr.serverapp.strategy import Strategy

        allowed, kind = _is_a(found, Strategy), "a Strategy"
    elif prefix == MODULES:
        from torch.nn import Module

        allowed, kind = _is_a(found, Module), "a torch.nn.Module"
    elif prefix in OWN:
        allowed, kind = isinstance(found, type) and home.startswith(OWN), "a class of fedsim"
    else:
        allowed, kind = home.startswith(tuple(extra)), "defined in a package under 'plugins:'"
    if not allowed:
        raise KeyedError(path, f"{target!r} (of {found.__module__}) is not {kind}")
    if inspect.isabstract(found):
        raise KeyedError(path, f"{target!r} is abstract; name one of its subclasses")


def _is_a(found: type | FunctionType, base: type) -> bool:
    return isinstance(found, type) and issubclass(found, base)


def fields_of(target: Target) -> dict[str, Field]:
    """Return what a target takes by keyword, in its own order."""
    return _fields_of(target)


@cache
def _fields_of(target: Target) -> dict[str, Field]:
    text = _descriptions(target)
    if isinstance(target, type) and dataclasses.is_dataclass(target):
        hints = _hints(target)
        return {
            f.name: _dataclass_field(f, hints.get(f.name, Any), text.get(f.name, ""))
            for f in dataclasses.fields(target)
            if f.init
        }
    init = inspect.getattr_static(target, "__init__") if isinstance(target, type) else target
    hints = _hints(init)
    return {
        p.name: Field(
            annotation=hints.get(p.name, Any),
            default=p.default,
            required=p.default is p.empty,
            description=text.get(p.name, ""),
        )
        for p in signature(target).parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def signature(target: Target) -> inspect.Signature:
    """Return a target's call signature; one that hides it takes anything."""
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        return inspect.signature(lambda *args, **kwargs: None)


def takes_any_key(target: Target) -> bool:
    """Return whether a target has `**kwargs`, so that its keys cannot be checked."""
    parameters = signature(target).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters)


def _dataclass_field(field: dataclasses.Field[Any], annotation: Any, text: str) -> Field:
    default, required = field.default, False
    if default is dataclasses.MISSING:
        required = field.default_factory is dataclasses.MISSING
        default = None if required else typing.cast(Any, field.default_factory)()
    return Field(annotation=annotation, default=default, required=required, description=text)


def _hints(owner: Any) -> dict[str, Any]:
    # A plugin may import a type for the type checker only; its fields are then taken unchecked.
    try:
        return typing.get_type_hints(owner, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _descriptions(target: Target) -> dict[str, str]:
    """Read field descriptions from Google-style and NumPy-style docstrings, bases first."""
    found: dict[str, str] = {}
    owners = reversed(inspect.getmro(target)) if isinstance(target, type) else (target,)
    for owner in owners:
        doc = inspect.cleandoc(owner.__doc__ or "")
        google = re.search(r"^(?:Attributes|Args):\n((?:(?: +.*)?(?:\n|$))+)", doc, re.M)
        numpy = re.search(r"^Parameters\n-+\n([\s\S]*)", doc, re.M)
        items: list[tuple[str, str]] = []
        if google:
            items += re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {5,}.*)*)", google[1], re.M)
        if numpy:
            items += re.findall(r"^(\w+) : .*\n((?: {4,}.*(?:\n|$))+)", numpy[1], re.M)
        for names, text in items:
            found.update(dict.fromkeys(names.replace(" ", "").split(","), " ".join(text.split())))
    return found


def instantiate(spec: Any, path: str, plugins: Sequence[str] = ()) -> Any:
    """Make the object that a part describes, nested parts and `_args_` first.

    Args:
        spec: Plain containers; a mapping with `_target_` becomes an object, all else stays.
        path: Where in the scenario this is, for messages.
        plugins: Further allowed package prefixes.

    Raises:
        ConfigError: A target is refused, or does not accept its arguments.
    """
    if isinstance(spec, list):
        return [instantiate(item, f"{path}[{i}]", plugins) for i, item in enumerate(spec)]
    if not isinstance(spec, Mapping):
        return spec
    made = {
        key: instantiate(value, f"{path}.{key}", plugins)
        for key, value in spec.items()
        if key != "_target_"
    }
    if "_target_" not in spec:
        return made
    target = locate(spec["_target_"], plugins, f"{path}._target_")
    args = made.pop("_args_", [])
    if not isinstance(args, list):
        raise KeyedError(f"{path}._args_", f"{args!r} is not allowed; expected a list")
    try:
        return target(*args, **made)
    except ConfigError as error:
        raise _at(path, error, target) from error
    except Exception as error:  # a constructor may raise anything; the user needs its reason
        reason = f"{spec['_target_']} refused its arguments: {type(error).__name__}: {error}"
        raise KeyedError(path, reason) from error


def _at(path: str, error: ConfigError, target: Target) -> KeyedError:
    """Return a part's own error with the path in front; parts begin theirs with the field."""
    field, _, reason = str(error).partition(": ")
    if reason and re.split(r"[.\[]", field)[0] in fields_of(target):
        return KeyedError(f"{path}.{field}", reason)
    return KeyedError(path, str(error))
