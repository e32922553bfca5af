"""From a user's ``nn.Module`` to a graph of ATen ops with shapes, parameter names and source lines."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from penjing.errors import PenjingError, TraceError
from penjing.graph.batch import is_symbolic
from penjing.graph.by_example import by_sizes, real_values
from penjing.graph.data_written import DataFollowed, settles
from penjing.graph.decisions import Decision, decide, replayed
from penjing.graph.fixed_batch import FIXED, BatchWatch, why_fixed
from penjing.graph.inputs import bind_inputs
from penjing.graph.kept_numbers import kept_numbers, told_numbers
from penjing.graph.module_paths import name_modules_once_
from penjing.graph.packed import Padded, check_shapes
from penjing.graph.remembered import forgotten, own_copies
from penjing.graph.source import raised_at, source_of
from penjing.graph.tidy import tidy
from penjing.graph.traceable import check_traceable
from penjing.graph.tree import Held, graph_module, held_tensors
from penjing.graph.views import DropoutApart, eval_view, plain_outputs
from penjing.log import silenced

CUMULATIVE = "cumulative norms"
"""Key of a traced network's ``meta``: see `Graph.cumulative_norms`."""


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
        training: The graph of training mode, where that reads parameters which this one does not (auxiliary
            classifiers), so that their axes are solved too; else None.
        is_training_unknown: Whether parameters are left unread and training mode could not be traced.
        cumulative_norms: Names of the running means of batch norms whose momentum is None.
        by_example: Why the graph holds for inputs alone of which the forward finds what it finds in those
            of the example (as many boxes), and does not serve in the network's place; "" where it does.
    """

    module: fx.GraphModule
    params: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    batch_dim: bool = True
    notes: tuple[str, ...] = ()
    training: Graph | None = None
    is_training_unknown: bool = False
    cumulative_norms: frozenset[str] = frozenset()
    by_example: str = ""

    @property
    def fixed_batch(self) -> str:
        """Why, and where, the batch size is fixed; "" where it is free."""
        return next((note for note in self.notes if note.startswith(FIXED)), "")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph, with the original's signature."""
        return self.module(*args, **kwargs)

    @property
    def input_names(self) -> list[str]:
        """What the inputs are called."""
        return [str(node.target) for node in self.module.graph.find_nodes(op="placeholder")]

    def read_names(self) -> set[str]:
        """Names of the parameters, buffers and constants that some op reads."""
        return {str(node.target) for node in self.module.graph.nodes if node.op == "get_attr" and node.users}

    def held(self) -> tuple[Held, ...]:
        """Every tensor under every name."""
        return tuple(held_tensors(self.module))

    def shape(self, node: fx.Node) -> tuple[Any, ...]:
        """Shape of a node with one tensor output; symbolic dims are SymInt."""
        return tuple(node.meta["val"].shape)

    def source(self, node: fx.Node) -> str:
        """``"file.py:line"`` of the user's code that made this node, or "" when unknown."""
        return source_of(node)


def trace(
    model: nn.Module, example_inputs: Any, *, dynamic_batch: bool = True, by_example: bool = False
) -> Graph:
    """Trace a model in eval mode with ``torch.export``; the model itself is left as it was.

    Args:
        model: Any module torch.export can follow.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments (a dict whose keys
            are not the forward's parameter names is passed as the one positional argument).
        dynamic_batch: Leave dimension 0 free on every input tensor that shares the first one's. Where the
            model does not allow it, the batch is fixed and `Graph.notes` says so.
        by_example: Where the forward goes by sizes that values make (detectors, by what they find), let the
            example inputs decide: the graph tells how weights hang together, see `Graph.by_example`.

    Raises:
        TraceError: weights that are not finite, names that a traced network needs itself (``graph``), inputs
            the forward refuses, or a forward torch.export refuses.
    """
    if any(kind.__module__.partition(".")[0] == "keras" for kind in type(model).__mro__):
        raise TraceError(
            "a Keras model is pruned through its own door, which resizes its layers",
            layer=type(model).__name__,
            remedy="Give penjing.models.keras_door.from_keras(model).model, or load_model of its file",
        )
    check_traceable(model)
    args, kwargs = bind_inputs(model, example_inputs)
    if any(
        isinstance(leaf, Tensor) and leaf.shape[:1] == (0,) for leaf in pytree.tree_leaves((args, kwargs))
    ):
        raise TraceError("the example inputs hold no sample", remedy="Give at least one; two are better")
    notes: list[str] = []
    with eval_view(model), plain_outputs(model) as left_out:
        refused: TraceError | None = None
        try:
            program, is_dynamic = _export(model, args, kwargs, dynamic_batch, notes)
        except TraceError as error:
            if not (by_example and by_sizes(error)):
                raise
            refused = error
            try:
                with real_values():
                    program, is_dynamic = _export(model, args, kwargs, dynamic_batch, notes)
            except TraceError as remaining:  # about what this asks of the tracer
                raise refused from remaining
        notes.extend(f"left out of the outputs, as no graph can give it: {kind}" for kind in sorted(left_out))
        graph = _graph(model, program.module(check_guards=False), is_dynamic, notes)
        unread = graph.params.keys() - graph.read_names()
        if refused is not None:
            if unread:  # by the other branch they may hang together with anything
                raise refused
            return replace(graph, by_example=refused.cause)
        if unread:
            training = _training_graph(model, args, kwargs)
            if training is None:
                return replace(graph, is_training_unknown=True)
            if not unread.isdisjoint(training.read_names()):
                return replace(graph, training=training)
    return graph


