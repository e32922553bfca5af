"""Masks inside tensors: unstructured and N:M sparsity, and exact counts of zeros.

A masked network is *not* faster: dense kernels, on CPUs and in ONNX Runtime, TensorFlow and LiteRT alike,
multiply zeros like any other number, and the file has its old size until it is compressed. What can gain are
sparse formats, compressed downloads, and 2:4 kernels of recent GPUs. For a smaller and faster network use
`prune`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from penjing.batches import between, count_samples
from penjing.errors import PruneError
from penjing.prune.apply import copied
from penjing.prune.checks import check_model
from penjing.prune.sparse_layers import sparsegpt, wanda

Method = Literal["magnitude", "wanda", "sparsegpt"]

SPEED = (
    "zeros inside tensors do not make dense kernels faster; only sparse formats, compression and 2:4 kernels "
    "of recent GPUs gain from them"
)


@dataclass(frozen=True)
class SparsityResult:
    """What was masked.

    Attributes:
        model: A copy with zeros in place. `recover` with ``regularize="keep_zeros"`` trains it as it is.
        masks: True where a weight stays, by parameter name.
        zeros: Exact number of zeros of each masked parameter.
        method: How weights were chosen.
        notes: Layers that were left out or done in another way, and why.
    """

    model: nn.Module
    masks: Mapping[str, Tensor]
    zeros: Mapping[str, int]
    method: str = "magnitude"
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: zeros and sizes by parameter and in all."""
        sizes = {name: mask.numel() for name, mask in self.masks.items()}
        total = sum(p.numel() for p in self.model.parameters())
        return {
            "method": self.method,
            "zeros": sum(self.zeros.values()),
            "params": total,
            "layers": {name: {"zeros": n, "size": sizes[name]} for name, n in self.zeros.items()},
            "speed": SPEED,
            "notes": list(self.notes),
        }


def unstructured_mask(weight: Tensor, ratio: float) -> Tensor:
    """True for the largest magnitudes; exactly ``floor(ratio · numel)`` entries are False (ties: the later
    goes).
    """
    _check_ratio(ratio)
    count = int(ratio * weight.numel() + 1e-9)
    flat = weight.detach().abs().reshape(-1).flip(0)
    mask = torch.ones_like(flat, dtype=torch.bool)
    mask[flat.argsort(stable=True)[:count]] = False
    return mask.flip(0).reshape(weight.shape)


def nm_mask(weight: Tensor, n: int = 2, m: int = 4, *, transposed: int = 0) -> Tensor:
    """True for the n largest of every m consecutive inputs (channels, then the kernel) of each output.

    Args:
        weight: ``[out, in, …]``, or ``[in, out, …]`` of a transposed convolution.
        n: How many stay of each block.
        m: Inputs in a block.
        transposed: Groups of a transposed convolution; 0 for all other layers.

    Raises:
        PruneError: if the fan-in is not a multiple of m, or not 0 < n <= m.
    """
    _check_nm(n, m)
    if transposed:
        turned = _turned(weight, transposed)
        return _turned(nm_mask(turned, n, m), transposed).reshape(weight.shape)
    w_OI = weight.detach().flatten(1)
    if w_OI.shape[1] % m:
        raise PruneError(f"{w_OI.shape[1]} inputs are not a multiple of {m}", remedy="Leave this layer out")
    blocks = w_OI.abs().reshape(w_OI.shape[0], -1, m)
    kept = blocks.argsort(dim=-1, descending=True, stable=True)[..., :n]
    mask = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, kept, True)
    return mask.reshape(weight.shape)


def _turned(weight: Tensor, groups: int) -> Tensor:
    """From ``[in, out / groups, …]`` to ``[out, in / groups, …]``, and back."""
    return weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)


def _is_length(name: str) -> bool:
    """Weight norm's lengths of filters, old and new: without one a whole filter is gone."""
    return name.endswith(("weight_g", "parametrizations.weight.original0"))


def _fan_in(weight: Tensor, transposed: int) -> int:
    return (_turned(weight, transposed) if transposed else weight)[0].numel()


def _transposed(model: nn.Module) -> dict[str, int]:
    """Groups of the transposed convolutions, by the name of their weight."""
    return {
        f"{name}.weight".lstrip("."): part.groups
        for name, part in model.named_modules()
        if isinstance(part, nn.modules.conv._ConvTransposeNd)
    }


