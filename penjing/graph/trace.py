"""From a user's ``nn.Module`` to a graph of ATen ops with shapes, parameter names and source lines."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from penjing.errors import TraceError
from penjing.graph.source import source_of
from penjing.graph.tidy import tidy
from penjing.graph.tree import Held, attach, build_tree, held_tensors

BATCH_STANDIN = 1009
"""Stands for a symbolic dimension in the axis equations: a prime that no network dimension holds."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A traced network.

    Attributes:
        module: The ATen graph in eval mode, callable with the original signature; get_attr targets are the
            original dotted names (a shared parameter goes by its first name). It shares storage with the
            model.
        params: Every parameter by its first name, unused ones too.
        buffers: Every buffer and lifted constant, by first name.
        aliases: Other names of shared parameters and buffers → first name.
        batch_dim: Whether the batch size is free.
        notes: What the reader should know, e.g. why the batch size is fixed.
    """

    module: fx.GraphModule
    params: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    batch_dim: bool = True
    notes: tuple[str, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph, with the original's signature."""
        return self.module(*args, **kwargs)

    def held(self) -> tuple[Held, ...]:
        """Every tensor under every name."""
        return tuple(held_tensors(self.module))

    def shape(self, node: fx.Node) -> tuple[Any, ...]:
        """Shape of a node with one tensor output; symbolic dims are SymInt."""
        return tuple(node.meta["val"].shape)

    def source(self, node: fx.Node) -> str:
        """``"file.py:line"`` of the user's code that made this node, or "" when unknown."""
        return source_of(node)


def trace(model: nn.Module, example_inputs: Any, *, dynamic_batch: bool = True) -> Graph:
    """Trace a model in eval mode with ``torch.export``; the model itself is left as it was.

    Args:
        model: Any module torch.export can follow.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments (a dict whose keys
        are not
            the forward's parameter names is passed as the one positional argument).
        dynamic_batch: Leave dimension 0 free on every input tensor that shares the first one's. Where the
        model
            does not allow it, the batch is fixed and `Graph.notes` says so.

    Raises:
        TraceError: weights that are not finite, inputs the forward refuses, or a forward torch.export
        refuses.
    """
    _check_weights(model)
    args, kwargs = bind_inputs(model, example_inputs)
    notes: list[str] = []
    with eval_view(model):
        program, is_dynamic = _export(model, args, kwargs, dynamic_batch, notes)
        unlifted = program.module(check_guards=False)
    return _graph(model, unlifted, is_dynamic, notes)


def bind_inputs(model: nn.Module, example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split example inputs into positional and keyword arguments of ``model.forward``."""
    if isinstance(example_inputs, Mapping):
        accepted = inspect.signature(model.forward).parameters
        any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        if any_name or all(key in accepted for key in example_inputs):
            return (), dict(example_inputs)
        return (dict(example_inputs),), {}
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def _check_weights(model: nn.Module) -> None:
    for name, param in model.named_parameters():
        if param.is_meta or not param.is_floating_point():
            continue
        if not bool(torch.isfinite(param.detach().sum())) and not bool(torch.isfinite(param.detach()).all()):
            raise TraceError(
                "the weights contain NaN or infinity", layer=name, remedy="Load or train sound weights first"
            )


@contextmanager
def eval_view(model: nn.Module) -> Iterator[None]:
    """The model in eval mode for a while, every module's own flag restored afterwards.

    Attention runs op by op: the fused op would hide its matmuls.
    """
    flags = [(module, module.training) for module in model.modules()]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, training in flags:
            module.training = training


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool, notes: list[str]
) -> tuple[ExportedProgram, bool]:
    if dynamic:
        batch_args, batch_kwargs, shapes = _free_batch(model, args, kwargs)
        if shapes is not None:
            try:
                program = _run_export(model, batch_args, batch_kwargs, shapes)
            except Exception as error:  # any refusal: the fixed batch is tried next and reports what remains
                notes.append(f"the batch size is fixed: {_first_line(error)}")
            else:
                if _batch_is_free(program):
                    return program, True
                notes.append("the batch size is fixed: the model's forward depends on it")
    try:
        return _run_export(model, args, kwargs, None), False
    except Exception as error:
        _check_forward(model, args, kwargs)
        raise TraceError(
            f"torch.export refuses the forward: {_first_line(error)}",
            layer=type(model).__name__,
            remedy="Make the forward free of data-dependent control flow, or prune a submodule that is",
        ) from error


class _DropoutApart(TorchFunctionMode):
    """Keeps a dropout's input and output two values while tracing.

    In eval mode dropout returns its very input, and the tracer, which goes by object identity, would let
    later uses of the input read the dropout: right in eval mode, wrong once the graph trains.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "dropout" in getattr(func, "__name__", "") and args and isinstance(args[0], Tensor):
            args = (torch.ops.aten.alias.default(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))


def _run_export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any
) -> ExportedProgram:
    with warnings.catch_warnings(), torch.enable_grad(), _DropoutApart():
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        finally:
            for module in model.modules():
                if isinstance(module, nn.RNNBase):  # export leaves traced stand-ins in this cache
                    module._flat_weights = [
                        getattr(module, name, None) for name in module._flat_weights_names
                    ]


