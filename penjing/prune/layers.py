"""Standard layers: which attribute is which dim of which of the layer's own tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

from penjing.graph import Axis
from penjing.prune.plan import Shape
from penjing.prune.ranges import Positions

Own = dict[str, tuple[tuple[Axis, Positions], ...]]  # a module's tensors by local name: axis and kept, by dim
Value = Callable[[nn.Module, Own], "int | Shape | None"]


def _size(tensor: str, dim: int) -> Value:
    def value(module: nn.Module, own: Own) -> int | None:
        return len(own[tensor][dim][1]) if tensor in own and dim < len(own[tensor]) else None

    return value


def _shape(module: nn.Module, own: Own) -> Shape | None:
    return tuple(len(kept) for _, kept in own["weight"]) if "weight" in own else None


def _blocks(groups: str) -> Value:
    """Number of consecutive blocks along dim 0 of the weight with something left."""

    def value(module: nn.Module, own: Own) -> int | None:
        if "weight" not in own:
            return None
        axis, kept = own["weight"][0]
        return len(np.unique(kept // (axis.size // int(getattr(module, groups)))))

    return value


def _per_block(module: nn.Module, own: Own) -> int | None:
    """Channels on the side of the weight that counts per group."""
    groups, size = _blocks("groups")(module, own), _size("weight", 1)(module, own)
    return groups * size if isinstance(groups, int) and isinstance(size, int) else None


def _hidden(module: nn.Module, own: Own) -> int | Shape | None:
    """Units of a recurrent layer: what a projection reads, where there is one."""
    return _size("weight_hr_l0" if "weight_hr_l0" in own else "weight_hh_l0", 1)(module, own)


def _projected(module: nn.Module, own: Own) -> int | Shape | None:
    """Size of the projection; 0 where there is none."""
    return _size("weight_hr_l0", 0)(module, own) if "weight_hr_l0" in own else 0


_CONV = {"in_channels": _per_block, "out_channels": _size("weight", 0), "groups": _blocks("groups")}
_TRANSPOSED = {"in_channels": _size("weight", 0), "out_channels": _per_block, "groups": _blocks("groups")}
_CHANNELS = {"num_features": _size("weight", 0)}

# first match wins; an attribute that is listed nowhere is judged by the axes around the module
TABLE: tuple[tuple[type[nn.Module], dict[str, Value]], ...] = (
    (nn.Linear, {"in_features": _size("weight", 1), "out_features": _size("weight", 0)}),
    (nn.ConvTranspose1d, _TRANSPOSED),
    (nn.ConvTranspose2d, _TRANSPOSED),
    (nn.ConvTranspose3d, _TRANSPOSED),
    (nn.Conv1d, _CONV),
    (nn.Conv2d, _CONV),
    (nn.Conv3d, _CONV),
    (nn.LayerNorm, {"normalized_shape": _shape}),
    (nn.RMSNorm, {"normalized_shape": _shape}),
    (nn.GroupNorm, {"num_channels": _size("weight", 0), "num_groups": _blocks("num_groups")}),
    (nn.modules.batchnorm._NormBase, _CHANNELS),
    (nn.Embedding, {"num_embeddings": _size("weight", 0), "embedding_dim": _size("weight", 1)}),
    (nn.PReLU, {"num_parameters": _size("weight", 0)}),
    (nn.RNNCellBase, {"input_size": _size("weight_ih", 1), "hidden_size": _size("weight_hh", 1)}),
    (
        nn.Bilinear,
        {
            "in1_features": _size("weight", 1),
            "in2_features": _size("weight", 2),
            "out_features": _size("weight", 0),
        },
    ),
    (nn.RNNBase, {"input_size": _size("weight_ih_l0", 1), "hidden_size": _hidden, "proj_size": _projected}),
)


def normalised_dims(module: nn.Module, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The axes of a norm's output that its weight would have, if it had one; () of any other layer."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        shape = tuple(module.normalized_shape)
        found = axes[len(axes) - len(shape) :]
    elif isinstance(module, nn.GroupNorm):
        shape, found = (module.num_channels,), axes[1:2]
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        shape, found = (module.num_features,), axes[1:2]
    else:
        return ()
    return found if tuple(axis.size for axis in found) == shape else ()


def standard(module: nn.Module, name: str, value: int | Shape, own: Own) -> int | Shape | None:
    """The new value of an attribute of a standard layer, or None where its class does not settle it.

    Attributes that torch's own classes have besides those in the table (kernel sizes and the like) keep
    their value.
    """
    for cls, table in TABLE:
        if isinstance(module, cls):
            if not own:
                return value
            if name in table:
                return table[name](module, own)
            return value if type(module).__module__.startswith("torch.nn") else None
    return None
