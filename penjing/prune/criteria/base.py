"""What a criterion is, and what all of them share: registry, reduction over members, normalisation over
slots.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penjing.errors import PruneError
from penjing.events import Listener, silent
from penjing.graph import Coupling, Graph, Group, Member
from penjing.table import adder

Scores = NDArray[np.float64]
Reduction = Literal["mean", "sum", "max", "first"]
Normalisation = Literal["none", "mean", "max", "gauss", "lamp"]


@dataclass(frozen=True)
class Material:
    """What a criterion may look at.

    Attributes:
        model: The user's model (eval mode while scoring); not to be changed.
        graph: Its traced graph.
        coupling: Its groups.
        data: Re-iterable of batches, or None.
        loss: ``loss(output, batch) -> scalar`` for criteria that need gradients; None means the default of
            `penjing.prune.criteria.gradients`.
        seed: For criteria that draw.
        listen: Hears progress over the data.
    """

    model: nn.Module
    graph: Graph
    coupling: Coupling
    data: Iterable[Any] | None = None
    loss: Callable[[Any, Any], Tensor] | None = None
    seed: int = 0
    listen: Listener = silent
    memory: dict[Any, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def batches(self) -> Iterable[Any]:
        """The data, none where there is none (its truth is not asked: it may be one tensor)."""
        return () if self.data is None else self.data

    def once(self, key: Any, compute: Callable[[], Tensor]) -> Tensor:
        """A value that many groups ask for (norms of one dim of a tensor), computed the first time."""
        if key not in self.memory:
            self.memory[key] = compute()
        return self.memory[key]

    def tensor(self, name: str) -> Tensor:
        """Parameter or buffer of that name, detached, in real numbers."""
        params = self.graph.params
        return as_real((params[name] if name in params else self.graph.buffers[name]).detach())

    def is_param(self, name: str) -> bool:
        """Whether the name is a parameter (not a buffer or a constant)."""
        return name in self.graph.params


@dataclass(frozen=True)
class Criterion(ABC):
    """Scores every slot of every group; a low score goes first.

    Attributes:
        reduction: How the scores of a group's members become one.
        normalisation: How the slots of one group are scaled, so that groups compare under scope "global".
    """

    reduction: Reduction = "mean"
    normalisation: Normalisation = "mean"

    name: ClassVar[str] = ""
    needs_data: ClassVar[bool] = False
    adds_up: ClassVar[bool] = False
    """Whether scores that are not normalised are parts of one damage, comparable over groups."""

    def scores(self, material: Material) -> dict[str, Scores]:
        """Score of every slot, float64, by group id.

        Raises:
            PruneError: if the criterion needs data and none is given, or a score is not finite.
        """
        if self.needs_data and material.data is None:
            raise PruneError(
                f"criterion {self.name!r} needs data",
                remedy="Pass data=… (batches of the training set)",
            )
        out = {}
        for group, raw in zip(material.coupling.groups, self.raw_scores(material), strict=True):
            if not np.isfinite(raw).all():
                raise PruneError(
                    f"criterion {self.name!r} gives a score that is not finite",
                    layer=group.id,
                    remedy="Check the weights and the data for NaN and infinity",
                )
            out[group.id] = normalise(raw, self.normalisation)
        return out

    @abstractmethod
    def raw_scores(self, material: Material) -> Iterable[Scores]:
        """Score of every slot before normalisation, for each group in the order of ``coupling.groups``."""


@dataclass(frozen=True)
class MemberCriterion(Criterion):
    """A criterion that scores each member tensor by itself and then reduces over members."""

    def raw_scores(self, material: Material) -> Iterable[Scores]:
        """Reduce `member_scores` over the members that count."""
        for group in material.coupling.groups:
            rows = [self.member_scores(member, material) for member in self.members(group, material)]
            yield reduce_members(rows, self.reduction, group.size)

    def members(self, group: Group, material: Material) -> list[Member]:
        """Members that count: weights of two or more dims; where a group has none, all its parameters."""
        params = [m for m in group.members if material.is_param(m.tensor)]
        return [m for m in params if material.graph.params[m.tensor].ndim >= 2] or params

    @abstractmethod
    def member_scores(self, member: Member, material: Material) -> Scores:
        """Score of every slot by this member alone, shape (size,)."""


def as_real(value: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers in one more dim, the last; a real one as it is."""
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def slot_sums(member: Member, per_position: Tensor) -> Scores:
    """Sum a value per position of the member's dim into its slots: (dim size,) → (size,)."""
    values = per_position.to(torch.float64).cpu().numpy()
    owned = np.where(member.index >= 0, values[member.index], 0.0)  # rows are filled up with -1
    return np.asarray(owned.sum(axis=1), dtype=np.float64)


