"""What cannot be traced, whatever its inputs."""

from __future__ import annotations

import torch
from torch import fx, nn

from penjing.errors import TraceError

_QUANTIZED = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")


def check_traceable(model: nn.Module) -> None:
    """Refuse what no trace can follow, before anything runs.

    Raises:
        TraceError: compiled or quantized modules, names that a traced network needs itself, weights that are
            not finite.
    """
    _check_kind(model)
    _check_names(model)
    _check_weights(model)


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
