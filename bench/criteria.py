"""What criteria are worth under one ratio or one budget: accuracy after the refit, before any training.

    python bench/criteria.py --ratio 0.4                 # of all slots inside the blocks
    python bench/criteria.py --macs 0.5 --criteria obs magnitude --scopes global

Validation images (no test image is read) and the share of the MACs that each choice leaves, since a ratio of
slots takes more of them from one criterion than from another.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from cifar10 import EXAMPLE, STREAM, Bench, Setting

from penjing.measure import count, wilson
from penjing.prune import Budget, prune
from penjing.recover import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="images and weights")
    parser.add_argument("--out", type=Path, default=Path("runs/criteria"), help="keeps the decoded images")
    parser.add_argument("--depth", type=int, default=20, choices=(20, 56))
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--macs", type=float, default=None, help="a share of the MACs, instead of the ratio")
    parser.add_argument("--criteria", nargs="+", default=["obs", "magnitude", "taylor", "lamp", "random"])
    parser.add_argument("--scopes", nargs="+", default=["global", "isomorphic", "local"])
    parser.add_argument("--calibration", type=int, default=1024)
    parser.add_argument("--val", type=int, default=2000)
    args = parser.parse_args()
    setting = Setting(
        data=args.data,
        out=args.out,
        depth=args.depth,
        speedup=1 / (args.macs or 1.0),
        epochs=0,
        batch_size=128,
        calibration=args.calibration,
        train_limit=None,
        val_limit=args.val,
        test_limit=None,
    )
    bench = Bench(setting)
    images = bench.labelled()
    amount: dict[str, Any] = (
        {"ratio": args.ratio} if args.macs is None else {"budget": Budget(macs=args.macs)}
    )
    print(f"{'criterion':12} {'scope':11} {'MACs':>6} {'params':>7}  accuracy (n={args.val})")
    for criterion in args.criteria:
        for scope in args.scopes:
            done = prune(
                bench.dense,
                torch.zeros(EXAMPLE),
                criterion=criterion,
                scope=scope,
                ignore=STREAM,
                data=images,
                reconstruct=True,
                **amount,
            )
            right, total, _ = evaluate(done.model, bench.val)
            low, high = wilson(int(right), total)
            counted = count(done.model, torch.zeros(EXAMPLE))
            params = counted.num_params / done.before["params"]
            print(
                f"{criterion:12} {scope:11} {counted.num_macs / bench.macs:6.3f} {params:7.3f}  "
                f"{100 * right / total:.2f}% [{100 * low:.1f}, {100 * high:.1f}]",
                flush=True,
            )


if __name__ == "__main__":
    main()
