"""Where in the user's code a traced op comes from."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import FrameType

import torch
from torch import fx

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parent)  # what traces; no network is defined here
_PYTHON = str(Path(os.__file__).parent)


def source_of(node: fx.Node) -> str:
    """``"folder/file.py:line"`` of the innermost frame outside torch; else the module's path; else ""."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    for path, line in reversed(frames):
        if is_users(path):
            return short_place(path, line)
    modules = node.meta.get("nn_module_stack") or {}
    for name, _ in reversed(list(modules.values())):
        if name:
            return str(name)
    return ""


def place(frame: FrameType | None) -> str:
    """``"folder/file.py:line"`` of the innermost frame outside torch, from ``frame`` outwards; else ""."""
    while frame is not None:
        if is_users(frame.f_code.co_filename):
            return short_place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return ""


def raised_at(error: BaseException) -> str:
    """``"folder/file.py:line"`` of the innermost frame outside torch that an error or its cause left."""
    found = ""
    seen: BaseException | None = error
    while seen is not None and not found:
        frame = seen.__traceback__
        while frame is not None:
            path = frame.tb_frame.f_code.co_filename
            if is_users(path) and not _is_tool(path):
                found = short_place(path, frame.tb_lineno)
            frame = frame.tb_next
        seen = seen.__cause__ or seen.__context__
    return found


def _is_tool(path: str) -> bool:
    """Whether a file is of Python, or of what torch counts sizes with."""
    is_pythons = path.startswith(_PYTHON) and "-packages" not in path
    return is_pythons or "sympy" in Path(path).parts


def is_users(path: str) -> bool:
    """Whether a file is none of torch's, nor of what traces."""
    return not path.startswith((_TORCH, _OURS, "torch/", "<"))


def short_place(path: str, line: object) -> str:
    """The last two parts of a path, and the line."""
    return f"{'/'.join(Path(path).parts[-2:])}:{line}"
