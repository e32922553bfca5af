"""The names that stay stable: what ``import penjing as pj`` offers."""

from __future__ import annotations

import inspect
import subprocess
import sys
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


def test_unknown_names_are_unknown() -> None:
    with pytest.raises(AttributeError, match="prunee"):
        _ = pj.prunee
    assert "prune" in dir(pj)
    assert pj.__version__