def sparsify(
    model: nn.Module,
    ratio: float = 0.5,
    *,
    nm: tuple[int, int] | None = None,
    method: Method = "magnitude",
    data: Iterable[Any] | None = None,
    max_samples: int = 1024,
    seed: int = 0,
) -> SparsityResult:
    """Zero the least weights of every tensor of two or more dims, in a copy.

    Of a weight-normed layer the directions are masked, not the lengths of its filters.

    Args:
        model: The model.
        ratio: Fraction to zero, of each tensor (``"magnitude"``, ``"sparsegpt"``) or of each output row
            (``"wanda"``), rounded down; unused with ``nm``.
        nm: ``(n, m)``: keep n of every m consecutive inputs instead; tensors whose fan-in is not a multiple
            of m are left out.
        method: ``"magnitude"``; ``"wanda"`` (magnitude times the norm of what is read); ``"sparsegpt"`` (the
            weights that stay make up for those that go). The last two go through the network layer by
            layer, each on what the layers before it give by now; layers that are no convolution or linear
            layer, or share their weight, get magnitude.
        data: Batches, for the last two; labels are not looked at.
        max_samples: Most samples used.
        seed: Chooses the positions of feature maps that are looked at.

    Raises:
        DataError: no data, or NaN in it.
        PruneError: a bad ratio or N:M, an unknown method, or no data where it is needed.
    """
    check_model(model)
    _check_ratio(ratio)
    if nm is not None:
        if not isinstance(nm, Sequence) or isinstance(nm, str) or len(nm) != 2:
            raise PruneError(f"nm is {nm!r}", remedy="Give two numbers: (2, 4) keeps 2 of every 4")
        _check_nm(*nm)
    if method not in ("magnitude", *_BY_INPUT):
        raise PruneError(
            f"unknown method {method!r}", remedy=f"Choose one of magnitude, {', '.join(_BY_INPUT)}"
        )
    if method in _BY_INPUT and data is None:
        raise PruneError(f"method {method!r} needs data", remedy="Pass data=… (batches of the training set)")
    model = copied(model)
    params = {
        name: weight
        for name, weight in model.named_parameters()
        if weight.ndim >= 2 and not (_is_length(name) and weight.numel() == weight.shape[0])
    }
    notes, transposed = [], _transposed(model)
    if nm is not None:
        odd = [name for name in params if _fan_in(params[name], transposed.get(name, 0)) % nm[1]]
        notes += [f"{name} is left out: its fan-in is not a multiple of {nm[1]}" for name in odd]
        params = {name: weight for name, weight in params.items() if name not in odd}
    masks: dict[str, Tensor] = {}
    if method in _BY_INPUT and data is not None:
        masks = _walk_through(model, params.keys(), data, ratio, nm, method, max_samples, seed)
        notes += [f"{name} is masked by magnitude" for name in params if name not in masks]
    with torch.no_grad():
        for name in params.keys() - masks.keys():
            weight, groups = params[name], transposed.get(name, 0)
            masks[name] = nm_mask(weight, *nm, transposed=groups) if nm else unstructured_mask(weight, ratio)
            weight.mul_(masks[name])
    masks = {name: masks[name] for name in params}
    zeros = {name: int((params[name] == 0).sum()) for name in masks}
    return SparsityResult(model, masks, zeros, method, tuple(notes))


_BY_INPUT: Mapping[str, Callable[..., Tensor]] = {"wanda": wanda, "sparsegpt": sparsegpt}

_MAX_ROWS = 65_536  # rows (samples × positions) a layer is judged by
_MAX_MEMORY = 4.0  # GiB of values that wait for a layer's weights


def _walk_through(
    model: nn.Module,
    names: Iterable[str],
    data: Iterable[Any],
    ratio: float,
    nm: tuple[int, int] | None,
    method: str,
    max_samples: int,
    seed: int,
) -> dict[str, Tensor]:
    """Mask layer after layer, in the order of computation; in place."""
    from penjing.graph import trace
    from penjing.graph.inputs import required_inputs
    from penjing.prune.places import find_places
    from penjing.prune.reconstruct import calibration_batches
    from penjing.prune.rows import input_moments, input_rows
    from penjing.prune.walk import Walk, footprint, given_to, within_memory

    batches = calibration_batches(data, max_samples, required_inputs(model))
    example = between(batches[0], 0, 2)
    graph = trace(model, example)
    if graph.batch_dim:
        batches, _ = within_memory(batches, _MAX_MEMORY, footprint(graph, given_to(graph, example)))
    samples = sum(count_samples(batch) for batch in batches)
    wanted = set(names)
    places = (place for name, place in find_places(graph).items() if name in wanted)
    by_node = {call.node: place for place in places for call in place.calls}
    generator = torch.Generator().manual_seed(seed)
    walk = Walk(graph, [given_to(graph, batch) for batch in batches])
    masks: dict[str, Tensor] = {}

    @torch.no_grad()
    def before(node: fx.Node) -> None:
        if node not in by_node or by_node[node].weight in masks:
            return
        place = by_node[node]
        for call in place.calls:
            walk.ensure(call.source, before)
        weight = place.kernel(graph.params)
        groups, features = place.patches.groups, weight[0].numel()
        rows = input_rows(walk, place, samples, _MAX_ROWS, generator)
        moments = input_moments(rows, groups, features)
        found = _BY_INPUT[method](weight.double().reshape(groups, -1, features), moments, ratio, nm)
        weight.copy_(found.reshape(weight.shape))
        masks[place.weight] = graph.params[place.weight] != 0

    walk.run(before)
    return masks


def _check_ratio(ratio: float) -> None:
    if not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise PruneError(f"ratio {ratio!r} is not in [0, 1)", remedy="A ratio is the fraction removed")


def _check_nm(n: int, m: int) -> None:
    if not (isinstance(n, int) and isinstance(m, int) and 0 < n <= m):
        raise PruneError(f"{n}:{m} sparsity", remedy="Give whole numbers 0 < n <= m, such as 2:4")
