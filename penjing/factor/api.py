"""`factorize`: two thin layers in the place of one, for a budget, without training and without labels."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isnan
from typing import Any

import torch
from torch import Tensor, nn

from penjing.batches import Inputs, call_model
from penjing.errors import FactorizeError
from penjing.events import Event, Listener, silent
from penjing.factor.columns import Columns
from penjing.factor.gains import output_gains
from penjing.factor.pair import Layer, refusal
from penjing.factor.ranks import Choice, choose
from penjing.graph.inputs import required_inputs
from penjing.graph.solve import matches
from penjing.graph.views import eval_view
from penjing.measure.count import Count, count
from penjing.prune.budget import Budget, as_budget
from penjing.prune.checks import check_model, checked_patterns
from penjing.prune.reconstruct import ReconstructConfig, ReconstructResult, calibration_batches
from penjing.prune.reconstruct import reconstruct as refit

_COSTS = ("macs", "params")
_STEPS = 100  # in which each block is fitted as a whole
_LEAST = 1e-6  # of the largest gain: no layer is free to lose all
_ROWS = 65_536  # of a layer's input, about, that its moments are taken of


@dataclass(frozen=True)
class LowRank:
    """A layer that became two.

    Attributes:
        name: Of the module.
        rank: Values in between.
        full_rank: With which nothing would be lost.
        error: Squared error of the layer's output before any refit, relative to the output.
    """

    name: str
    rank: int
    full_rank: int
    error: float


@dataclass(frozen=True)
class FactorizeResult:
    """A network with layers of a low rank.

    Attributes:
        model: A copy, of the given class, with a `penjing.factor.Pair` in the place of each split layer.
        layers: What was split, in the order of the modules.
        whole: Convolutions and linear layers that stay as they are, and why.
        before, after: What the networks hold and compute.
        fit: What the refit to the original's outputs did; None where there was none.
        seconds: Wall-clock seconds.
    """

    model: nn.Module
    layers: tuple[LowRank, ...]
    whole: Mapping[str, str]
    before: Count
    after: Count
    fit: ReconstructResult | None
    seconds: float

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by name of the module, for `with_ranks`."""
        return {layer.name: layer.rank for layer in self.layers}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, without weights."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "whole": dict(self.whole),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "reconstruction": self.fit.to_dict() if self.fit is not None else None,
            "timing": {"seconds": self.seconds},
        }


def factorize(
    model: nn.Module,
    example_inputs: Any,
    budget: Budget | Mapping[str, Any],
    data: Iterable[Any],
    *,
    ignore: str | Sequence[str] = (),
    reconstruct: bool | ReconstructConfig | Mapping[str, Any] = True,
    seed: int = 0,
    listen: Listener = silent,
) -> FactorizeResult:
    """Split convolutions and linear layers of a copy into two thin layers each.

    A layer's weight, as a matrix, is replaced by the product of rank r that changes its output least on the
    data: the singular values of the weight times the root of the inputs' covariance (Zhang et al. 2015,
    "Accelerating very deep convolutional networks"; of a convolution wider than one column, the covariance
    within a column). Ranks come from one price for all layers, where an error counts by the root of how far
    the outputs follow it (`penjing.factor.gains`). Then all layers are refitted to the original's outputs,
    and the layers of each block together (`penjing.reconstruct`).

    It takes parameters and MACs where no channel can be spared, goes with pruning (before or after it), and
    keeps the widths of all values between layers, so features are compared without a plan in recovery. Two
    thin layers read and write more than one: measure latency.

    Args:
        model: The trained network; not changed. Layers are modules of exactly ``nn.Linear``, ``nn.Conv1d`` or
            ``nn.Conv2d`` that it calls.
        example_inputs: A tensor, a tuple or a dict the model can be called with.
        budget: Bound on ``macs`` or ``params`` of the whole network, one of them.
        data: Batches as for training; labels are not looked at.
        ignore: Glob patterns on parameter names, or one of them; these layers stay whole.
        reconstruct: False leaves the layers as the singular values give them; options replace the default
            ones (``block_steps=100``).
        seed: Draws the positions that moments are taken at, and the batches of the refit.
        listen: Hears what happens.

    Raises:
        FactorizeError: for a budget of anything else, or out of reach; where no layer can be split.
        PruneError: for a pattern that matches nothing.
        TraceError: for the refit, where the network cannot be traced.
        DataError: no data, or NaN in it.
    """
    began = time.perf_counter()
    check_model(model)
    bounds = as_budget(budget)
    if bounds is None or len(bounds.bounds) != 1 or bounds.bounds[0] not in _COSTS:
        raise FactorizeError(
            f"the budget bounds {' and '.join(bounds.bounds) if bounds else 'nothing'}",
            remedy="Give one of macs and params, as in Budget(macs=0.5): what a rank costs is counted in it",
        )
    (cost,) = bounds.bounds
    before = count(model, example_inputs)
    total = before.num_macs if cost == "macs" else before.num_params
    limit = bounds.limits({cost: total})[cost]
    student = copy.deepcopy(model)
    config = _config(reconstruct)
    batches = calibration_batches(data, config.max_samples, required_inputs(model))
    layers, whole = _layers(student, checked_patterns(ignore, model))
    seen = _seen(student, layers, batches, seed)
    macs = {one.name: one.num_macs for one in before.layers if one.num_macs}
    called = seen.keys() & macs.keys()
    whole |= {name: "the forward does not call it" for name in layers if name not in called}
    layers = {name: layer for name, layer in layers.items() if name in called}
    if not layers:
        raise FactorizeError(
            "no layer can be split" + "".join(f"; {name}: {why}" for name, why in [*whole.items()][:3]),
            remedy="Give the network as its class, with plain nn.Linear, nn.Conv1d or nn.Conv2d in it",
        )
    weights = _weights(output_gains(student, layers, batches, torch.Generator().manual_seed(seed)), layers)
    choices = {
        name: _weighed(
            seen[name].by_macs(macs[name]) if cost == "macs" else seen[name].by_params(), weights[name]
        )
        for name in layers
    }
    rest = total - sum(max(one.cost for one in each) for each in choices.values())
    chosen = choose(choices, limit - rest)
    if chosen is None:
        least = rest + sum(min(one.cost for one in each) for each in choices.values())
        raise FactorizeError(
            f"{limit:,} {cost} are out of reach: {least:,} are left with every rank at 1",
            remedy="Ask for more, prune as well, or leave fewer layers out",
        )
    done = []
    for name, layer in layers.items():
        one = chosen[name]
        if one.rank is None:
            whole[name] = "a low rank of it would cost more than it saves"
            continue
        _replace(student, layer, seen[name].pair(one.rank))
        done.append(LowRank(name, one.rank, seen[name].full_rank, one.error / weights[name]))
    listen(Event("factorize", "note", message=f"{len(done)} layers split, {len(whole)} stay whole"))
    fit = None
    if reconstruct is not False:
        fit = refit(student, model, {}, batches, config, seed=seed, listen=listen)
        student = fit.model
    after = count(student, example_inputs)
    return FactorizeResult(student, tuple(done), whole, before, after, fit, time.perf_counter() - began)


