"""Paths of the modules in whose forwards an op was traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

_STACK = "nn_module_stack"


def module_stack(node: fx.Node) -> tuple[str, ...]:
    """Paths of the modules in whose forwards the node was made, the outermost first."""
    stack: Mapping[str, Any] = node.meta.get(_STACK) or {}
    return tuple(str(entry[0]).split("@")[0] for entry in stack.values())


def name_modules_once_(graph: fx.Graph, model: nn.Module) -> None:
    """Give a module that stands in several places one path, its first, as parameters have one name:
    torch.export writes the path it was called by.
    """
    first: dict[int, str] = {}
    others: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if (known := first.setdefault(id(module), path)) != path:
            others[path] = known
    if not others:
        return
    for node in graph.nodes:
        stack: Mapping[str, Any] = node.meta.get(_STACK) or {}
        if any(str(path).split("@")[0] in others for path, *_ in stack.values()):
            node.meta[_STACK] = {
                key: (_renamed(str(path), others), *rest) for key, (path, *rest) in stack.items()
            }


def _renamed(path: str, others: Mapping[str, str]) -> str:
    """``"other@1"`` → ``"first@1"``: the number counts calls."""
    plain, at, number = path.partition("@")
    return f"{others.get(plain, plain)}{at}{number}"
