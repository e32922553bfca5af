"""From a user's ``nn.Module`` to a graph of ATen ops with shapes, parameter names and source lines."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from penjing.errors import PenjingError, TraceError
from penjing.graph.data_written import DataFollowed, settles
from penjing.graph.decisions import Decision, decide, replayed
from penjing.graph.remembered import forgotten, own_copies, put_back
from penjing.graph.source import is_users, place, raised_at, short_place, source_of
from penjing.graph.tidy import tidy
from penjing.graph.tree import Held, graph_module, held_tensors
from penjing.log import silenced

FIXED = "the batch size is fixed"
"""How a note on it begins."""

PLAIN_NUMBER = "the model's forward computes with it as a plain number"
"""Why, where torch only says that a constraint is violated."""

CUMULATIVE = "cumulative norms"
"""Key of a traced network's ``meta``: see `Graph.cumulative_norms`."""

_GIVEN = (Tensor, int, float, str, torch.SymInt, torch.SymFloat, torch.SymBool, type(None))

_QUANTIZED = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")


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
        cumulative_norms: Names of the running means of batch norms whose momentum is None.
    """

    module: fx.GraphModule
    params: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    batch_dim: bool = True
    notes: tuple[str, ...] = ()
    training: Graph | None = None
    cumulative_norms: frozenset[str] = frozenset()

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


def trace(model: nn.Module, example_inputs: Any, *, dynamic_batch: bool = True) -> Graph:
    """Trace a model in eval mode with ``torch.export``; the model itself is left as it was.

    Args:
        model: Any module torch.export can follow.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments (a dict whose keys
            are not the forward's parameter names is passed as the one positional argument).
        dynamic_batch: Leave dimension 0 free on every input tensor that shares the first one's. Where the
            model does not allow it, the batch is fixed and `Graph.notes` says so.

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
    _check_kind(model)
    _check_names(model)
    _check_weights(model)
    args, kwargs = bind_inputs(model, example_inputs)
    if any(
        isinstance(leaf, Tensor) and leaf.shape[:1] == (0,) for leaf in pytree.tree_leaves((args, kwargs))
    ):
        raise TraceError("the example inputs hold no sample", remedy="Give at least one; two are better")
    notes: list[str] = []
    with eval_view(model), plain_outputs(model) as left_out:
        program, is_dynamic = _export(model, args, kwargs, dynamic_batch, notes)
        notes.extend(f"left out of the outputs, as no graph can give it: {kind}" for kind in sorted(left_out))
        graph = _graph(model, program.module(check_guards=False), is_dynamic, notes)
        unread = graph.params.keys() - graph.read_names()
        if unread:
            graph = replace(graph, training=_training_graph(model, args, kwargs, unread))
    return graph


def _training_graph(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], unread: Set[str]
) -> Graph | None:
    """The graph of training mode, if it reads any of the parameters that eval mode leaves unread.

    The model never runs in training mode here: that would move its statistics, and what it decides there may
    go by chance.
    """
    notes: list[str] = []
    model.train()
    try:
        with _constant_momentum(model):
            program, is_dynamic = _tried(model, args, kwargs, True, notes, ())
    except Exception:  # any refusal; nothing depends on it: the parameters stay whole as unused ones
        return None
    graph = _graph(model, program.module(check_guards=False), is_dynamic, notes, prefix="training_only_")
    return None if unread.isdisjoint(graph.read_names()) else graph


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


@contextmanager
def plain_outputs(model: nn.Module) -> Iterator[set[str]]:
    """Outputs that no graph can give, beside those it can, are None for a while.

    Language models give out their keys and values in an object of their own, which only they read again.

    Yields:
        The kinds of what was left out, complete when the model has run.
    """
    left_out: set[str] = set()

    def strip(module: nn.Module, args: Any, output: Any) -> Any:
        leaves, spec = pytree.tree_flatten(output)
        if not any(isinstance(leaf, Tensor) for leaf in leaves):
            return output  # torch.export says what it is
        left_out.update(type(leaf).__name__ for leaf in leaves if not isinstance(leaf, _GIVEN))
        return pytree.tree_unflatten([leaf if isinstance(leaf, _GIVEN) else None for leaf in leaves], spec)

    handle = model.register_forward_hook(strip)
    try:
        yield left_out
    finally:
        handle.remove()


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


