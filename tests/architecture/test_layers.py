"""Imports go one way: backends <- tools <- agentenv <- environments."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = [
    ("agentenv_backends", ROOT / "backends/agentenv_backends"),
    ("agentenv_tools", ROOT / "tools/agentenv_tools"),
    ("agentenv", ROOT / "agentenv"),
    ("agentenv_environments", ROOT / "environments/agentenv_environments"),
]
NAMES = [name for name, _ in LAYERS]


def imported_packages(file: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules.add(node.module)
    return {module.split(".")[0] for module in modules}


@pytest.mark.parametrize(("name", "folder"), LAYERS, ids=NAMES)
def test_a_layer_imports_only_itself_and_the_layers_below(name: str, folder: Path):
    files = list(folder.rglob("*.py"))
    assert files
    above = set(NAMES[NAMES.index(name) + 1 :])
    for file in files:
        assert not imported_packages(file) & above, (
            f"{file.relative_to(ROOT)} imports a layer above"
        )


def test_sandboxd_needs_nothing_but_the_standard_library():
    for file in (ROOT / "backends/agentenv_backends/sandboxd").glob("*.py"):
        foreign = imported_packages(file) - set(sys.stdlib_module_names) - {"agentenv_backends"}
        assert not foreign, f"{file.name} imports {foreign}"


def test_the_four_source_roots_hold_one_package_each():
    for folder in ("backends", "tools", "environments"):
        assert not (ROOT / folder / "__init__.py").exists()
        packages = [p.name for p in (ROOT / folder).iterdir() if (p / "py.typed").exists()]
        assert packages == [f"agentenv_{folder}"]
