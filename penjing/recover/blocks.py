"""The blocks of a network, as places where a pruned network's features are compared with its original's.

A block is a module that repeats: an entry of a Sequential, ModuleList or ModuleDict with two weights or more.
What it gives is one value of the traced original, and the axes of that value say which positions the pruned
network kept of it, in every dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from penjing.errors import PenjingError, RecoverError
from penjing.graph import GraphModel, couple, trace
from penjing.prune.plan import Plan
from penjing.prune.slicing.graph import cut_dims
from penjing.prune.slots import slots_of
from penjing.recover.features import FeatureSpec
from penjing.recover.graph_taps import exit_of, layers_of

_WEIGHTS = 2
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def block_specs(
    student: nn.Module, teacher: nn.Module, plan: Any, example_inputs: Any
) -> tuple[FeatureSpec, ...]:
    """A place for each block that student and teacher both have, aligned by the plan.

    Args:
        student: The pruned network: the user's class, or a traced graph.
        teacher: The original, as the user's class.
        plan: What was pruned; None where nothing was.
        example_inputs: As the teacher takes them.

    Raises:
        RecoverError: no blocks, a plan that is none, or an original that cannot be traced.
    """
    if plan is not None and not isinstance(plan, Plan):
        raise RecoverError("blocks are aligned by a plan of penjing", remedy="Pass it, or name layers")
    try:
        if plan is not None:
            plan.check(teacher)
        graph = trace(teacher, example_inputs)
    except PenjingError as error:
        raise RecoverError(
            f"blocks are found in the traced original, and {error.cause}", remedy="Name layers instead"
        ) from error
    coupling = couple(graph)
    kept = {} if plan is None else slots_of(plan, coupling)
    specs = []
    for name in _blocks(student, teacher):
        node = exit_of(graph.module.graph, name)
        axes = () if node is None else coupling.values.get(node.name, ())
        if node is not None and len(axes) == 1:
            found = cut_dims(axes[0], kept)
            places = {dim: torch.from_numpy(at) for dim, at in found.items()}
            specs.append(FeatureSpec(name, kept=places, channels=-1 if node.meta["val"].dim() == 3 else 1))
    if not specs:
        raise RecoverError(
            "student and teacher have no blocks in common (entries of a Sequential or ModuleList with "
            "two weights or more, each giving one tensor)",
            remedy="Name layers instead",
        )
    return tuple(specs)


def _blocks(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Names of the teacher's innermost blocks that the student has, too."""
    modules = dict(teacher.named_modules())
    there = (
        {name for name in modules if _gives(student, name)}
        if isinstance(student, GraphModel)
        else {
            name
            for name, module in student.named_modules()
            if _num_weights(module) >= _WEIGHTS and _is_called(module)
        }
    )
    entries = [
        name
        for name, module in modules.items()
        if name
        and isinstance(modules[name.rpartition(".")[0]], _CONTAINERS)
        and _num_weights(module) >= _WEIGHTS
    ]
    inner = [name for name in entries if not any(other.startswith(f"{name}.") for other in entries)]
    return [name for name in inner if name in there]


def _gives(student: GraphModel, name: str) -> bool:
    return len(layers_of(student, name)) >= _WEIGHTS and exit_of(student.graph, name) is not None


def _is_called(module: nn.Module) -> bool:
    """Whether it computes: modules of networks read from files, or in int8 training, only hold weights."""
    return getattr(module.forward, "__func__", None) is not nn.Module.forward


def _num_weights(module: nn.Module) -> int:
    return sum(param.ndim > 1 for param in module.parameters())