def _check_kind(model: nn.Module) -> None:
    if getattr(model.eval, "__name__", "") == "_eval":  # what torch.export puts in its place
        raise TraceError(
            "torch.export made it, and such a module has no eval mode",
            layer=type(model).__name__,
            remedy="Give the module it was exported from, or its .pt2 file (load_model with trust=True)",
        )
    for name, part in model.named_modules():
        if type(part).__module__.startswith(_QUANTIZED):
            raise TraceError(
                f"torch has quantized it already ({type(part).__name__})",
                layer=name or None,
                remedy="Give the network in floating point: quantization comes last",
            )
        if isinstance(part, torch.jit.ScriptModule):
            raise TraceError(
                "torch.jit has compiled it, so its forward cannot be followed",
                layer=name or getattr(part, "original_name", None),
                remedy="Give the Python module that was compiled",
            )


def _check_names(model: nn.Module) -> None:
    taken = fx.GraphModule({}, fx.Graph())
    for name in (*model._modules, *model._parameters, *model._buffers):
        if hasattr(taken, name):
            raise TraceError(
                "a traced network has an attribute of this name of its own",
                layer=name,
                remedy="Rename it in the class, or give a module that holds the network and calls it",
            )


def _check_weights(model: nn.Module) -> None:
    for name, param in model.named_parameters():
        if param.is_meta or not (param.is_floating_point() or param.is_complex()):
            continue
        if not bool(torch.isfinite(param.detach().sum())) and not bool(torch.isfinite(param.detach()).all()):
            raise TraceError(
                "the weights contain NaN or infinity", layer=name, remedy="Load or train sound weights first"
            )


@contextmanager
def eval_view(model: nn.Module) -> Iterator[set[str]]:
    """The model in eval mode for a while; every module's own flag, and what the forward writes, restored
    afterwards.

    Attention runs op by op: the fused op would hide its matmuls. An einsum of many operands contracts from
    left to right, as files of it do: an order that goes by their sizes would fix the batch.

    Yields:
        Names of the buffers that were written, complete when the view ends.
    """
    flags = [(module, module.training) for module in model.modules()]
    fastpath, by_size = torch.backends.mha.get_fastpath_enabled(), torch.backends.opt_einsum.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.opt_einsum.enabled = False
    model.eval()
    try:
        with put_back(model) as written:
            yield written
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        torch.backends.opt_einsum.enabled = by_size
        for module, training in flags:
            module.training = training


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool, notes: list[str]
) -> tuple[ExportedProgram, bool]:
    """The program and whether its batch is free; a second try knows what the forward decides in Python."""
    first: list[str] = []
    try:
        found = _tried(model, args, kwargs, dynamic, first, ())
    except PenjingError:
        raise  # a forward that says itself why it cannot be followed
    except Exception as error:
        _check_forward(model, args, kwargs)
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


def why_fixed(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """`PLAIN_NUMBER`; where the batch was read off a square matrix, that it may be none."""
    given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    leaves = ((name, leaf) for name, value in given.items() for leaf in pytree.tree_leaves(value))
    name, first = next(((name, leaf) for name, leaf in leaves if isinstance(leaf, Tensor)), ("", None))
    if first is None or first.ndim != 2 or first.shape[0] != first.shape[1]:
        return PLAIN_NUMBER
    size = "×".join(map(str, first.shape))
    return (
        f"{PLAIN_NUMBER}; it is the first dimension of the first input, and {name!r} is {size}: if that is "
        "no batch, as of an adjacency matrix, let an input of samples come first"
    )


class BatchWatch(TorchFunctionMode):
    """Sees which line of the user's fixes a batch size that was free.

    Attributes:
        at: ``" at folder/file.py:line"``, or "".
    """

    def __init__(self) -> None:
        super().__init__()
        self.at = ""
        self._size: Any = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._size is None:
            first = (leaf.shape[0] for leaf in args if isinstance(leaf, Tensor) and leaf.dim())
            self._size = next((size for size in first if is_symbolic(size)), None)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            if self._size is not None and not self.at and not is_symbolic(self._size):
                where = _fixed_at(self._size) or place(sys._getframe(1))
                self.at = f" at {where}" if where else ""


def _fixed_at(size: torch.SymInt) -> str:
    """The line that made a free size a number, where torch remembers one of the user's: ``int(size)`` is no
    call of torch.
    """
    spots = getattr(size.node.shape_env, "replacements_slocs", {})
    frame = getattr(spots.get(size.node._expr), "framework_loc", None)
    if frame is None or not is_users(frame.filename):
        return ""
    return short_place(frame.filename, frame.lineno)


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
        _DropoutApart(),
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


def is_symbolic(size: Any) -> bool:
    """Whether a size is really free: a SymInt that a guard has fixed is not."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


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