def with_ranks(model: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """A copy with pairs of these ranks, near the layers' weights; a factorized network's weights fit in it.

    Args:
        model: The network that was factorized.
        ranks: By name of the module, as `FactorizeResult.ranks` gives them.

    Raises:
        FactorizeError: for a name that is no layer that can be split, or a rank that it cannot have.
    """
    student = copy.deepcopy(model)
    modules = dict(student.named_modules())
    for name, rank in ranks.items():
        layer = modules.get(name)
        why = "there is no such module" if layer is None else refusal(layer)
        if why or not isinstance(layer, Layer):
            raise FactorizeError(str(why), layer=name, remedy="Give the ranks that `factorize` gave")
        columns = Columns(layer)
        if not 1 <= rank <= columns.full_rank:
            raise FactorizeError(
                f"rank {rank} of 1 to {columns.full_rank}",
                layer=name,
                remedy="Give the ranks it was made with",
            )
        _replace(student, layer, columns.pair(rank))
    return student


def _config(given: bool | ReconstructConfig | Mapping[str, Any]) -> ReconstructConfig:
    if isinstance(given, bool):
        return ReconstructConfig(block_steps=_STEPS)
    return ReconstructConfig.of(given)


def _layers(model: nn.Module, ignore: Sequence[str]) -> tuple[dict[str, Layer], dict[str, str]]:
    """What may be split, and what may not, and why."""
    layers: dict[str, Layer] = {}
    whole: dict[str, str] = {}
    names = Counter(id(value) for _, value in model.named_parameters(remove_duplicate=False))
    copies = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            continue
        why = refusal(layer)
        weight = layer._parameters.get("weight")
        if why is None and weight is None:
            why = "its weight is computed"
        if why is None and names[id(weight)] > copies[id(layer)]:
            why = "its weight is shared"
        if why is None and any(matches(f"{name}.weight", pattern) for pattern in ignore):
            why = "it is to be left alone"
        if why is None and isinstance(layer, Layer):
            layers[name] = layer
        else:
            whole[name] = str(why)
    return layers, whole


def _weights(gains: Mapping[str, float], layers: Collection[str]) -> dict[str, float]:
    """What a layer's error counts: the root of how far the outputs follow it, as the refit then takes most of
    the loudest errors away; the same for all where that is not known.
    """
    largest = max(gains.values(), default=0.0)
    if not 0 < largest < float("inf") or any(isnan(gain) for gain in gains.values()):
        return dict.fromkeys(layers, 1.0)
    return {name: max(gains.get(name, 0.0) / largest, _LEAST) ** 0.5 for name in layers}


def _weighed(choices: Sequence[Choice], weight: float) -> list[Choice]:
    return [replace(one, error=weight * one.error) for one in choices]


@torch.no_grad()
def _seen(
    model: nn.Module, layers: Mapping[str, Layer], batches: Sequence[Inputs], seed: int
) -> dict[str, Columns]:
    """What each layer that is called reads."""
    generator = torch.Generator().manual_seed(seed)
    seen: dict[str, Columns] = {}
    wanted = max(_ROWS // len(batches), 1)

    def watch(name: str, layer: Layer) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, y: Tensor) -> None:
            x = args[0] if args else kwargs["input"]
            seen.setdefault(name, Columns(layer)).add(x.detach(), y, wanted, generator)

        return layer.register_forward_hook(hook, with_kwargs=True)

    hooks = [watch(name, layer) for name, layer in layers.items()]
    try:
        with eval_view(model):
            for batch in batches:
                call_model(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _replace(model: nn.Module, layer: nn.Module, pair: nn.Module) -> None:
    """Wherever modules hold the layer."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is layer:
                module._modules[name] = pair
