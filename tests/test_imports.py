"""The arrows between packages: strategies -> fedsim, privacy; privacy -> fedsim; no others."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "fedsim": {"fedsim"},
    "privacy": {"privacy", "fedsim"},
    "strategies": {"strategies", "privacy", "fedsim"},
}
PUBLIC_FLOWER = {"flwr", "flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_those_below_it(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        ours = {name.split(".")[0] for name in imported(file)} & set(ALLOWED)
        assert ours <= ALLOWED[package], file


def test_flowers_private_modules_are_imported_in_one_file() -> None:
    users = {
        file.name
        for package in ALLOWED
        for file in (ROOT / package).rglob("*.py")
        if {name for name in imported(file) if name.split(".")[0] == "flwr"} - PUBLIC_FLOWER
    }
    assert users == {"flwr_compat.py"}


def test_no_global_generator_and_no_pickle() -> None:
    """`torch.manual_seed` only inside `fork_rng`; Flower's sampling is seeded and put back."""
    for package in ALLOWED:
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text()
            assert "pickle" not in imported(file), file
            assert "np.random.seed" not in text and "numpy.random.seed" not in text, file
            assert "torch.manual_seed(" not in text or "fork_rng" in text, file
            assert "allow_pickle=True" not in text and "weights_only=False" not in text, file