def _training_graph(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph | None:
    """The graph of training mode, or None where it cannot be traced.

    The model never runs in training mode here: that would move its statistics, and what it decides there may
    go by chance.
    """
    notes: list[str] = []
    model.train()
    try:
        with _constant_momentum(model):
            program, is_dynamic = _tried(model, args, kwargs, True, notes, ())
    except Exception:  # any refusal: what is unread follows its module's width, or stays whole
        return None
    return _graph(model, program.module(check_guards=False), is_dynamic, notes, prefix="training_only_")


@contextmanager
def _constant_momentum(model: nn.Module) -> Iterator[None]:
    """Momentum None depends on the number of batches so far, which cannot be traced."""
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.momentum is None
    ]
    for norm in norms:
        norm.momentum = 0.1
    try:
        yield
    finally:
        for norm in norms:
            norm.momentum = None


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool, notes: list[str]
) -> tuple[ExportedProgram, bool]:
    """The program and whether its batch is free; later tries know the numbers that modules keep in buffers,
    and what the forward decides in Python.
    """
    first: list[str] = []
    try:
        found = _tried(model, args, kwargs, dynamic, first, ())
    except PenjingError:
        raise  # a forward that says itself why it cannot be followed
    except Exception as error:
        _check_forward(model, args, kwargs)
        numbers = kept_numbers(model)
        if numbers:
            told: list[str] = []
            try:
                with told_numbers(model):
                    found = _tried(model, args, kwargs, dynamic, told, ())
            except Exception:  # not for these: what it decides is tried next, and the first refusal told
                told.clear()
            else:
                named = ", ".join(list(numbers)[:3]) + (", …" if len(numbers) > 3 else "")
                notes += [*told, f"taken as fixed: the numbers in buffers ({named})"]
                return found
        decisions = decide(model, args, kwargs)
        if not decisions:
            raise _refused(model, error) from error
        try:
            found = _tried(model, args, kwargs, dynamic, notes, decisions)
        except Exception as remaining:
            raise _refused(model, remaining) from remaining
        places = ", ".join(dict.fromkeys(decision.source for decision in decisions))
        notes.append(f"taken as fixed, as other inputs change nothing: what the forward decides at {places}")
        return found
    notes.extend(first)
    return found


def _refused(model: nn.Module, error: Exception) -> TraceError:
    found = raised_at(error)
    where = f" (at {found})" if found else ""
    return TraceError(
        f"torch.export refuses the forward: {_first_line(error)}{where}",
        layer=type(model).__name__,
        remedy="Make the forward free of data-dependent control flow, or prune a submodule that is",
    )


def _tried(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic: bool,
    notes: list[str],
    decisions: Sequence[Decision],
) -> tuple[ExportedProgram, bool]:
    """With a free batch where that works, else with a fixed one."""
    quiet = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
    with (
        silenced(*quiet, level=logging.CRITICAL),  # tried, not wrong yet; a refusal is said in one line
        open(os.devnull, "w") as nowhere,
        redirect_stderr(nowhere),  # torch.export prints the graph it had when it gave up
    ):
        if dynamic:
            watch = BatchWatch()
            try:
                program = _run_export(model, *_free_batch(model, args, kwargs), decisions, watch)
            except Exception as error:  # any refusal: the fixed batch is tried next and reports what remains
                notes.append(f"{FIXED}{watch.at}: {_first_line(error)}")
            else:
                if _batch_is_free(program):
                    return program, True
                notes.append(f"{FIXED}{watch.at}: {why_fixed(model, args, kwargs)}")
        return _run_export(model, args, kwargs, None, decisions), False


