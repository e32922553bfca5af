"""CPU time of planning and applying a pruning, beside Torch-Pruning on the same models in the same run.

    python bench/planning_speed.py --out speed.csv [--models 'resnet*'] [--repeats 3]
    python bench/planning_speed.py --widths          # how the time grows with the width of one network

Ours is trace + couple + score + allocate + plan + apply; apply runs the sliced class and the sliced graph and
compares them (``of_it_check``), which the peer does not do. The time that torch.export itself takes is
measured apart and shown beside it. Theirs is the pruner's construction (its dependency graph) and one
``step()``, in the documented usage: magnitude importance, ratio 0.5, the classifier ignored, heads of
attention given. Process CPU time on one thread, median of the repeats, after a warm-up on a small model. The
peer is optional (``pip install torch-pruning``); without it only our columns are filled.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import gc
import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

if TYPE_CHECKING:
    from penjing.graph import Coupling, Graph

MODELS = (
    *(f"torchvision:resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"timm:vit_{size}_patch16_224" for size in ("tiny", "small", "base")),
    *(f"torchvision:densenet{depth}" for depth in (121, 161, 169, 201)),
)
FIELDS = (
    "model", "ops", "params", "export", "trace", "couple", "plan", "apply", "of_it_check", "ours", "removed",
    "peer_build", "peer_prune", "peer", "peer_removed", "speedup", "speedup_without_check",
    "speedup_with_export", "peer_failure",
)  # fmt: skip
RATIO = 0.5
T = TypeVar("T")


def main() -> int:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("speed.csv"))
    parser.add_argument("--models", default="*", help="glob of names")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--widths", action="store_true", help="ResNet-50 at widths 1 to 8 instead")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen: dict[str, Callable[[], nn.Module]] = {
        name: partial(build, name) for name in MODELS if fnmatch.fnmatch(name, options.models)
    }
    if not chosen:
        parser.error(f"no model is named {options.models}: {', '.join(MODELS)}")
    if importlib.util.find_spec("torch_pruning") is None and not options.widths:
        print("torch-pruning is not installed: its columns stay empty (pip install torch-pruning==1.6.1)")
    if options.widths:
        chosen = {f"resnet50, {width} channels": partial(wide, width) for width in (64, 128, 256)}
    warm_up()
    with open(options.out, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, restval="")
        writer.writeheader()
        for name, make in chosen.items():
            row = {"model": name, **ours(make, options.repeats)}
            if not options.widths:
                row |= theirs(make, options.repeats)
            if row.get("peer"):
                row["speedup"] = round(row["peer"] / row["ours"], 2)
                row["speedup_without_check"] = round(row["peer"] / (row["ours"] - row["of_it_check"]), 2)
                row["speedup_with_export"] = round(row["peer"] / (row["ours"] + row["export"]), 2)
            writer.writerow(row)
            file.flush()
            print(
                " ".join(f"{key}={row[key]}" for key in FIELDS if row.get(key) not in (None, "")), flush=True
            )
    return 0


def build(name: str) -> nn.Module:
    """A model with random weights."""
    torch.manual_seed(0)
    source, _, model = name.partition(":")
    if source == "timm":
        import timm

        return timm.create_model(model, pretrained=False).eval()  # type: ignore[no-any-return]
    import torchvision

    return torchvision.models.get_model(model, weights=None).eval()  # type: ignore[no-any-return]


def wide(width: int) -> nn.Module:
    """ResNet-50 with ``width`` channels in the first bottleneck."""
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [3, 4, 6, 3], width_per_group=width).eval()  # type: ignore[no-any-return]


class Small(nn.Module):
    """What both tools are warmed up on."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """x_NCHW to logits."""
        return self.fc(self.body(x).mean((2, 3)))  # type: ignore[no-any-return]


def warm_up() -> None:
    """Pay for lazy imports and caches before anything is measured."""
    ours(lambda: Small().eval(), 1)
    theirs(lambda: Small().eval(), 1)


class Clock:
    """CPU seconds of each call; garbage of the calls before (torch.export leaves much) is collected first."""

    def __init__(self) -> None:
        self.laps: list[float] = []

    def __call__(self, step: Callable[..., T], *args: Any) -> T:
        """Run one step."""
        gc.collect()
        start = time.process_time()
        result = step(*args)
        self.laps.append(time.process_time() - start)
        return result


@contextmanager
def call_clock(spent: list[float], *holders: tuple[Any, str]) -> Iterator[None]:
    """Add up the CPU time of some functions, each given as its holder and its name."""
    originals = [getattr(holder, name) for holder, name in holders]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent.append(time.process_time() - start)

        return call

    for (holder, name), original in zip(holders, originals, strict=True):
        setattr(holder, name, timed(original))
    try:
        yield
    finally:
        for (holder, name), original in zip(holders, originals, strict=True):
            setattr(holder, name, original)


def ours(make: Callable[[], nn.Module], repeats: int) -> dict[str, Any]:
    """Median seconds of each of our steps."""
    from penjing.graph import couple, trace
    from penjing.prune import allocate, make_criterion, prune_slots
    from penjing.prune.criteria import Material

    def choose(model: nn.Module, graph: Graph, coupling: Coupling) -> dict[str, Any]:
        scores = make_criterion("magnitude").scores(Material(model, graph, coupling))
        return allocate(coupling.groups, scores, ratio=RATIO)

    laps: dict[str, list[float]] = {}
    row: dict[str, Any] = {}
    for _ in range(repeats):
        model, x = make(), torch.randn(1, 3, 224, 224)
        clock, spent, checking = Clock(), [0.0], [0.0]
        with call_clock(spent, (torch.export, "export"), (ExportedProgram, "module")):
            graph = clock(trace, model, x)
        coupling = clock(couple, graph)
        kept = clock(choose, model, graph, coupling)
        with call_clock(checking, (importlib.import_module("penjing.prune.apply"), "compare")):
            result = clock(prune_slots, model, x, graph, coupling, kept)
        steps = clock.laps
        steps[0] -= sum(spent)
        for name, seconds in zip(("trace", "couple", "plan", "apply"), steps, strict=True):
            laps.setdefault(name, []).append(seconds)
        laps.setdefault("ours", []).append(sum(steps))
        laps.setdefault("export", []).append(sum(spent))
        laps.setdefault("of_it_check", []).append(sum(checking))
        row["ops"] = sum(node.op == "call_function" for node in graph.module.graph.nodes)
        row["params"] = result.before["params"]
        row["removed"] = round(1 - result.after["params"] / result.before["params"], 3)
    return row | {name: round(statistics.median(seconds), 3) for name, seconds in laps.items()}


def theirs(make: Callable[[], nn.Module], repeats: int) -> dict[str, Any]:
    """Median seconds of Torch-Pruning's two steps, in its documented usage."""
    try:
        import torch_pruning as tp
    except ImportError:
        return {}
    built, pruned, removed = [], [], 0.0
    for _ in range(repeats):
        model, x = make(), torch.randn(1, 3, 224, 224)
        before = sum(p.numel() for p in model.parameters())
        heads = timm_heads(model)
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        clock = Clock()
        try:
            pruner = clock(make_pruner, tp, model, x, last, heads)
            clock(pruner.step)
            with torch.no_grad():
                model(x)
        except Exception as error:  # the peer's failure is a result
            return {"peer_failure": f"{type(error).__name__}: {str(error).splitlines()[:1]}"[:200]}
        built.append(clock.laps[0])
        pruned.append(clock.laps[1])
        removed = 1 - sum(p.numel() for p in model.parameters()) / before
    return {
        "peer_build": round(statistics.median(built), 3),
        "peer_prune": round(statistics.median(pruned), 3),
        "peer": round(statistics.median(a + b for a, b in zip(built, pruned, strict=True)), 3),
        "peer_removed": round(removed, 3),
    }


def make_pruner(tp: Any, model: nn.Module, x: Tensor, last: nn.Module, heads: dict[nn.Module, int]) -> Any:
    """Their pruner, with its dependency graph."""
    return tp.pruner.MagnitudePruner(
        model,
        x,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=[last],
        num_heads=heads,
    )


def timm_heads(model: nn.Module) -> dict[nn.Module, int]:
    """Number of heads by qkv layer; the peer needs a forward that does not write the width out."""
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        if type(module).__name__ == "Attention" and hasattr(module, "qkv"):
            heads[module.qkv] = int(module.num_heads)  # type: ignore[index, arg-type]
            module.forward = MethodType(plain_attention, module)
    return heads


def plain_attention(self: Any, x: Tensor, **options: Any) -> Tensor:
    """Attention that takes every width from its tensors (as in the peer's own example for timm)."""
    batch, tokens, _ = x.shape
    qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    weights = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)
    out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, -1))
    return out


if __name__ == "__main__":
    sys.exit(main())
