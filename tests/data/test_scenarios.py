"""The YAML of every data part: its target exists, and it shows every field with its default."""

import dataclasses
import importlib
from pathlib import Path

import pytest
import yaml

import fedsim.data
from fedsim.data import DataPart

FOLDER = Path(fedsim.data.__file__).parents[2] / "scenarios" / "data"
FILES = sorted(FOLDER.glob("*.yaml"))
# Fields that say which data set it is; all others must be at their defaults.
NAMES = {"name", "file"}


def part_of(file):
    fields = yaml.safe_load(file.read_text())
    module, _, name = fields.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), name), fields


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_fields_are_complete_and_at_their_defaults(file):
    target, fields = part_of(file)
    assert issubclass(target, DataPart)
    assert list(fields) == [field.name for field in dataclasses.fields(target)]
    default = target()
    if "source" in fields:  # a part that changes another one
        inner, settings = fields["source"].pop("_target_"), fields["source"]
        module, _, name = inner.rpartition(".")
        fields["source"] = getattr(importlib.import_module(module), name)(**settings)
    part = target(**fields)
    if "source" in fields and part.source != default.source:
        return  # one of several files for the same part, which sets what its source needs
    for name in set(fields) - NAMES:
        assert getattr(part, name) == getattr(default, name), name
    assert file.read_text().startswith("# ")


def test_every_part_has_a_file():
    modules = [p.stem for p in Path(fedsim.data.__file__).parent.glob("*.py") if p.stem[0] != "_"]
    parts = {
        item
        for module in modules
        for item in vars(importlib.import_module(f"fedsim.data.{module}")).values()
        if isinstance(item, type) and issubclass(item, DataPart) and item is not DataPart
    }
    assert parts == {part_of(file)[0] for file in FILES}
