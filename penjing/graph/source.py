"""Where in the user's code a traced op comes from."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import fx

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = str(Path(torch.__file__).parent)


def source_of(node: fx.Node) -> str:
    """``"folder/file.py:line"`` of the innermost frame outside torch; else the module's path; else ""."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    for path, line in reversed(frames):
        if not path.startswith((_TORCH, "torch/")) and not path.startswith("<"):
            return f"{'/'.join(Path(path).parts[-2:])}:{line}"
    modules = node.meta.get("nn_module_stack") or {}
    for name, _ in reversed(list(modules.values())):
        if name:
            return str(name)
    return ""
