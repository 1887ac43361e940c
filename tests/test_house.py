"""The house rules as tests: a small task contract, no modality and no manifest keys where they do not belong, short
functions and files, no import cycles (DESIGN sections 4, 5 and 8)."""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftlab.methods import METHODS
from peftlab.tasks import TASKS

PACKAGE = Path(__file__).parents[1] / "peftlab"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf8")) for file in FILES}
MODALITY_WORDS = ("input_ids", "tokenizer")


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield file, node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(getattr(first, "value", None), ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if is_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


def docstrings(tree: ast.AST) -> set[int]:
    """Identities of the constants that are docstrings, of modules, classes, functions and attributes."""
    return {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def names_and_strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every identifier, and every string that code uses, with its line; docstrings and sentences left out."""
    skipped = docstrings(tree)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Name():
                yield line, node.id
            case ast.Attribute():
                yield line, node.attr
            case ast.arg() | ast.keyword():
                yield line, node.arg or ""
            case ast.alias():
                yield line, node.name
            case ast.FunctionDef() | ast.ClassDef():
                yield line, node.name
            case ast.Constant(value=str(text)) if id(node) not in skipped and " " not in text:
                yield line, text


def task_members() -> list[str]:
    """What the class `Task` defines: attributes, properties and methods."""
    (task,) = (
        node
        for node in ast.walk(TREES[PACKAGE / "tasks" / "task.py"])
        if isinstance(node, ast.ClassDef) and node.name == "Task"
    )
    members = set()
    for node in task.body:
        if isinstance(node, ast.FunctionDef):
            members.add(node.name)
            members |= {target.attr for target in ast.walk(node) if is_set_on_self(target)}
        elif isinstance(node, ast.AnnAssign):
            members.add(node.target.id)
        elif isinstance(node, ast.Assign):
            members |= {target.id for target in node.targets}
    return sorted(members - {"__init__"})


def is_set_on_self(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def test_task_has_at_most_15_members():
    assert len(task_members()) <= 15, task_members()


def test_manifest_is_read_by_attributes():
    found = [
        f"{file.relative_to(PACKAGE)}:{node.lineno} {ast.unparse(node)}"
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", getattr(node.value, "attr", "")) == "manifest"
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("part", ["tuning", "runtime"])
def test_training_and_serving_know_no_modality(part):
    found = [
        f"{file.relative_to(PACKAGE)}:{line} {text}"
        for file in FILES
        if file.relative_to(PACKAGE).parts[0] == part
        for line, text in names_and_strings(TREES[file])
        if any(word in text.lower() for word in MODALITY_WORDS)
    ]
    assert not found, "\n".join(found)


def type_names() -> set[str]:
    return {*TASKS, *METHODS}


def test_no_task_or_method_is_compared_by_name():
    found = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                parts = [node.left, *node.comparators]
                constants = {c.value for part in parts for c in ast.walk(part) if isinstance(c, ast.Constant)}
                types = [part for part in parts if isinstance(part, ast.Attribute) and part.attr in ("type", "method")]
                if types and constants & type_names():
                    found.append(f"{file.relative_to(PACKAGE)}:{node.lineno} {ast.unparse(node)}")
    assert not found, "\n".join(found)


def test_functions_are_short():
    lengths = sorted(body_lines(function) for _, function in functions())
    assert statistics.median(lengths) <= 8
    assert lengths[int(0.9 * len(lengths))] <= 20
    long = [f"{file}:{f.lineno} {f.name}" for file, f in functions() if body_lines(f) > 60]
    assert not long, "\n".join(long)


def test_files_are_short():
    long = {
        str(file.relative_to(PACKAGE)): lines for file in FILES if (lines := len(file.read_text().splitlines())) > 350
    }
    assert not long


def imported_modules(file: Path) -> set[str]:
    """Modules of the package that `file` imports when it is imported itself."""
    known = {module_name(other) for other in FILES}
    found = set()
    for node in TREES[file].body:
        for inner in ast.walk(node) if not is_deferred(node) else ():
            if isinstance(inner, ast.ImportFrom) and (inner.module or "").startswith("peftlab"):
                found |= {name for alias in inner.names if (name := f"{inner.module}.{alias.name}") in known}
                found |= {inner.module} & known
            elif isinstance(inner, ast.Import):
                found |= {alias.name for alias in inner.names} & known
    return found


def is_deferred(node: ast.AST) -> bool:
    """Whether a statement of a module runs no import when the module is imported."""
    type_checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    return type_checking or isinstance(node, ast.FunctionDef | ast.ClassDef)


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_imports_have_no_cycles():
    graph = {module_name(file): imported_modules(file) for file in FILES}
    packages = {name for name in graph if any(other.startswith(f"{name}.") for other in graph)}
    graph = {name: found - packages for name, found in graph.items() if name not in packages}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