def reduce_members(rows: list[Scores], reduction: Reduction, size: int) -> Scores:
    """One score per slot from one row per member; without rows every slot weighs the same."""
    if not rows:
        return np.ones(size)
    reduced: Scores = _REDUCTIONS[reduction](np.stack(rows))
    return reduced


_REDUCTIONS: Mapping[str, Callable[[NDArray[np.float64]], Scores]] = {
    "mean": lambda rows: rows.mean(axis=0),
    "sum": lambda rows: rows.sum(axis=0),
    "max": lambda rows: rows.max(axis=0),
    "first": lambda rows: rows[0],
}


def normalise(scores: Scores, how: Normalisation) -> Scores:
    """Scale the scores of one group; the order of its slots is kept."""
    scaled: Scores = _NORMALISATIONS[how](np.asarray(scores, dtype=np.float64))
    return scaled


def _over(scores: Scores, scale: float) -> Scores:
    return scores / scale if scale > 0 else scores


def _gauss(scores: Scores) -> Scores:
    deviation = float(scores.std())
    return _over(scores - float(scores.mean()), deviation)


def _lamp(scores: Scores) -> Scores:
    """s_i / Σ_{j: s_j ≥ s_i} s_j (Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based
    pruning", eq. 3).
    """
    order = np.argsort(-scores, kind="stable")
    tails = np.cumsum(scores[order])
    out = np.empty_like(scores)
    out[order] = np.divide(scores[order], tails, out=np.zeros_like(tails), where=tails > 0)
    return out


_NORMALISATIONS: Mapping[str, Callable[[Scores], Scores]] = {
    "none": lambda scores: scores,
    "mean": lambda scores: _over(scores, float(np.abs(scores).mean())),
    "max": lambda scores: _over(scores, float(np.abs(scores).max())),
    "gauss": _gauss,
    "lamp": _lamp,
}

_REGISTRY: dict[str, type[Criterion]] = {}
C = TypeVar("C", bound=type[Criterion])


def criterion(name: str) -> Callable[[C], C]:
    """Register a criterion class under a name; another one of that name is a ``ValueError``."""

    def register(cls: C) -> C:
        cls.name = name
        adder(_REGISTRY, "criterion ")(name)(cls)
        return cls

    return register


@cache
def _read_own() -> None:
    import penjing.prune.criteria as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def all_criteria() -> Mapping[str, type[Criterion]]:
    """Every criterion by name: each module of `penjing.prune.criteria` is one, and what users registered."""
    _read_own()
    return dict(sorted(_REGISTRY.items()))


def make_criterion(spec: str | Mapping[str, Any] | Criterion) -> Criterion:
    """A criterion from its name, ``{"name": …, option: value}``, or one made already.

    Raises:
        PruneError: for an unknown name or option.
    """
    if isinstance(spec, Criterion):
        return spec
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = str(options.pop("name", ""))
    if name not in all_criteria():
        raise PruneError(f"unknown criterion {name!r}", remedy=f"Choose one of {', '.join(all_criteria())}")
    try:
        return all_criteria()[name](**options)
    except TypeError as error:
        raise PruneError(
            f"criterion {name!r}: {error}", remedy="Correct the options of the criterion"
        ) from error
