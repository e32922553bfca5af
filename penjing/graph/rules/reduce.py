"""Reductions: the reduced axis is left; what its pruning changes is marked."""

from __future__ import annotations

from penjing.graph.axes import Axis, Leaf
from penjing.graph.rules.table import Axes, Op, rule

MARKS = {
    "mean": "mean",
    "sum": "sum",
    "nansum": "sum",
    "nanmean": "mean",
    "var": "normalised",
    "std": "normalised",
    "var_mean": "normalised",
    "std_mean": "normalised",
    "amax": "reduced",
    "amin": "reduced",
    "max": "reduced",
    "min": "reduced",
    "norm": "reduced",
    "linalg_vector_norm": "reduced",
    "linalg_norm": "reduced",
    "linalg_matrix_norm": "reduced",
    "logsumexp": "softmax",
    "special_logsumexp": "softmax",
    "prod": "reduced",
    "any": "reduced",
    "all": "reduced",
    "count_nonzero": "reduced",
    "aminmax": "reduced",
    "median": "reduced",
    "nanmedian": "reduced",
    "mode": "reduced",
    "argmax": "position",
    "argmin": "position",
}


_WITH_POSITIONS = [
    f"aten.{name}" for name in ("max.dim", "min.dim", "median.dim", "nanmedian.dim", "mode.default")
]


def _reduction(name: str, mark: str) -> None:
    @rule(f"aten.{name}")
    def reduction(op: Op) -> list[Axes]:
        x = op.tensors()[0]
        dims = op.args.get("dim", op.args.get("dims"))
        over = dims if isinstance(dims, list | tuple) else ([] if dims is None else [dims])
        reduced = {op.dim(dim, len(x)) for dim in over} or set(range(len(x)))
        for dim in reduced:
            if mark == "position" or _uses_positions(op):
                op.freeze(x[dim], "the position of an extreme value is used")
            op.mark(x[dim], mark)
        keep = bool(op.args.get("keepdim", False))
        out: list[Axis] = [
            Leaf(1, "one") if d in reduced else axis for d, axis in enumerate(x) if keep or d not in reduced
        ]
        return [tuple(out)] * len(op.outputs)


def _uses_positions(op: Op) -> bool:
    """Whether the second output of ``max(dim)`` is read."""
    if str(op.node.target) not in _WITH_POSITIONS:
        return False
    return any(user.args[1] == 1 and user.users for user in op.node.users if len(user.args) > 1)


for _name, _mark in MARKS.items():
    _reduction(_name, _mark)


@rule("aten.max.other", "aten.min.other")
def pairwise(op: Op) -> Axes:
    """The elementwise form."""
    return op.broadcast(*op.tensors())


@rule("aten.topk", "aten.sort", "aten.argsort", "aten.kthvalue")
def ordered(op: Op) -> list[Axes]:
    """Order along a dim decides, so its slots stay."""
    x = op.tensors()[0]
    dim = op.dim(op.args.get("dim", -1), len(x))
    op.freeze(x[dim], "slots are ordered by value")
    results: list[Axes] = []
    for shape in op.outputs:
        if len(shape) == len(x):
            results.append((*x[:dim], op.fixed(shape[dim], "slots are ordered by value"), *x[dim + 1 :]))
        else:
            results.append(x[:dim] + x[dim + 1 :])
    return results


@rule("aten.quantile", "aten.nanquantile")
def quantile(op: Op) -> Axes:
    """A reduction; several quantiles are a first dim."""
    x = op.axes(op.args["self"])
    dim = op.args.get("dim")
    reduced = set(range(len(x))) if dim is None else {op.dim(dim, len(x))}
    for place in reduced:
        op.mark(x[place], "reduced")
    keep = bool(op.args.get("keepdim"))
    left = [Leaf(1, "one") if d in reduced else axis for d, axis in enumerate(x) if keep or d not in reduced]
    several = [op.fixed(axis.size, "one slot for each quantile") for axis in op.axes(op.args["q"])]
    return (*several, *left)


@rule("aten.cosine_similarity")
def cosine(op: Op) -> Axes:
    """A normalised inner product over one dim."""
    x = op.broadcast(*op.tensors()[:2])
    dim = op.dim(op.args.get("dim", 1), len(x))
    op.mark(x[dim], "reduced")
    return x[:dim] + x[dim + 1 :]


@rule("aten.pairwise_distance")
def distance(op: Op) -> Axes:
    """The norm of a difference over the last dim."""
    x = op.broadcast(*op.tensors()[:2])
    op.mark(x[-1], "reduced")
    return (*x[:-1], Leaf(1, "one")) if op.args.get("keepdim") else x[:-1]


@rule("aten.cdist")
def distances(op: Op) -> Axes:
    """Of every row (…, M, K) from every row (…, N, K)."""
    a, b = op.tensors()[:2]
    op.unify(a[-1], b[-1])
    op.mark(a[-1], "reduced")
    return (*op.broadcast(a[:-2], b[:-2]), a[-2], b[-2])


@rule("aten.pdist")
def pairs_of_rows(op: Op) -> Axes:
    """Of every row (N, K) from those behind it."""
    x = op.axes(op.args["self"])
    op.freeze(x[0], "its slots are paired with each other")
    op.mark(x[1], "reduced")
    return (op.fixed(op.shape[0], "pairs of slots"),)
