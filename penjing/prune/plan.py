"""The plan: what to keep of each tensor, in original positions, as plain data.

A plan says nothing about weights and decides nothing when applied. It is JSON both ways, refuses a model it
was not made for, composes with a later plan, and slices anything shaped like the parameters: a state dict,
the moments of an optimizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from penjing.brief import Brief, InShort
from penjing.errors import PruneError
from penjing.files import read_json, write_json
from penjing.graph.tree import held_tensors
from penjing.prune.ranges import Positions, from_ranges, to_ranges

if TYPE_CHECKING:
    from penjing.graph import Coupling

FORMAT = "penjing.plan"
VERSION = 2
_READ = (1, 2)  # version 1 had no branches

Shape = tuple[int, ...]


@dataclass(frozen=True)
class GroupEdit:
    """The slots of one group that stay: ``kept`` (strictly increasing) of ``size``."""

    size: int
    kept: Positions

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, GroupEdit) and self.size == other.size and np.array_equal(self.kept, other.kept)
        )


@dataclass(frozen=True)
class AttributeEdit:
    """An integer (or tuple of integers) held by a module that follows the sizes: ``module.name``: old →
    new.
    """

    module: str
    name: str
    old: int | Shape
    new: int | Shape


@dataclass(frozen=True, repr=False)
class Plan(InShort):
    """What pruning does to one model.

    Attributes:
        shapes: Shape of everything in the original's state dict, by dotted name. A plan fits a model when
            these agree.
        groups: Kept slots of every pruned group, by group id.
        tensors: For each tensor that changes, ``{dim: kept positions}`` in the original's positions.
        attributes: Integer attributes of the user's modules that follow.
        values: New contents, as nested lists, of buffers that hold positions of a pruned axis (constant
            indices).
        branches: Residual branches that go whole: by name, what of the state dict goes with each.
        renamed: Ids in the result of groups that have another one here: what they shared a dimension with has
            come down to a single slot.
        in_place: Whether the user's own class serves the result; otherwise the traced graph does.
        reason: Why not in place, or "".
        created_by: The options it was made with.
    """

    shapes: Mapping[str, Shape]
    groups: Mapping[str, GroupEdit]
    tensors: Mapping[str, Mapping[int, Positions]]
    attributes: tuple[AttributeEdit, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    branches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    in_place: bool = True
    reason: str = ""
    created_by: Mapping[str, Any] = field(default_factory=dict)

    # -- identity -------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names and shapes of the model this plan is for."""
        return _fingerprint(self.shapes)

    @property
    def gone(self) -> frozenset[str]:
        """Names of the state dict that go with whole branches."""
        return frozenset(name for names in self.branches.values() for name in names)

    @property
    def new_shapes(self) -> dict[str, Shape]:
        """Shape of everything in the state dict after the plan."""
        shapes = {}
        for name, shape in self.shapes.items():
            dims = self.tensors.get(name, {})
            shapes[name] = tuple(len(dims[d]) if d in dims else n for d, n in enumerate(shape))
        for name in self.gone:
            del shapes[name]
        return shapes

    def check(self, model: nn.Module) -> None:
        """Make sure that the plan was made for a model like this one.

        Raises:
            PruneError: naming the first tensor that is missing, unexpected or of another shape.
        """
        _compare(self.shapes, tensor_shapes(model))

    def in_short(self) -> Brief:
        """What every pruned group keeps, and which branches go."""
        from penjing.report.text import some

        rows = [(name, "goes whole") for name in self.branches]
        rows += [(name, f"{len(edit.kept):,} of {edit.size:,}") for name, edit in self.groups.items()]
        made = ", ".join(
            f"{key} {value}" for key, value in self.created_by.items() if value not in (None, "")
        )
        counts = [f"{some(len(self.groups), 'group')} pruned"] if self.groups or not self.branches else []
        counts += [f"{some(len(self.branches), 'branch', 'branches')} removed"] if self.branches else []
        return Brief(", ".join(counts) + (f" ({made})" if made else ""), ("group", "kept"), rows)

    # -- slicing --------------------------------------------------------------------------------------------

    def slice_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """Keep of ``tensor``, shaped like the original's ``name``, what the plan keeps (always a new
        tensor).
        """
        if tuple(tensor.shape) != tuple(self.shapes.get(name, tensor.shape)):
            raise PruneError(
                f"tensor of shape {tuple(tensor.shape)} where the plan expects {tuple(self.shapes[name])}",
                layer=name,
                remedy="Apply the plan to the model it was made for",
            )
        if name in self.values:
            return torch.tensor(self.values[name], dtype=tensor.dtype, device=tensor.device)
        out = tensor
        for dim, kept in self.tensors.get(name, {}).items():
            out = out.index_select(dim, torch.from_numpy(np.asarray(kept)).to(out.device))
        return out.clone() if out is tensor else out

    def slice_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Slice a state dict of the original model into one of the pruned model.

        Names the plan does not know (a wrapper's extra entries) pass through unchanged.
        """
        gone = self.gone
        return {name: self.slice_tensor(name, tensor) for name, tensor in state.items() if name not in gone}

    def slice_optimizer(self, state: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Slice an optimizer's ``state_dict()`` so that the pruned model's optimizer can load it.

        Every state tensor shaped like its parameter (momentum, Adam moments, …) is sliced as the parameter
        is; scalars such as step counts are kept. Parameters of branches that go are left out, and the others
        numbered anew.

        Args:
            state: ``optimizer.state_dict()`` of the original.
            names: Parameter names in the order in which the optimizer was given the parameters; for
                ``SGD(model.parameters())`` that is ``[n for n, _ in model.named_parameters()]``.

        Raises:
            PruneError: for a state tensor of another shape (a factored optimizer) on a pruned parameter.
        """
        sliced: dict[int, dict[str, Any]] = {}
        gone = self.gone
        number = {old: new for new, old in enumerate(i for i, name in enumerate(names) if name not in gone)}
        for index, entry in state["state"].items():
            if not 0 <= int(index) < len(names):
                raise PruneError(
                    f"optimizer holds parameter number {index} and only {len(names)} names were given",
                    remedy="Give the names of all parameters in the optimizer's order",
                )
            if index in number:
                moments = {k: self._slice_moment(names[int(index)], k, v) for k, v in entry.items()}
                sliced[number[index]] = moments
        groups = [
            {**group, "params": [number[i] for i in group["params"] if i in number]}
            for group in state["param_groups"]
        ]
        return {"state": sliced, "param_groups": groups}

    def _slice_moment(self, name: str, key: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if name not in self.shapes:
            raise PruneError(
                "unknown parameter", layer=name, remedy="Give the parameter names of the original model"
            )
        if value.shape == self.shapes[name]:
            return self.slice_tensor(name, value)
        if value.ndim == 0 or name not in self.tensors:
            return value.clone()
        raise PruneError(
            f"optimizer state {key!r} has shape {tuple(value.shape)}, not its parameter's",
            layer=name,
            remedy="Start this optimizer afresh after pruning: its state does not follow the parameter",
        )

    # -- composition ----------------------------------------------------------------------------------------

    def then(self, later: Plan, coupling: Coupling | None = None) -> Plan:
        """The plan that does this one and then ``later``, in the original's positions.

        Args:
            later: A plan for the model that this one produces.
            coupling: The original's axes (without the branches that go). With them its groups are counted by
                what stays of the tensors; without, by their names, and a group that this plan ties anew
                (where it writes a channel shuffle as an index) keeps the count of this plan.

        Raises:
            PruneError: if ``later`` was not made for the model this plan produces.
        """
        _compare(later.shapes, self.new_shapes)
        tensors: dict[str, dict[int, Positions]] = {n: dict(dims) for n, dims in self.tensors.items()}
        for name, dims in later.tensors.items():
            mine = tensors.setdefault(name, {})
            for dim, kept in dims.items():
                mine[dim] = mine[dim][kept] if dim in mine else kept
        groups = dict(self.groups)
        for now, edit in later.groups.items():
            key = self.renamed.get(now, now)
            if key not in groups:
                groups[key] = edit
            elif len(groups[key].kept) == edit.size:
                groups[key] = GroupEdit(groups[key].size, groups[key].kept[edit.kept])
        renamed = {now: key for now, key in self.renamed.items() if now not in later.renamed.values()}
        renamed |= {now: self.renamed.get(key, key) for now, key in later.renamed.items()}
        gone = later.gone
        values = {**self.values, **later.values}
        both = replace(
            self,
            groups=groups,
            tensors={name: dims for name, dims in tensors.items() if name not in gone},
            values={name: value for name, value in values.items() if name not in gone},
            branches={**self.branches, **later.branches},
            renamed=renamed,
            attributes=_then_attributes(self.attributes, later.attributes),
            in_place=self.in_place and later.in_place,
            reason=self.reason or later.reason,
            created_by={"then": [dict(self.created_by), dict(later.created_by)]},
        )
        if coupling is None:
            return both
        from penjing.prune.slots import by_group, group_edits, slots_of  # which imports this module

        return replace(both, groups=group_edits(coupling, by_group(coupling, slots_of(both, coupling))))

    # -- plain data -----------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `from_dict` gives an equal plan back."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "in_place": self.in_place,
            "reason": self.reason,
            "created_by": dict(self.created_by),
            "groups": {
                key: {"size": edit.size, "kept": to_ranges(edit.kept)} for key, edit in self.groups.items()
            },
            "tensors": {
                name: {str(dim): to_ranges(kept) for dim, kept in dims.items()}
                for name, dims in self.tensors.items()
            },
            "attributes": [
                {"module": a.module, "name": a.name, "old": _plain(a.old), "new": _plain(a.new)}
                for a in self.attributes
            ],
            "values": dict(self.values),
            "branches": {name: list(tensors) for name, tensors in self.branches.items()},
            "renamed": dict(self.renamed),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` gave.

        Raises:
            PruneError: for data that is not a plan, is damaged, or of a newer version.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise PruneError("this is not a plan", remedy="Give the plan.json that pruning wrote")
        if data.get("version") not in _READ:
            raise PruneError(
                f"plan of format version {data.get('version')!r}; this release reads version {VERSION}",
                remedy="Use the release that wrote it, or prune again",
            )
        try:
            plan = cls(
                shapes={str(n): tuple(int(i) for i in shape) for n, shape in data["shapes"].items()},
                groups={
                    str(k): GroupEdit(int(g["size"]), from_ranges(g["kept"]))
                    for k, g in data["groups"].items()
                },
                tensors={
                    str(n): {int(d): from_ranges(text) for d, text in dims.items()}
                    for n, dims in data["tensors"].items()
                },
                attributes=tuple(
                    AttributeEdit(a["module"], a["name"], _tupled(a["old"]), _tupled(a["new"]))
                    for a in data["attributes"]
                ),
                values={str(n): v for n, v in data["values"].items()},
                branches={str(b): tuple(map(str, names)) for b, names in data.get("branches", {}).items()},
                renamed={str(now): str(key) for now, key in data.get("renamed", {}).items()},
                in_place=bool(data["in_place"]),
                reason=str(data["reason"]),
                created_by=dict(data.get("created_by", {})),
            )
            for name, dims in plan.tensors.items():
                for dim, kept in dims.items():
                    if len(kept) == 0 or kept[-1] >= plan.shapes[name][dim]:
                        raise ValueError(f"kept positions of {name} dim {dim} are outside its shape")
            if not plan.gone <= plan.shapes.keys():
                raise ValueError("a branch holds tensors that the model does not have")
            for name, value in plan.values.items():
                if np.array(value, dtype=np.int64).shape != plan.new_shapes[name]:
                    raise ValueError(f"the values of {name} do not have its new shape")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise PruneError(
                f"damaged plan: {type(error).__name__}: {error}", remedy="Write the plan again"
            ) from error
        if data.get("fingerprint") != plan.fingerprint:
            raise PruneError(
                "damaged plan: its fingerprint does not match its shapes", remedy="Write the plan again"
            )
        return plan

    def save(self, path: Path | str) -> None:
        """Write the plan as JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path | str) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            PruneError: if the file is missing or not a plan.
        """
        try:
            data = read_json(path)
        except (OSError, ValueError) as error:
            raise PruneError(
                f"cannot read the plan {path}: {error}", remedy="Give a plan.json file"
            ) from error
        return cls.from_dict(data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_dict() == other.to_dict()


def tensor_shapes(model: nn.Module) -> dict[str, Shape]:
    """Shape of everything in the state dict, by every dotted name it has (a shared tensor has several)."""
    return {held.name: tuple(held.tensor.shape) for held in held_tensors(model) if held.persistent}


def _fingerprint(shapes: Mapping[str, Shape]) -> str:
    text = json.dumps([[name, list(shape)] for name, shape in sorted(shapes.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def _compare(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) == found.get(name):
            continue
        want, have = (str(s[name]) if name in s else "absent" for s in (expected, found))
        raise PruneError(
            f"the plan is for another model: it expects shape {want}, the model has {have}",
            layer=name,
            remedy="Apply the plan to the model it was made for",
        )


def _then_attributes(
    first: Sequence[AttributeEdit], later: Sequence[AttributeEdit]
) -> tuple[AttributeEdit, ...]:
    merged = {(a.module, a.name): a for a in first}
    for edit in later:
        key = (edit.module, edit.name)
        merged[key] = replace(edit, old=merged[key].old) if key in merged else edit
    return tuple(merged.values())


def _plain(value: int | Shape) -> int | list[int]:
    return list(value) if isinstance(value, tuple) else value


def _tupled(value: int | Sequence[int]) -> int | Shape:
    return int(value) if isinstance(value, int) else tuple(int(v) for v in value)