def _run_export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: Any,
    decisions: Sequence[Decision],
    watch: BatchWatch | None = None,
) -> ExportedProgram:
    with (
        warnings.catch_warnings(),
        torch.enable_grad(),
        forgotten(model),  # a recurrent layer keeps its weights in a list, too
        DropoutApart(),
        Padded() as padded,
        DataFollowed() as assigned,
        replayed(decisions),
        watch or nullcontext(),
    ):
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            if not assigned.at:
                raise
            raise TraceError(
                f"the forward gives a tensor other values by .data{assigned.at}, which cannot be followed",
                layer=type(model).__name__,
                remedy="Do that in the training loop, after the optimizer's step, or by a parametrization",
            ) from error
    if assigned.read_at:
        _check_settles(model, args, kwargs, assigned.read_at)
    if padded.met:
        with torch.no_grad(), forgotten(model):
            own = model(*own_copies(args), **own_copies(kwargs))
            traced = program.module(check_guards=False)(*own_copies(args), **own_copies(kwargs))
        check_shapes(own, traced, type(model).__name__)
    return program


def _check_settles(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], at: str) -> None:
    with forgotten(model):
        settled = settles(model, lambda: model(*own_copies(args), **own_copies(kwargs)))
    if not settled:
        raise TraceError(
            f"the forward changes its weights by .data{at} at every call, so they have no values to go by",
            layer=type(model).__name__,
            remedy="Do that in the training loop, after the optimizer's step, or in training mode alone",
        )


def _free_batch(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Inputs with at least two samples and the dynamic shapes that free them, by parameter name."""
    leaves = pytree.tree_leaves((args, kwargs))
    size = next((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 0), None)

    def is_batch(leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size

    def widen(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if is_batch(leaf) and leaf.shape[0] == 1 else leaf

    def spec(leaf: Any) -> Any:
        return {0: Dim.AUTO} if is_batch(leaf) else ({} if isinstance(leaf, Tensor) else None)

    spec_args, spec_kwargs = pytree.tree_map(spec, (args, kwargs))
    wide_args, wide_kwargs = pytree.tree_map(widen, (args, kwargs))
    shapes = inspect.signature(model.forward).bind(*spec_args, **spec_kwargs).arguments
    return wide_args, wide_kwargs, dict(shapes)


def _batch_is_free(program: ExportedProgram) -> bool:
    for node in program.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        if isinstance(value, Tensor) and any(is_symbolic(size) for size in value.shape):
            return True
    return False


def _check_forward(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        with torch.no_grad(), forgotten(model):
            model(*own_copies(args), **own_copies(kwargs))
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


def _graph(
    model: nn.Module, unlifted: fx.GraphModule, is_dynamic: bool, notes: list[str], prefix: str = ""
) -> Graph:
    held = list(held_tensors(model))
    first: dict[int, str] = {}
    for item in held:
        first.setdefault(id(item.tensor), item.name)
    aliases = {item.name: first[id(item.tensor)] for item in held if first[id(item.tensor)] != item.name}
    known = {item.name for item in held}
    constants = tidy(unlifted, aliases, known, notes, prefix)
    name_modules_once_(unlifted.graph, model)
    lifted = [Held(name, tensor, False) for name, tensor in constants.items()]
    module = graph_module([*held, *lifted], unlifted.graph, type(model).__name__)
    params = {item.name: item.tensor for item in held if item.name not in aliases and _is_param(item)}
    buffers = {
        item.name: item.tensor
        for item in [*held, *lifted]
        if item.name not in aliases and not _is_param(item)
    }
    return Graph(
        module,
        params,
        buffers,
        aliases,
        is_dynamic,
        tuple(notes),
        cumulative_norms=frozenset(aliases.get(name, name) for name in _cumulative_norms(model)),
    )


def _cumulative_norms(model: nn.Module) -> Iterator[str]:
    """Batch norms that average over all batches so far; a traced model remembers its original's."""
    if isinstance(model, fx.GraphModule):
        yield from model.meta.get(CUMULATIVE, ())
    for name, module in model.named_modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if is_norm and module.momentum is None and module.running_mean is not None:
            yield f"{name}.running_mean" if name else "running_mean"


def _is_param(item: Held) -> bool:
    return isinstance(item.tensor, nn.Parameter)
