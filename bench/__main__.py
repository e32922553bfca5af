"""Every bench, one after the other, each in a process of its own; what they write goes to one folder.

    make bench                          # or: python -m bench --data DATA --out runs/bench --only export zoo

A bench that fails is named at the end, and the others still run. Those that can go on where they stopped
(zoo, export, cifar10) do so when called again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

_HERE = Path(__file__).parent


def commands(data: Path, out: Path) -> dict[str, list[str]]:
    """Arguments of every bench by its name, the shorter ones first."""
    zoo = str(data / "zoo.json")
    return {
        "scale": ["scale.py"],
        "training_step": ["training_step.py"],
        "litert": ["litert.py", str(data)],
        "latency_model": ["latency_model.py", "--data", str(data)],
        "quantize": ["quantize.py", "--data", str(data), "--json", str(out / "quantize.json")],
        "planning_speed": ["planning_speed.py", "--out", str(out / "planning_speed.csv")],
        "held_blocks": ["held_blocks.py", "--data", str(data)],
        "zoo": ["zoo.py", zoo, "--onnx", "--resume", "--out", str(out / "zoo.csv")],
        "export": [
            *("export.py", zoo, "--formats", "onnx,saved_model,litert,read", "--prune", "0.5", "--resume"),
            *("--keep", str(out / "onnx"), "--out", str(out / "export.csv")),
        ],
        "cifar10": ["cifar10.py", "--data", str(data), "--out", str(out / "cifar10")],
        "pareto": ["pareto.py", "--data", str(data), "--run", str(out / "cifar10")],
    }


def main() -> int:
    """Run them; 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(commands(Path(), Path()))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="images, weights, zoo.json")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="where results go")
    parser.add_argument("--only", nargs="+", default=names, choices=names)
    args = parser.parse_args()
    if not (args.data / "zoo.json").is_file():
        parser.error(f"no data in {args.data}: give --data")
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, (script, *rest) in commands(args.data, args.out).items():
        if name not in args.only:
            continue
        print(f"\n== {name}", flush=True)
        began = time.monotonic()
        done = subprocess.run([sys.executable, str(_HERE / script), *rest], check=False)
        print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
        if done.returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
