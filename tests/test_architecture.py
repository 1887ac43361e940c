"""Design decisions as tests: layers point down, light modules stay light, the library never prints."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "peftlab"
FILES = sorted(PACKAGE.rglob("*.py"))

# Each part may import those below it, and its own.
LAYERS = [
    {"cli"},
    {"bench"},
    {"interop"},
    {"tuning"},
    {"runtime"},
    {"store"},
    {"methods"},
    {"base"},
    {"tasks"},
    {"data"},
    {"recipe"},
    {"errors", "imports"},
]
HEAVY = {"torch", "transformers", "peft", "datasets", "matplotlib", "seqeval", "sklearn", "numpy"}
LIGHT = [
    "cli",
    "errors",
    "imports",
    "recipe",
    "data",
    "store",
    "base",
    "tuning/__init__",
    "tuning/tune",
    "tuning/progress",
]
LIGHT_BENCH = [f"bench/{name}" for name in ("__init__", "environment", "processes", "summary", "step_time", "tuning")]
LIGHT_TASKS = [
    "tasks/__init__",
    "tasks/registry",
    "tasks/task",
    "tasks/token_classification",
    "tasks/inputs/words",
    "tasks/labels/tag_schemes",
]


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(part: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if part in layer)


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def imports_at_top(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(ast.Module([node], []))


def is_typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


@pytest.mark.parametrize("file", [f for f in FILES if part_of(f) not in ("__init__", "__main__")], ids=str)
def test_layers_import_only_downward(file):
    tree = ast.parse(file.read_text(encoding="utf8"))
    tree.body = [node for node in tree.body if not is_typing_only(node)]
    mine = part_of(file)
    for module in imports(tree):
        if module.startswith("peftlab."):
            other = module.split(".")[1]
            assert other == mine or level(other) > level(mine), f"{file.name} imports {module}"


@pytest.mark.parametrize("name", [*LIGHT, *LIGHT_TASKS, *LIGHT_BENCH])
def test_light_modules_import_nothing_heavy_at_the_top(name):
    chosen = [f for f in FILES if str(f.relative_to(PACKAGE)).removesuffix(".py").startswith(name)]
    assert chosen
    for file in chosen:
        heavy = {module.split(".")[0] for module in imports_at_top(ast.parse(file.read_text(encoding="utf8")))} & HEAVY
        assert not heavy, f"{file} imports {heavy}"


def test_command_line_and_recipe_load_without_torch():
    parts = "peftlab.cli, peftlab.bench, peftlab.tuning, peftlab.store"
    code = f"import sys, {parts}; print(sorted({{m.split('.')[0] for m in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not [name for name in HEAVY if f"'{name}'" in loaded]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_library_never_prints_and_functions_are_short(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{file}:{node.lineno} prints"
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 70, f"{file}:{node.lineno} {node.name} has {length} lines"


def test_no_module_is_named_utils():
    assert not [f for f in FILES if f.stem in ("utils", "common", "helpers", "misc")]


def test_public_names_exist_and_are_sorted():
    import peftlab

    assert peftlab.__all__ == sorted(peftlab.__all__)
    assert all(getattr(peftlab, name) for name in peftlab.__all__)
