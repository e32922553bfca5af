"""Every bench, one after the other, each in a process of its own; what they write goes to one folder.

    make bench                          # or: python -m bench --data DATA --out runs/bench --only export zoo

A bench that fails, or whose data are missing, is named at the end, and the others still run. Those that can
go on where they stopped (zoo, export, cifar10) do so when called again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

_HERE = Path(__file__).parent
_TRAIN, _TEST = "cifar10-train.parquet", "cifar10-test.parquet"
_RESNETS = ("resnet20-cifar10.safetensors", "resnet56-cifar10.safetensors")
NEEDS: dict[str, tuple[str, ...]] = {
    "litert": (_TRAIN, _TEST, _RESNETS[0]),
    "latency_model": _RESNETS,
    "quantize": (_TRAIN, _TEST, *_RESNETS),
    "held_blocks": (_TRAIN, _RESNETS[0]),
    "criteria": (_TRAIN, _TEST, _RESNETS[0]),
    "zoo": ("zoo.json",),
    "export": ("zoo.json",),
    "cifar10": (_TRAIN, _TEST, _RESNETS[1]),
    "pareto": (_TRAIN, _TEST, _RESNETS[1]),
}
"""Files of the data folder that a bench cannot do without."""


def commands(data: Path, out: Path) -> dict[str, list[str]]:
    """Arguments of every bench by its name, the shorter ones first."""
    zoo = str(data / "zoo.json")
    return {
        "scale": ["scale.py"],
        "training_step": ["training_step.py"],
        "keras_files": ["keras_files.py"],
        "litert": ["litert.py", str(data)],
        "latency_model": ["latency_model.py", "--data", str(data)],
        "quantize": ["quantize.py", "--data", str(data), "--json", str(out / "quantize.json")],
        "planning_speed": ["planning_speed.py", "--out", str(out / "planning_speed.csv")],
        "held_blocks": ["held_blocks.py", "--data", str(data)],
        "criteria": ["criteria.py", "--data", str(data)],
        "zoo": ["zoo.py", zoo, "--onnx", "--resume", "--out", str(out / "zoo.csv")],
        "export": [
            *("export.py", zoo, "--formats", "onnx,saved_model,litert,read", "--prune", "0.5", "--resume"),
            *("--keep", str(out / "onnx"), "--out", str(out / "export.csv")),
        ],
        "cifar10": ["cifar10.py", "--data", str(data), "--out", str(out / "cifar10")],
        "pareto": ["pareto.py", "--data", str(data), "--run", str(out / "cifar10")],
    }


def main() -> int:
    """Run them; 1 if one failed or could not run, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(commands(Path(), Path()))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="images, weights, zoo.json")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="where results go")
    parser.add_argument("--only", nargs="+", default=names, choices=names)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    missed: list[str] = []
    for name, (script, *rest) in commands(args.data, args.out).items():
        if name not in args.only:
            continue
        print(f"\n== {name}", flush=True)
        if absent := [file for file in NEEDS.get(name, ()) if not (args.data / file).is_file()]:
            print(f"== {name}: left out, no {', '.join(absent)} in {args.data}: give --data", flush=True)
            missed.append(name)
            continue
        began = time.monotonic()
        try:
            done = subprocess.run([sys.executable, str(_HERE / script), *rest], check=False)
        except KeyboardInterrupt:  # the bench has heard it, too
            print(f"== {name}: interrupted", file=sys.stderr)
            return 130
        print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
        if done.returncode:
            failed.append(name)
    for said, names in (("failed", failed), ("left out", missed)):
        if names:
            print(f"{said}: {', '.join(names)}", file=sys.stderr)
    return 1 if failed or missed else 0


if __name__ == "__main__":
    sys.exit(main())
