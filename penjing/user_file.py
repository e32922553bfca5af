"""Functions from a user's Python file, named as ``file.py:function``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penjing.errors import PenjingError


def named_function(path: Path, name: str, error: type[PenjingError]) -> Callable[..., Any]:
    """A function of a file, which is run for it.

    Raises:
        PenjingError: of class ``error``: no such file or function, or its code fails.
    """
    source = f"{path}:{name}"
    if not path.is_file():
        raise error("there is no such file", layer=source, remedy="Give the path of a Python file")
    spec = importlib.util.spec_from_file_location(f"_penjing_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    loader = spec.loader
    run_users(lambda: loader.exec_module(module), str(path), error)
    function = getattr(module, name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise error(
            f"it has no function {name!r}",
            layer=source,
            remedy=f"Use one of {', '.join(there) or 'its functions'}",
        )
    return function  # type: ignore[no-any-return]


def run_users(call: Callable[[], Any], source: str, error: type[PenjingError]) -> Any:
    """Run a user's code.

    Raises:
        PenjingError: of class ``error``, with whatever it raised.
    """
    try:
        return call()
    except PenjingError:
        raise
    except Exception as raised:  # anything may come out of a user's file
        raise error(
            f"its code failed ({type(raised).__name__}: {raised})",
            layer=source,
            remedy="Correct the file; --debug shows the line",
        ) from raised
