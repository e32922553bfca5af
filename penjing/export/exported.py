"""The traced network that a file is written from: in inference mode, with the sizes that callers choose left
free."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from penjing.errors import ExportError, TraceError
from penjing.export.fixed_sizes import fixed_sizes
from penjing.export.recurrent_shapes import traced_lengths
from penjing.floats import autocast_off
from penjing.graph.batch import batch_unit
from penjing.graph.data_written import DataFollowed
from penjing.graph.decisions import Decision, decide, replayed
from penjing.graph.fixed_batch import FIXED, BatchWatch, why_fixed
from penjing.graph.kept_numbers import kept_numbers, told_numbers
from penjing.graph.packed import Padded
from penjing.graph.remembered import forgotten
from penjing.graph.views import eval_view, plain_outputs
from penjing.log import silenced

_ANY = torch.export.Dim.DYNAMIC
_SPECIALIZED = re.compile(
    r"\.size\(\)\[(\d+)\] as dynamic but your code specialized it to be a constant \((\d+)\)"
)


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[set[str]]:
    """The model in eval mode without gradients, as it was afterwards; gives the buffers it wrote.

    It computes in the format of its weights, whatever autocast it has in its forward.
    """
    with eval_view(model) as written, plain_outputs(model), torch.no_grad(), autocast_off():
        yield written


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters from printing or warning: what matters comes back as an error."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch")
    with (
        silenced(*names, level=logging.CRITICAL),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),  # torch.export prints the graph it had when it gave up
    ):
        yield


@dataclass(frozen=True)
class FreeSizes:
    """Which sizes are to be free: of the batch (or ``"auto"``), and of other axes by input."""

    batch: bool | str
    axes: Mapping[str, Mapping[int, str]]


def to_program(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], free: FreeSizes, names: Sequence[str]
) -> tuple[torch.export.ExportedProgram, str]:
    """The traced network, and why its batch is fixed if it was to be free; a second try knows what the
    forward decides in Python.

    Args:
        model: In inference mode.
        args: Positional arguments of the forward, as an example.
        kwargs: Keyword arguments.
        free: Which sizes are to be free.
        names: Of the input tensors, in order.

    Raises:
        ExportError: where it cannot be traced, or not with these sizes free.
    """
    program, fixed = _decided(model, args, kwargs, free, names)
    _check_axes(program, names, free.axes)
    return program, fixed


def _decided(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], free: FreeSizes, names: Sequence[str]
) -> tuple[torch.export.ExportedProgram, str]:
    try:
        return _program(model, args, kwargs, free, names, ())
    except ExportError as refusal:
        if kept_numbers(model):
            with contextlib.suppress(ExportError), told_numbers(model):
                return _program(model, args, kwargs, free, names, ())
        try:
            decisions = decide(model, args, kwargs)
        except TraceError:
            raise
        except Exception:  # the forward itself fails on these inputs, and the refusal says how
            raise refusal from refusal.__cause__
        if not decisions:
            raise
        try:
            return _program(model, args, kwargs, free, names, decisions)
        except ExportError:
            raise refusal from refusal.__cause__


def _program(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    free: FreeSizes,
    names: Sequence[str],
    decisions: Sequence[Decision],
) -> tuple[torch.export.ExportedProgram, str]:
    leaves, spec = torch.utils._pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if len(tensors) != len(names):
        raise ExportError(
            f"{len(names)} input names were given for {len(tensors)} input tensors",
            remedy="Give one name for each tensor",
        )
    batch = tensors[0].shape[0] if tensors and tensors[0].ndim else 0
    batched = [isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == batch for leaf in leaves]
    named = iter(names)
    axes = [free.axes.get(next(named), {}) if isinstance(leaf, torch.Tensor) else {} for leaf in leaves]

    def traced(dim: Any) -> torch.export.ExportedProgram:
        """With the batch left free as ``dim``, or as it is."""
        # A batch of one would be read as a constant, so the example is doubled. Copies in any case:
        # torch.export leaves a mark on tensors that it was given with a free dimension.
        doubled = 2 if batch == 1 and dim is not None else 1
        given = [
            torch.cat([leaf] * (doubled if is_batched else 1)) if is_batched or (own and leaf.ndim) else leaf
            for leaf, is_batched, own in zip(leaves, batched, axes, strict=True)
        ]
        shapes = [
            {**({0: dim} if is_batched and dim is not None else {}), **dict.fromkeys(own, _ANY)} or None
            for is_batched, own in zip(batched, axes, strict=True)
        ]
        dyn_args, dyn_kwargs = torch.utils._pytree.tree_unflatten(given, spec)
        by_parameter = _by_parameter(model, *torch.utils._pytree.tree_unflatten(shapes, spec))
        lengths = traced_lengths() if free.axes else contextlib.nullcontext()
        with replayed(decisions), forgotten(model), lengths, Padded(), DataFollowed():
            return torch.export.export(
                model,
                dyn_args,
                dyn_kwargs,
                dynamic_shapes=by_parameter if any(shapes) else None,
                strict=False,
            )

    failure: Exception | None = None
    fixed = ""
    for dim in (torch.export.Dim("batch"), _ANY) if free.batch and batch else ():
        watch = BatchWatch()
        try:
            with watch:
                program = traced(dim)
            _check_states(program)
            _check_unit(program)
            _check_groups(program)
            return program, ""
        except Exception as error:  # torch.export raises many kinds; all are reported below
            failure = error
            told = first_line(error)
            plain = told.startswith("Constraints violated")
            reason = why_fixed(model, args, kwargs) if plain else told
            fixed = f"every batch has {batch} samples: {FIXED}{watch.at}: {reason}"
    is_bound = failure is not None and free.batch != "auto"
    if not is_bound or free.axes:  # where axes are at fault, the batch is not
        try:
            program = traced(None)
        except Exception as error:
            raise (_refused_axes(error, free.axes) if free.axes else _untraceable(model, error)) from error
    if is_bound:
        raise ExportError(
            f"the batch size cannot be left free: {first_line(failure)}",
            remedy="Pass dynamic_batch=False (or 'auto') to keep the batch size of example_inputs",
        ) from failure
    return program, fixed


def _untraceable(model: nn.Module, error: Exception) -> ExportError:
    return ExportError(
        f"torch.export cannot trace {type(model).__name__}: {first_line(error)}",
        remedy="Check that example_inputs fit the forward, and that it has no data-dependent branch",
    )


def _refused_axes(error: Exception, axes: Mapping[str, Mapping[int, str]]) -> ExportError:
    """Which axes the forward fixes, as far as torch says so."""
    at = {(int(dim), int(size)) for dim, size in _SPECIALIZED.findall(str(error))}
    asked = [(key, dim, name) for key, own in axes.items() for dim, name in own.items()]
    blamed = [one for one in asked if one[1] in {dim for dim, _ in at}] or asked
    told = ", ".join(dict.fromkeys(f"{name} (dimension {dim} of {key})" for key, dim, name in blamed))
    sizes = ", ".join(sorted({str(size) for _, size in at}))
    reason = f"the forward computes with it as the number {sizes}" if at else first_line(error)
    return _cannot_be_free(told, reason)


def _check_axes(
    program: torch.export.ExportedProgram, names: Sequence[str], axes: Mapping[str, Mapping[int, str]]
) -> None:
    """Refuse sizes that the trace holds as numbers."""
    inputs = dict(zip(names, program.graph_signature.user_inputs, strict=False))
    for key, own in axes.items():
        for one in fixed_sizes(program, str(inputs.get(key)), own):
            raise _cannot_be_free(
                f"{own[one.dim]} (dimension {one.dim} of {key})",
                f"the forward computes a number of it{one.at}, which other sizes do not give",
            )


def _cannot_be_free(told: str, reason: str) -> ExportError:
    return ExportError(
        f"the size cannot be left free: {told}: {reason}",
        layer="dynamic_axes",
        remedy="Leave it out, or change the forward; a traced graph (a pruned network whose class could not "
        "follow, a stored program, an ONNX file) holds such sizes as numbers",
    )


def _check_states(program: torch.export.ExportedProgram) -> None:
    """Refuse a free batch whose recurrent layers start from one sample's state: only torch spreads it."""
    for node in program.graph.nodes:
        if str(node.target) not in ("aten.lstm.input", "aten.gru.input"):
            continue
        x, first = (torch.utils._pytree.tree_leaves(arg)[0].meta["val"] for arg in node.args[:2])
        batch = x.shape[0 if node.args[-1] else 1]
        if first.shape[-2] != batch:
            raise ValueError(f"{node.target} starts from a state of {first.shape[-2]} samples")


def _check_unit(program: torch.export.ExportedProgram) -> None:
    """Refuse a free batch that the network divides: a file's batch is free altogether or fixed."""
    unit = batch_unit(program.graph)
    if unit > 1:
        raise ValueError(f"the forward takes batches in multiples of {unit}")


def _check_groups(program: torch.export.ExportedProgram) -> None:
    """Refuse a free batch that counts a convolution's groups, as where each sample brings its own weights."""
    for node in program.graph.nodes:
        groups = node.args[6:7] if str(node.target).startswith("aten.conv") else ()
        if any(isinstance(count, torch.fx.Node) for count in groups):
            raise ValueError(f"{node.target} has a group for each sample, and files hold numbers of groups")


def _by_parameter(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``dynamic_shapes`` as torch.export wants it: by argument name, with ``*args`` and ``**kwargs``
    gathered."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    return dict(bound.arguments)


def first_line(error: BaseException | None) -> str:
    """The line that says something, of the error at the bottom of an exporter's chain of causes."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("#", "Failed to", "Context", "<", "- ", "("))]
    return (telling or lines or [type(error).__name__])[0][:300]
