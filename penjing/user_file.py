"""Functions from a user's Python file, named as ``file.py:function``."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from penjing.errors import PenjingError
from penjing.files import check_permitted

_PREFIX = "penjing_user_"  # of the names of modules that are users' files


def named_function(path: Path, name: str, error: type[PenjingError]) -> Callable[..., Any]:
    """A function of a file, which is run for it and finds what lies beside it, as a script does.

    Raises:
        PenjingError: of class ``error``: no such file or function, or its code fails.
    """
    source = f"{path}:{name}"
    if not path.is_file():
        raise error("there is no such file", layer=source, remedy="Give the path of a Python file")
    check_permitted(path, error)
    module = _imported(path, error)
    function = getattr(module, name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, there, n=3) or there
        raise error(
            f"it has no function {name!r}",
            layer=source,
            remedy=f"Use one of {', '.join(near) or 'its functions'}",
        )
    return function  # type: ignore[no-any-return]


def _imported(path: Path, error: type[PenjingError]) -> ModuleType:
    name = f"{_PREFIX}{path.stem}_{abs(hash(str(path.resolve())))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loader, module = spec.loader, importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, type hints and pickle look their module up here
    try:
        with folder_importable(path.parent):
            run_users(lambda: loader.exec_module(module), str(path), error)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def folder_importable(path: Path) -> Iterator[None]:
    """What lies in a folder is found first for a while, and last from then on, for what is imported later."""
    folder = str(path.resolve())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
    if folder not in sys.path:
        sys.path.append(folder)  # shadows nothing


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


def run_factory(
    factory: Callable[..., Any], options: Mapping[str, Any], source: str, error: type[PenjingError]
) -> Any:
    """Call a user's function with the options given for it.

    Raises:
        PenjingError: of class ``error``: it does not take them, or fails.
    """
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # of compiled code, which tells by itself
        return run_users(lambda: factory(**options), source, error)
    try:
        signature.bind(**options)
    except TypeError as wrong:  # the options are to be corrected, not the file
        raise error(f"its options do not fit: {wrong}", layer=source, remedy=_taken(signature)) from wrong
    return run_users(lambda: factory(**options), source, error)


def _taken(signature: inspect.Signature) -> str:
    """The options of a function, those that it needs first."""
    by_name = [one for one in signature.parameters.values() if one.kind in _BY_NAME]
    needed = [one.name for one in by_name if one.default is one.empty]
    free = [one.name for one in by_name if one.default is not one.empty]
    both = (("needs", needed), ("may be given", free))
    said = [f"{what} {', '.join(names)}" for what, names in both if names]
    return f"It {' and '.join(said)}" if said else "It takes no options"


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Fault:
    """What a user's code raised.

    Attributes:
        line: ``"file.py:line"`` of that code.
        said: The error's type and the first line of its message.
    """

    line: str
    said: str


def users_fault(error: BaseException) -> Fault | None:
    """Where the code of a user raised an error, itself or in what it called of others; else None.

    What a loader of the user's raises in the middle of a run is no bug of ours. The worker of a loader is
    another process, of whose traceback there is only the text.
    """
    told = str(error).rpartition("Traceback (most recent call last):")[2].splitlines()
    frames = [(found, at) for at, text in enumerate(told) if (found := _FRAME.match(text))]
    if frames and (line := _users_last((found[1], int(found[2])) for found, _ in frames)):
        end = (text for text in told[frames[-1][1] + 1 :] if text[:1].strip())
        return Fault(line, next(end, type(error).__name__))
    live = ((frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__))
    line = _users_last(live)
    return Fault(line, f"{type(error).__name__}: {error}".partition("\n")[0]) if line else None


_FRAME = re.compile(r' *File "(.*)", line (\d+), in ')


def _users_last(frames: Iterable[tuple[str, int]]) -> str:
    """The innermost line in a user's file, or in what lies beside it, if it called none of ours."""
    ours = Path(__file__).parent
    theirs = {Path(file).resolve().parent for file in _users_files()}
    found = ""
    for name, line in frames:
        path = Path(name).resolve()
        if not path.is_file():  # of compiled code, whose sources are named from where it was built
            continue
        if path.is_relative_to(ours):
            found = ""
        elif "site-packages" not in path.parts and any(path.is_relative_to(folder) for folder in theirs):
            found = f"{name}:{line}"
    return found


def _users_files() -> Iterator[str]:
    for name, module in tuple(sys.modules.items()):
        if name.startswith(_PREFIX) and module.__file__:
            yield module.__file__