def _free_batch(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Inputs with at least two samples and the dynamic shapes that free them; None when no batch is seen."""
    tensors = [
        leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim() > 0
    ]
    if not tensors:
        return args, kwargs, None
    size = tensors[0].shape[0]

    def is_batch(leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size

    def widen(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if is_batch(leaf) and size < 2 else leaf

    def spec(leaf: Any) -> Any:
        return {0: Dim.AUTO} if is_batch(leaf) else ({} if isinstance(leaf, Tensor) else None)

    shapes = pytree.tree_map(spec, (args, kwargs))
    named = dict(zip(inspect.signature(model.forward).parameters, shapes[0], strict=False)) if args else {}
    parameters = inspect.signature(model.forward).parameters.values()
    starred = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    wide_args, wide_kwargs = pytree.tree_map(widen, (args, kwargs))
    if starred is not None and args:
        return wide_args, wide_kwargs, shapes[0] if not kwargs else None
    return wide_args, wide_kwargs, {**named, **shapes[1]}


def _batch_is_free(program: ExportedProgram) -> bool:
    for node in program.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        if isinstance(value, Tensor) and any(is_symbolic(size) for size in value.shape):
            return True
    return False


def is_symbolic(size: Any) -> bool:
    """Whether a size is really free: a SymInt that a guard has fixed is not."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def _check_forward(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        leaves = pytree.tree_leaves((args, kwargs))
        shapes = (
            ", ".join(str(tuple(leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor)) or "no tensors"
        )
        raise TraceError(
            f"the forward fails on the example inputs ({shapes}): {_first_line(error)}",
            layer=type(model).__name__,
            remedy="Give example_inputs of the shapes and types the model takes",
        ) from error


def _first_line(error: Exception) -> str:
    """The first line for people: some of torch.export's messages begin with the graph traced so far."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    code = ("def forward", "#", "class ")
    words = [line for line in lines if " = " not in line and not line.startswith(code)]
    return (words or lines or [type(error).__name__])[0][:300].rstrip(".")


def _graph(model: nn.Module, unlifted: fx.GraphModule, is_dynamic: bool, notes: list[str]) -> Graph:
    held = list(held_tensors(model))
    first: dict[int, str] = {}
    for item in held:
        first.setdefault(id(item.tensor), item.name)
    aliases = {item.name: first[id(item.tensor)] for item in held if first[id(item.tensor)] != item.name}
    known = {item.name for item in held}
    lifted = [Held(name, tensor, False) for name, tensor in tidy(unlifted, aliases, known, notes).items()]
    module = fx.GraphModule(build_tree([*held, *lifted]), unlifted.graph, type(model).__name__)
    for item in [*held, *lifted]:  # what the graph never reads is kept all the same
        attach(module, item)
    params = {item.name: item.tensor for item in held if item.name not in aliases and _is_param(item)}
    buffers = {
        item.name: item.tensor
        for item in [*held, *lifted]
        if item.name not in aliases and not _is_param(item)
    }
    return Graph(module, params, buffers, aliases, is_dynamic, tuple(notes))


def _is_param(item: Held) -> bool:
    return isinstance(item.tensor, nn.Parameter)
