"""How much a network's answers change when one group alone loses a share of its slots.

Nothing is sliced: the interpreter that carries masks over the original graph (`penjing.prune.masked`) answers
as the pruned network would, from the first op that the group reaches (`penjing.search.suffixes`). Without
labels the change is the divergence of the outputs; with a metric it is what the metric loses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from penjing.batches import between, count_samples, first_tensor, join_samples, take_apart
from penjing.class_order import class_by_class, is_open, plain_labels
from penjing.errors import DataError, PruneError
from penjing.events import Event, Listener, silent, warner
from penjing.graph import Coupling, Graph, Group
from penjing.prune.allocate import queue
from penjing.prune.compare import difference
from penjing.prune.masked.reference import masked_output
from penjing.search.suffixes import Answer, visit_groups

Score = Callable[[Tensor, Tensor], float]
"""``metric(outputs, targets)``: higher is better."""
RATIOS = (0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Sensitivity:
    """Damage by group and ratio.

    Attributes:
        groups: Group ids.
        sizes: Slots of each group.
        ratios: Shares of slots removed, rising.
        damage: Shape (groups, ratios): what one group alone does. Never negative.
        measure: ``"kl"`` (mean Kullback-Leibler divergence from the original's outputs, nats), ``"mse"``
            (mean square error over the outputs' variance) or ``"metric"`` (loss of the metric).
        samples: Samples it was measured on.
    """

    groups: tuple[str, ...]
    sizes: tuple[int, ...]
    ratios: tuple[float, ...]
    damage: NDArray[np.float64]
    measure: str
    samples: int

    def at(self, group: str, removed: NDArray[np.float64]) -> NDArray[np.float64]:
        """Damage at any removed shares, never falling: linear between what was measured (0 at 0), and on with
        the last slope beyond.
        """
        row = np.maximum.accumulate(self.damage[self.groups.index(group)])
        x = np.concatenate([[0.0], self.ratios])
        y = np.concatenate([[0.0], row])
        slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
        inside = np.interp(removed, x, y)
        beyond: NDArray[np.float64] = inside + np.maximum(removed - x[-1], 0.0) * slope
        return beyond

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "groups": list(self.groups),
            "sizes": list(self.sizes),
            "ratios": list(self.ratios),
            "damage": [[float(v) for v in row] for row in self.damage],
            "measure": self.measure,
            "samples": self.samples,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sensitivity:
        """What `to_dict` gave."""
        return cls(
            groups=tuple(data["groups"]),
            sizes=tuple(data["sizes"]),
            ratios=tuple(data["ratios"]),
            damage=np.asarray(data["damage"], dtype=np.float64).reshape(len(data["groups"]), -1),
            measure=data["measure"],
            samples=data["samples"],
        )

    def _repr_html_(self) -> str:
        from penjing.report.heat import heat_map

        return heat_map(self.to_dict())


def sensitivity(
    graph: Graph,
    coupling: Coupling,
    scores: Mapping[str, NDArray[np.float64]],
    data: Iterable[Any],
    *,
    ratios: Sequence[float] = RATIOS,
    samples: int = 64,
    metric: Score | None = None,
    listen: Listener = silent,
) -> Sensitivity:
    """Measure every group at every ratio, one at a time.

    Args:
        graph: The traced network.
        coupling: Its groups.
        scores: Scores of every slot by group id; the lowest are the ones removed.
        data: Batches of inputs, or of (inputs, targets).
        ratios: Shares to remove, in (0, 1).
        samples: Samples used, the first of the data.
        metric: Scores outputs against targets; None compares with the original's outputs and needs no labels.
        listen: Hears progress.

    Raises:
        PruneError: for ratios outside (0, 1), or a change that is not finite.
        DataError: if the data is empty, or a metric is given and it has no targets.
    """
    chosen = tuple(sorted({float(r) for r in ratios}))
    if not chosen or not all(0 < r < 1 for r in chosen):
        raise PruneError(f"ratios {tuple(ratios)} are not all in (0, 1)", remedy="Give shares to remove")
    inputs, targets = _first_batch(data, samples, graph.input_names, warner("prune", listen))
    if metric is not None and targets is None:
        raise DataError("a metric needs targets", remedy="Give batches of (inputs, targets)")
    reference = _as_output(masked_output(graph, coupling, {}, inputs)[0])
    compare, measure = _comparison(reference, targets, metric)
    rows = {group.id: np.zeros(len(chosen)) for group in coupling.groups}
    seen = 0

    def feel(group: Group, answer: Answer) -> None:
        nonlocal seen
        listen(Event("prune", "progress", seen, len(rows), "group", message="sensitivity"))
        seen += 1
        line = queue(group, scores[group.id])
        before = (0, 0.0)
        for r, ratio in enumerate(chosen):
            steps = line.within(ratio * group.size)
            if steps != before[0]:
                change = compare(_as_output(answer(line.kept(group.size, steps))))
                if not math.isfinite(change):
                    raise PruneError(
                        f"the outputs change by {change} when {ratio:.0%} of its slots go",
                        layer=group.id,
                        remedy="Give data and a metric on which the network's answers are finite",
                    )
                before = (steps, max(0.0, change))
            rows[group.id][r] = before[1]

    visit_groups(graph, coupling, coupling.groups, inputs, feel)
    return Sensitivity(
        groups=tuple(group.id for group in coupling.groups),
        sizes=tuple(group.size for group in coupling.groups),
        ratios=chosen,
        damage=np.stack([*rows.values()]) if rows else np.zeros((0, len(chosen))),
        measure=measure,
        samples=count_samples(inputs),
    )


def _first_batch(
    data: Iterable[Any], samples: int, names: Sequence[str], tell: Callable[[str], None]
) -> tuple[Any, Tensor | None]:
    """The first samples of the data as one batch, and their targets where there are any; ``tell`` hears
    `class_by_class`.

    Raises:
        DataError: if there are none.
    """
    taken: list[Any] = []
    targets: list[Tensor] = []
    labels: list[int] = []
    count = 0
    for batch in data:
        inputs, target, _ = take_apart(batch, names)
        labels += plain_labels(target)
        room = samples - count
        if not room:
            break
        taken.append(between(inputs, 0, room))
        if target is not None:
            targets.append(target[:room])
        count += count_samples(taken[-1])
        if count >= samples and not is_open(labels, samples):
            break
    if said := class_by_class(labels, samples):
        tell(said)
    if not count:
        raise DataError("the data has no batches", remedy="Give at least one batch of inputs")
    return join_samples(taken), torch.cat(targets) if len(targets) == len(taken) else None


def _as_output(value: Any) -> Tensor:
    return first_tensor(value).double()


def _comparison(
    reference: Tensor, targets: Tensor | None, metric: Score | None
) -> tuple[Callable[[Tensor], float], str]:
    if metric is not None and targets is not None:
        best = float(metric(reference.float(), targets))
        return lambda z: best - float(metric(z.float(), targets)), "metric"
    if reference.ndim == 2 and reference.shape[1] > 1:
        log_p = F.log_softmax(reference, 1)
        return lambda z: _divergence(log_p, F.log_softmax(z, 1)), "kl"
    finite = reference[reference.isfinite()]
    size = float(finite.var(correction=0)) or 1.0
    return lambda z: float(difference(z, reference).square().mean()) / size, "mse"


def _divergence(log_p: Tensor, log_q: Tensor) -> float:
    """Mean Kullback-Leibler divergence in nats; classes of no probability (masked scores) add nothing."""
    p = log_p.exp()
    return float(torch.where(p > 0, p * (log_p - log_q), 0.0).sum()) / len(p)
