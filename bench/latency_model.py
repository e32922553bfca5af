"""How far the latency model is off: predicted against measured, on plans that it was not fitted to.

The CIFAR ResNets with the given weights; every file is timed in turns with the original and compared by its
ratio to it, so that a busy machine's clock falls out.

    python -m bench.latency_model --depth 20 56 --data DATA

"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from penjing.graph import couple, trace
from penjing.models import build
from penjing.models.weights import load_weights
from penjing.prune import Budget, Material, allocate, make_criterion
from penjing.prune.slots import by_leaf
from penjing.search.meter import Meter

_EXAMPLE = (2, 3, 32, 32)
_STREAM = ("bn1.weight", "layer*.bn2.weight")  # leaving these whole prunes inside the blocks only


def errors(depth: int, data: Path, round_to: int) -> list[tuple[str, float, float]]:
    """(plan, predicted ms, measured ms at the original's clock) of every plan."""
    model = build(f"resnet{depth}", 10, 3, 32)
    load_weights(model, data / f"resnet{depth}-cifar10.safetensors")
    model.eval()
    x = torch.zeros(_EXAMPLE)
    graph = trace(model, x)
    coupling, inner = couple(graph), couple(graph, ignore=_STREAM)
    scores = make_criterion("magnitude").scores(Material(model, graph, coupling, None, None, 0))
    plans = {
        "uniform, 50%": allocate(coupling.groups, scores, ratio=0.5, round_to=round_to),
        "global, 50%": allocate(coupling.groups, scores, ratio=0.5, scope="global", round_to=round_to),
        "blocks only, 50%": allocate(inner.groups, scores, ratio=0.5, round_to=round_to),
        "blocks only, 75%": allocate(inner.groups, scores, ratio=0.75, round_to=round_to),
    }
    meter = Meter(model, x, graph, coupling, Budget(latency="0.5x"), round_to=round_to)
    leaves = {name: by_leaf(coupling, kept) for name, kept in plans.items()}
    meter.latency.prefetch(leaves.values())
    measured = meter.latency.measure(leaves)
    print(f"  fitted: constant, factor of kernels, seconds an element: {meter.latency.coefficients}")
    original = meter.original["latency"]
    print(f"  original {1e3 * original:.4g} ms (load {os.getloadavg()[0]:.1f})")
    return [(name, 1e3 * meter.latency.seconds(kept), 1e3 * measured[name]) for name, kept in leaves.items()]


def main() -> None:
    """Print a line for every plan."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, nargs="+", default=[20, 56])
    parser.add_argument("--data", type=Path, required=True, help="folder with resnet*-cifar10.safetensors")
    parser.add_argument("--round-to", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for depth in args.depth:
        print(f"ResNet-{depth}", flush=True)
        for name, predicted, measured in errors(depth, args.data, args.round_to):
            off = measured / predicted - 1
            print(
                f"  {name:18} {predicted:8.4f} ms predicted {measured:8.4f} measured {off:+.1%}", flush=True
            )


if __name__ == "__main__":
    main()
