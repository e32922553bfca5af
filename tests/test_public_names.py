"""The names that stay stable: what ``import penjing as pj`` offers."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import penjing as pj


@pytest.mark.parametrize("name", pj.__all__)
def test_every_public_name_is_there_and_described(name: str) -> None:
    found = getattr(pj, name)
    assert callable(found)
    assert found.__doc__


@pytest.mark.parametrize("name", ["export", "prune", "quantize", "recover"])
def test_verbs_are_functions_and_packages(name: str) -> None:
    verb: Any = getattr(pj, name)
    assert issubclass(type(verb), ModuleType)
    function = getattr(verb, name)
    assert inspect.signature(verb) == inspect.signature(function)
    assert inspect.getdoc(verb) == inspect.getdoc(function)
    with pytest.raises(TypeError, match="argument"):
        verb()


def test_verbs_work_whatever_was_imported_first() -> None:
    for first in ("penjing.prune.plan", "penjing.recipe", "penjing.export.onnx"):
        code = f"import {first} as m, penjing as pj; print(callable(pj.prune), callable(pj.export))"
        found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert found.stdout.split() == ["True", "True"]


def imports(statements: Iterable[ast.AST]) -> Iterator[str]:
    """What a module imports when it is imported: not in functions, nor for type checkers alone."""
    for one in statements:
        if isinstance(one, ast.Import):
            yield from (alias.name for alias in one.names)
        elif isinstance(one, ast.ImportFrom):
            yield from (f"{one.module}.{alias.name}" for alias in one.names)
        elif isinstance(one, ast.If) and "TYPE_CHECKING" in ast.unparse(one.test):
            yield from imports(one.orelse)
        elif isinstance(one, (ast.If, ast.Try, ast.With)):
            yield from imports(ast.iter_child_nodes(one))


def test_every_module_can_be_the_first() -> None:
    """No module waits for itself: which of them works must not depend on what was imported before."""
    package = Path(pj.__file__).parent
    modules = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }
    needs: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = [wanted.split(".") for wanted in imports(ast.parse(path.read_text("utf-8")).body)]
        # with a module come the packages it is in; the module's own are there already
        reached = {".".join(parts[:end]) for parts in found for end in range(2, len(parts) + 1)}
        needs[name] = {one for one in reached & modules.keys() if not f"{name}.".startswith(f"{one}.")}
    assert len(needs) > 100
    TopologicalSorter(needs).prepare()


def test_unknown_names_are_unknown() -> None:
    with pytest.raises(AttributeError, match="prunee"):
        _ = pj.prunee
    assert "prune" in dir(pj)
    assert pj.__version__
