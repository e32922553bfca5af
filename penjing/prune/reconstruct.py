"""Keep the function before training anything: refit what reads pruned channels to the original's outputs.

Layer after layer, in the order of computation, each layer's weights are fitted by ridge least squares:
from the student's own inputs (already refitted up to there) to the teacher's outputs. Where the layer ends
a residual branch, the target is the teacher's residual *sum* less the student's own shortcut, so that the
branch also makes good what the shortcut stream has lost. Means of what was removed go into biases, or into
the running means of batch norms.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, fx, nn

from penjing.batches import Inputs, count_samples, first_samples
from penjing.config import Config
from penjing.errors import DataError, PruneError
from penjing.events import Event, Listener, silent, warner
from penjing.graph import Graph
from penjing.graph.branches import chosen, cut, find_branches
from penjing.graph.inputs import required_inputs

_EQUAL = 1e-11
"""Output error, squared and relative, up to which two networks of the same sizes answer alike."""


class ReconstructConfig(Config):
    """Options of `reconstruct`.

    Attributes:
        max_samples: Most calibration samples taken from the data (labels are not looked at).
        max_memory: Most memory in GiB for the values of all samples, which wait in front of the layer that is
            being fitted; where more would be needed, fewer samples are used, and a note says so.
        holdout: Fraction of the samples held back to choose each layer's ridge.
        ridges: Ridges to try, relative to the mean variance of a layer's inputs. A layer keeps its weights
            where none of them lowers its error on the held-back samples.
        layers: ``"all"`` refits every layer from the first pruned one on, also those whose inputs have only
            drifted; ``"pruned"`` only those that read pruned channels.
        drift: Let residual branches correct the drift of their shortcut.
        through_relu: Where a ReLU follows, fit what it passes: values that it cuts off need not be met.
        max_features: Layers with more inputs (channels × kernel) are fitted from samples instead of second
            moments.
        max_rows: Most rows (samples × positions) a layer is fitted on; positions are taken by chance.
        block_steps: Training steps in which the layers of each block are then fitted together, to what the
            original's block gives (`penjing.prune.block_fit`); still without labels. 300 cost two to three
            times the rest of the refit and bring the outputs closer by a third where much was pruned.
        rebase_norms: Set batch-norm statistics to those of the refitted network and change scale and
            offset so that the function stays; training then starts from the function it was given.
    """

    max_samples: int = Field(default=2048, ge=8)
    max_memory: float = Field(default=4.0, gt=0)
    holdout: float = Field(default=0.2, gt=0, lt=1)
    ridges: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0), min_length=1
    )
    layers: Literal["all", "pruned"] = "all"
    drift: bool = True
    through_relu: bool = True
    max_features: int = Field(default=2560, ge=1)
    max_rows: int = Field(default=131_072, ge=16)
    block_steps: int = Field(default=0, ge=0)
    rebase_norms: bool = True


@dataclass(frozen=True)
class LayerFit:
    """What happened to one layer.

    Attributes:
        layer: Name of its weight.
        method: ``"moments"``, ``"samples"``, ``"shift"`` (only means were folded) or ``"kept"``.
        target: ``"output"``, or ``"sum"`` where a residual branch corrects the drift of the shortcut.
        ridge: The chosen ridge; None where the weights stay.
        error_before, error_after: Squared error on the held-back samples, relative to the size of the target;
            behind a ReLU, of what it passes.
    """

    layer: str
    method: str
    target: str
    ridge: float | None
    error_before: float
    error_after: float


@dataclass(frozen=True)
class BlockFit:
    """What happened to one block.

    Attributes:
        layers: Names of its weights.
        error_before, error_after: Squared error of what leaves it on the held-back samples, relative to the
            original's values; the same where training it did not help and was taken back.
    """

    layers: tuple[str, ...]
    error_before: float
    error_after: float


@dataclass(frozen=True)
class ReconstructResult:
    """A refitted network.

    Attributes:
        model: The refitted copy of the student.
        layers: One entry for each layer looked at, in the order of computation.
        blocks: One entry for each block fitted as a whole.
        num_samples: Calibration samples used.
        error_before, error_after: Squared difference between the student's and the teacher's outputs on
            the held-back samples, relative to the teacher's variance.
        seconds: Wall-clock seconds.
        notes: What was left out, and why.
    """

    model: nn.Module
    layers: tuple[LayerFit, ...]
    num_samples: int
    error_before: float
    error_after: float
    seconds: float
    notes: tuple[str, ...] = ()
    blocks: tuple[BlockFit, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "blocks": [asdict(block) for block in self.blocks],
            "num_samples": self.num_samples,
            "error_before": self.error_before,
            "error_after": self.error_after,
            "notes": list(self.notes),
            "timing": {"seconds": self.seconds},
        }


def reconstruct(
    student: nn.Module,
    teacher: nn.Module | Graph,
    plan: Any,
    data: Iterable[Any],
    config: ReconstructConfig | Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    listen: Listener = silent,
) -> ReconstructResult:
    """Refit a pruned network to its original, without training and without labels.

    Args:
        student: The pruned network (the user's class or a traced graph). It is copied.
        teacher: The original; its graph, where it is traced already, saves time.
        plan: The plan that made the student, or a mapping ``{tensor: {dim: kept positions}}``.
        data: A re-iterable of batches, as for training.
        config: Options.
        seed: Chooses the positions a large layer is fitted on.
        listen: Hears the progress.

    Raises:
        DataError: no data, or NaN in it.
        PruneError: when student and teacher are not the same network but for its sizes.
        TraceError: when one of them cannot be traced.
    """
    from penjing.prune.refit import Refit  # the traced-graph machinery loads only when it is used

    config = ReconstructConfig.of(config)
    began = time.perf_counter()
    told: list[str] = []
    batches = calibration_batches(data, config.max_samples, required_inputs(student), told.append)
    for said in told:
        warner("reconstruct", listen)(said)
    model = copy.deepcopy(student)
    work = Refit(model, teacher, plan, batches, config, seed, listen)
    before = work.output_error()
    listen(Event("reconstruct", "start", 0, work.total, "layer", message=f"{work.num_samples} samples"))
    removes = bool(kept_positions(plan) or getattr(plan, "branches", None))
    needed = removes or not before <= _EQUAL  # weights may have been changed without a plan
    layers = work.run() if needed else []
    after = work.output_error() if needed else before
    notes = [*told, *work.notes]
    if not needed:
        notes.append("nothing to refit: the network answers as the original does")
        listen(Event("reconstruct", "note", message=notes[-1]))
    elif not after < before and any(layer.method != "kept" for layer in layers):
        # never hand back something worse than what came in
        notes.append("the refit did not lower the output error on held-back samples and was undone")
        model, after = copy.deepcopy(student), before
        listen(Event("reconstruct", "warning", message=notes[-1]))
    seconds = time.perf_counter() - began
    metrics = {"error_before": before, "error_after": after, "seconds": seconds}
    listen(Event("reconstruct", "end", work.total, work.total, "layer", metrics))
    return ReconstructResult(
        model, tuple(layers), work.num_samples, before, after, seconds, tuple(notes), tuple(work.blocks)
    )


def calibration_batches(
    data: Iterable[Any],
    max_samples: int,
    names: Sequence[str],
    tell: Callable[[str], None] | None = None,
) -> list[Inputs]:
    """The inputs of the first ``max_samples`` samples, batch by batch; see `first_samples`.

    Raises:
        DataError: no data, or NaN in it.
    """
    taken = first_samples(data, max_samples, names, tell)
    if sum(count_samples(inputs) for inputs in taken) < 2:
        raise DataError(
            "the data has fewer than two samples",
            remedy="Give some hundreds of samples of the training set",
        )
    return taken


def kept_positions(plan: Any) -> dict[str, dict[int, Tensor]]:
    """Kept positions by tensor and dimension."""
    tensors: Mapping[str, Mapping[int, Any]] = plan if isinstance(plan, Mapping) else plan.tensors
    return {
        name: {dim: torch.as_tensor(positions, dtype=torch.int64) for dim, positions in dims.items()}
        for name, dims in tensors.items()
    }


def counterparts(student: Graph, teacher: Graph, gone: Sequence[str] = ()) -> dict[fx.Node, fx.Node]:
    """The student's nodes with their counterparts in the teacher, which has some branches more.

    What pruning has written anew (a shuffle or another order of channels, as an index) has none.

    Raises:
        PruneError: when they are not the same network: an op that reads a parameter has no counterpart.
    """
    if not gone:
        return _aligned(student, teacher.module)
    short = cut(teacher, chosen(find_branches(teacher), gone))
    whole = {node.name: node for node in teacher.module.graph.nodes}
    pairs = _aligned(student, short.module)
    return {mine: whole[its.name] for mine, its in pairs.items()}


def _aligned(student: Graph, teacher: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    mine, theirs = (list(module.graph.nodes) for module in (student.module, teacher))
    names = _renamed(student, {str(node.target) for node in theirs if node.op == "get_attr"})
    keys = [_key(node, names) for node in mine], [_key(node, {}) for node in theirs]
    runs = SequenceMatcher(None, keys[0], keys[1], autojunk=False).get_matching_blocks()
    pairs = {mine[run.a + at]: theirs[run.b + at] for run in runs for at in range(run.size)}
    for node in mine:
        read = [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]
        parameters = [name for name in read if name in student.params and name not in names]
        if node not in pairs and (parameters or node.op == "output"):
            raise PruneError(
                f"student and teacher compute different things: {node.target} is only in the student",
                layer=parameters[0] if parameters else node.name,
                remedy="Reconstruct the pruned network against the very network it was pruned from",
            )
    return pairs


def _renamed(student: Graph, theirs: Collection[str]) -> dict[str, str]:
    """Parameters of layers that the student has as two (`penjing.factor`), and what the original calls them:
    the second one gives what the layer gives, the first one what only the student has.
    """
    found: dict[str, str] = {}
    for name in student.params.keys() - set(theirs):
        path, _, kind = name.rpartition(".")
        layer, _, half = path.rpartition(".")
        if half in ("into", "out") and f"{layer}.weight" in theirs:
            found[name] = f"{layer}.{kind}" if half == "out" else name
    return found


def _key(node: fx.Node, names: Mapping[str, str]) -> tuple[str, ...]:
    """What a node is: its op and the parameters that it reads."""
    read = (str(source.target) for source in node.all_input_nodes if source.op == "get_attr")
    op = "" if node.op == "output" else str(node.target)
    return (node.op, names.get(op, op), *(names.get(name, name) for name in read))
