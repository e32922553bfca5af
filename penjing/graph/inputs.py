"""Example inputs and the arguments of a call: one into the other, and both as a flat list."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree


def as_examples(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The arguments of a call, all given in one way, as example inputs; the way back is `bind_inputs`."""
    if kwargs and not args:
        return dict(kwargs)
    lone = len(args) == 1 and not isinstance(args[0], (list, tuple))  # a list of inputs is one argument
    return args[0] if lone else tuple(args)


def bind_inputs(model: nn.Module, example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split example inputs into positional and keyword arguments of ``model.forward``."""
    if isinstance(example_inputs, Mapping):
        accepted = _arguments(model)
        if accepted is None or all(key in accepted for key in example_inputs):
            return (), dict(example_inputs)
        return (dict(example_inputs),), {}
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def required_inputs(model: Any) -> tuple[str, ...]:
    """Names of the inputs that every call of a network has to give, in order; () where that is not known.

    By them `penjing.batches.take_apart` tells a batch of several inputs from one of inputs and target.
    """
    while isinstance(held := getattr(model, "_orig_mod", getattr(model, "module", None)), nn.Module):
        model = held  # compiled, or of several processes: their own forward takes anything
    named = getattr(model, "input_names", None)  # a network read from a file
    if isinstance(named, tuple):
        return named
    if not isinstance(model, nn.Module):
        return ()
    graph = getattr(model, "graph", None)
    if isinstance(graph, fx.Graph) and isinstance(graph._codegen, fx.graph._PyTreeCodeGen):
        return tuple(graph._codegen.pytree_info.orig_args)
    given = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = inspect.signature(model.forward).parameters.values()
    return tuple(each.name for each in found if each.kind in given and each.default is each.empty)


def flat_inputs(graph: fx.GraphModule, inputs: Any) -> list[Any]:
    """What inputs hold, in the order in which a traced graph takes it: dicts may name it in another."""
    args, kwargs = bind_inputs(graph, inputs)
    codegen = graph.graph._codegen
    if not isinstance(codegen, fx.graph._PyTreeCodeGen):
        return pytree.tree_leaves((args, kwargs))
    info = codegen.pytree_info
    named = dict(zip(info.orig_args, args, strict=False)) | kwargs
    if named.keys() != set(info.orig_args):  # too many or too few, which is said where they are counted
        return pytree.tree_leaves((args, kwargs))
    specs = [spec for part in info.in_spec.children() for spec in part.children()]
    parts = zip(info.orig_args, specs, strict=True)
    return [leaf for name, spec in parts for leaf in _leaves_as(named[name], spec)]


def _leaves_as(value: Any, spec: pytree.TreeSpec) -> list[Any]:
    """The leaves of a value, of each dict in the order of the keys that the graph was traced with."""
    if spec.type is dict and isinstance(value, Mapping) and value.keys() == set(spec.context):
        parts = [value[key] for key in spec.context]
    elif spec.type in (list, tuple) and isinstance(value, list | tuple) and len(value) == spec.num_children:
        parts = list(value)
    else:
        return pytree.tree_leaves(value)
    return [
        leaf for part, child in zip(parts, spec.children(), strict=True) for leaf in _leaves_as(part, child)
    ]


def _arguments(model: nn.Module) -> Collection[str] | None:
    """Names of the arguments of the forward; None where it takes any."""
    graph = getattr(model, "graph", None)
    if isinstance(graph, fx.Graph) and isinstance(graph._codegen, fx.graph._PyTreeCodeGen):
        return graph._codegen.pytree_info.orig_args  # its signature is (*args, **kwargs)
    found = inspect.signature(model.forward).parameters
    return None if any(each.kind is each.VAR_KEYWORD for each in found.values()) else found
