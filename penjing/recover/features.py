"""Features of the same layer in student and teacher, lined up by the plan.

A pruned network keeps some of the original's channels. The plan says which, so a student's feature is
compared with exactly those channels of the teacher's and no learned projector stands between.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from penjing.errors import RecoverError
from penjing.graph import GraphModel
from penjing.recover.graph_taps import linear_layers, tap

_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)


@dataclass(frozen=True)
class FeatureSpec:
    """One place where features are taken.

    Attributes:
        layer: Name of a module that student and teacher both have.
        side: ``"output"`` or ``"input"`` of that module.
        kept: Which of the teacher's positions the student has, by dimension; without those it has whole.
        channels: The dimension of the channels: the second for images, the last for tokens.
    """

    layer: str
    side: Literal["output", "input"] = "output"
    kept: Mapping[int, Tensor] = field(default_factory=dict)
    channels: int = 1

    @property
    def key(self) -> str:
        """Name of the feature in `Answers`."""
        return f"{self.layer}:{self.side}"

    def channels_second(self, feature: Tensor) -> Tensor:
        """The feature as ``[N, C, …]``."""
        return feature.movedim(self.channels, 1) if feature.dim() > 1 else feature


def feature_specs(
    student: nn.Module, teacher: nn.Module, layers: Sequence[str], plan: Any = None, *, aligned: bool = True
) -> tuple[FeatureSpec, ...]:
    """Places for the named layers (patterns allowed), aligned by ``plan``.

    Without names: what goes into the last linear layer. With ``aligned=False`` the channels need not be
        lined up.

    Raises:
        RecoverError: a name that no module has, or channels that cannot be lined up.
    """
    mine, theirs = dict(student.named_modules()), dict(teacher.named_modules())
    if not layers:
        linears = [name for name in _linears(student) if name in theirs]
        if not linears:
            raise RecoverError(
                "the model has no linear layer to take features before",
                remedy="Name layers in the loss's options",
            )
        last = linears[-1]
        kept = _kept(plan, mine[last], theirs[last], last, dim=1) if aligned else None
        return (FeatureSpec(last, "input", {} if kept is None else {-1: kept}, channels=-1),)
    found: dict[str, FeatureSpec] = {}
    for pattern in layers:
        names = [name for name in mine if name and name in theirs and fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise RecoverError(
                f"no layer of student and teacher matches {pattern!r}",
                remedy=f"Use names of modules, for example {', '.join(list(mine)[1:6])}",
            )
        for name in names:
            kept = _kept(plan, mine[name], theirs[name], name, dim=0) if aligned else None
            dim = _channel_dim(theirs[name])
            found[name] = FeatureSpec(name, "output", {} if kept is None else {dim: kept}, channels=dim)
    return tuple(found.values())


def _linears(model: nn.Module) -> list[str]:
    if isinstance(model, GraphModel):
        return linear_layers(model)
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _channel_dim(module: nn.Module) -> int:
    """The dimension of the channels of what a layer gives, or a sequence of layers."""
    while isinstance(module, nn.Sequential) and len(module):
        module = next((m for m in reversed(module) if next(m.parameters(), None) is not None), module[-1])
    return -1 if isinstance(module, _CHANNELS_LAST) else 1


def _kept(plan: Any, mine: nn.Module, theirs: nn.Module, name: str, dim: int) -> Tensor | None:
    """The teacher's channels that the student kept at this place, from the plan's entry for its last
    parameter; None where it has them all.

    For a block it is the last parameter of its kind that speaks: the batch norm or convolution that ends it.
    """
    held = dict(mine.named_parameters())
    params = [(inner, p) for inner, p in theirs.named_parameters() if p.dim() > dim and inner in held]
    if not params:
        return None
    inner, original = params[-1] if dim == 0 else params[0]
    ours = held[inner]
    if ours.shape[dim] == original.shape[dim]:
        return None
    full = f"{name}.{inner}"
    positions = kept_positions(plan, full, dim)
    if positions is None or len(positions) != ours.shape[dim]:
        raise RecoverError(
            f"the student has {ours.shape[dim]} of the teacher's {original.shape[dim]} channels and "
            + ("no plan says which" if plan is None else f"the plan's entry for {full} does not fit"),
            layer=name,
            remedy="Pass the plan the student was pruned with, or use an unaligned loss (at, rkd, sp)",
        )
    return positions


def kept_positions(plan: Any, tensor: str, dim: int) -> Tensor | None:
    """Positions of dimension ``dim`` of the original ``tensor`` that the plan keeps; None when it keeps all.

    ``plan`` is a `penjing.prune.Plan` or a mapping ``{tensor: {dim: positions}}``.
    """
    if plan is None:
        return None
    tensors: Mapping[str, Any] = plan if isinstance(plan, Mapping) else plan.tensors
    kept = tensors.get(tensor)
    if kept is None:
        return None
    positions = kept.get(dim)
    return None if positions is None else torch.as_tensor(positions, dtype=torch.int64)


class Taps:
    """Forward hooks (taps, in a traced graph) that keep the last feature at each place, for the time of a
    ``with`` block.

    Attributes:
        features: The features of the last forward pass, by `FeatureSpec.key`.
    """

    def __init__(self, model: nn.Module, specs: Sequence[FeatureSpec]) -> None:
        self.features: dict[str, Tensor] = {}
        self._model = model
        self._specs = specs
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        modules = dict(self._model.named_modules())
        for spec in self._specs:
            module = modules[spec.layer]
            if isinstance(self._model, GraphModel):
                keep = partial(self.features.__setitem__, spec.key)
                self._undo.append(tap(self._model, spec.layer, spec.side, keep))
                continue
            output = spec.side == "output"
            register = module.register_forward_hook if output else module.register_forward_pre_hook
            self._undo.append(register(partial(self._keep, spec.key)).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for undo in self._undo:
            undo()
        self._undo.clear()

    def _keep(self, key: str, module: nn.Module, *seen: Any) -> None:
        """A hook: it sees the inputs, and behind the module the output as well."""
        self.features[key] = _tensor(seen[-1], key)


def _tensor(value: Any, key: str) -> Tensor:
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    if not isinstance(value, Tensor):
        raise RecoverError(
            f"the feature is a {type(value).__name__}", layer=key, remedy="Name a layer that gives one tensor"
        )
    return value


def align(spec: FeatureSpec, teacher: Tensor) -> Tensor:
    """The teacher's feature restricted to what the student kept."""
    for dim, kept in spec.kept.items():
        teacher = teacher.index_select(dim, kept.to(teacher.device))
    return teacher
