"""Export a zoo of models to every format and check each file in its own runtime; one CSV row a model and
format.

    python bench/export.py zoo.json --formats onnx,saved_model,litert --prune 0.5 --out export.csv

``zoo.json`` is a list of ``{"name", "source": "timm" | "torchvision", "kind", "input": [1, 3, 224, 224]}``.
Each model runs in a process of its own with a time limit, so that one that crashes or hangs costs one row.
Weights are random. ``--resume`` keeps the good rows of the file from an earlier run and does the others.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median
from typing import Any

COLUMNS = (
    "model",
    "format",
    "ok",
    "params",
    "params_before",
    "relative_difference",
    "agreement",
    "batch_sizes",
    "seconds",
    "size_bytes",
    "error",
)


def main() -> None:
    """Run the zoo, or with ``--worker`` a single model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--formats", default="onnx,saved_model")
    parser.add_argument(
        "--prune", type=float, default=0.0, metavar="RATIO", help="prune first; 0 leaves it out"
    )
    parser.add_argument("--models", default="", help="only these names, separated by commas")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for a model and format")
    parser.add_argument("--out", type=Path, default=Path("export.csv"))
    parser.add_argument("--resume", action="store_true", help="keep the models of --out that all succeeded")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    entries = json.loads(options.zoo.read_text(encoding="utf-8"))
    if options.worker:
        entry = next(e for e in entries if f"{e['source']}:{e['name']}" == options.worker)
        work(entry, options.formats, options.prune)
        return
    wanted = {name for name in options.models.split(",") if name}
    entries = [e for e in entries if not wanted or e["name"] in wanted]
    rows = done_before(options) if options.resume else []
    done = {row["model"] for row in rows}
    entries = [e for e in entries if f"{e['source']}:{e['name']}" not in done]
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        for entry in entries:
            for row in run(entry, options):
                rows.append(row)
                writer.writerow(row)
                file.flush()
                print(
                    *(row[c] for c in ("model", "format", "ok", "relative_difference", "seconds", "error")),
                    flush=True,
                )
    summary(rows)


def done_before(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of an earlier run whose model passed in every format asked for now."""
    if not options.out.exists():
        return []
    with options.out.open(newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = [row for row in csv.DictReader(file) if row["ok"] == "1"]
    passed = Counter(row["model"] for row in rows)
    return [row for row in rows if passed[row["model"]] >= len(options.formats.split(","))]


def run(entry: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one model, from its own process."""
    formats = options.formats.split(",")
    key = f"{entry['source']}:{entry['name']}"
    command = [sys.executable, __file__, str(options.zoo), "--formats", options.formats]
    command += ["--prune", str(options.prune), "--worker", key]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=options.timeout * len(formats), check=False
        )
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        reason = f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    except subprocess.TimeoutExpired as error:
        text = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        found = [
            json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")
        ]
        reason = "out of time"
    missing = [name for name in formats if name not in {row["format"] for row in found}]
    return found + [
        {**dict.fromkeys(COLUMNS, ""), "model": key, "format": f, "ok": 0, "error": reason} for f in missing
    ]


def build(entry: dict[str, Any]) -> Any:
    """The model, with random weights."""
    if entry["source"] == "timm":
        import timm

        return timm.create_model(entry["name"])
    import torchvision

    backbone = {"weights_backbone": None} if entry["kind"] in ("det", "seg") else {}
    model = torchvision.models.get_model(entry["name"], weights=None, **backbone)
    # A detector's post-processing depends on the data; what is compressed and served is its feature network.
    return model.backbone if entry["kind"] == "det" else model


def work(entry: dict[str, Any], formats: str, ratio: float) -> None:
    """Export one model in this process; print a JSON line for each format."""
    import torch

    import penjing.export as pe
    from penjing.errors import PenjingError

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build(entry).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # heads that start at zero would agree with anything
            if parameter.is_floating_point() and not parameter.any():
                parameter.normal_(std=0.02)
    before = sum(p.numel() for p in model.parameters())
    x = torch.randn(*entry["input"])
    example: Any = x
    if ratio:
        from penjing.prune import prune

        model = prune(model, example, ratio=ratio).model.eval()
    params = sum(p.numel() for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        # LiteRT and SavedModel are made from the ONNX file; written once, it is the source of all.
        source = Path(folder) / "source" / "model.onnx"
        failure, onnx_seconds = "", 0.0
        try:
            started = time.perf_counter()
            pe.export_onnx(model, source, example, dynamic_batch="auto")
            onnx_seconds = time.perf_counter() - started
        except PenjingError as error:
            failure = str(error)
        data = [torch.randn(8, *entry["input"][1:]) for _ in range(4)]
        for name in formats.split(","):
            row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
            row |= {"model": f"{entry['source']}:{entry['name']}", "format": name, "params": params}
            row |= {"params_before": before, "ok": 0, "error": failure}
            if not failure:
                row |= one(pe, model, source, Path(folder) / name, name, example, data, onnx_seconds)
            print(json.dumps(row), flush=True)


def one(
    pe: Any,
    model: Any,
    source: Path,
    folder: Path,
    name: str,
    example: Any,
    data: list[Any],
    onnx_seconds: float,
) -> dict[str, Any]:
    """Write and verify one format of one model."""
    from penjing.errors import PenjingError
    from penjing.export.verify import TorchRunner

    try:
        batch = {"data": data} if name.endswith("int8") else {}
        file = pe.export(source, folder, [name], example_inputs=example, batch_sizes=(1, 3), **batch)[name]
        found = file.verification
        if name == "onnx":  # the file against the module; the others were compared with this file
            names = [spec.name for spec in pe.OnnxRunner(source).inputs]
            found = pe.verify(source, TorchRunner(model, example, names), example, batch_sizes=(1, 3))
    except PenjingError as error:
        return {"error": str(error).splitlines()[0]}
    except Exception as error:  # a bench reports what it meets
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
    return {
        "ok": int(found.ok),
        "relative_difference": f"{found.relative:.1e}",
        "agreement": found.rows[-1].agreement,
        "batch_sizes": " ".join(str(row.batch) for row in found.rows),
        "seconds": round(file.seconds + (onnx_seconds if name == "onnx" else 0.0), 2),
        "size_bytes": file.size_bytes,
    }


def summary(rows: list[dict[str, Any]]) -> None:
    """Share and median time by format, and the commonest errors."""
    by_format = defaultdict(list)
    for row in rows:
        by_format[row["format"]].append(row)
    for name, group in by_format.items():
        good = [row for row in group if row["ok"]]
        seconds = [float(row["seconds"]) for row in good if int(row["params"] or 0) < 30_000_000]
        middle = f"{median(seconds):.1f} s" if seconds else "-"
        share = 100 * len(good) / len(group)
        print(f"{name}: {len(good)}/{len(group)} = {share:.1f}%, median {middle} below 30M parameters")
        for cause, count in Counter(str(row["error"])[:100] for row in group if not row["ok"]).most_common(5):
            print(f"   {count} × {cause}")


if __name__ == "__main__":
    main()
