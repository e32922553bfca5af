"""Export a zoo of models to every format and check each file in its own runtime; one CSV row a model and
format.

    python bench/export.py zoo.json --formats onnx,saved_model,litert --prune 0.5 --out export.csv

``zoo.json`` is a list of ``{"name", "source": "timm" | "torchvision", "kind", "input": [1, 3, 224, 224]}``.
Each model runs in a process of its own with a time limit, so that one that crashes or hangs costs one row.
Weights are random. ``--resume`` keeps the good rows of the file from an earlier run and does the others;
``--keep DIR`` keeps the pruned ONNX files there (they are the longest part) and starts from those it finds.
The format ``read`` reads the ONNX file into a torch module and compares the two. For ``litert_int8``: the
share of convolutions and of multiplications with int8 kernels, and what is in float.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import multiprocessing
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import mean, median
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
    "int8_convolutions",
    "int8_multiplications",
    "in_float",
    "error",
)

COMPARE, AT_ONCE = 128, 32  # images that int8 is compared on

PRELOAD = ["timm", "torchvision", "onnxruntime", "penjing.prune", "penjing.export.tf_ops"]


def main() -> None:
    """Run the zoo."""
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
    parser.add_argument(
        "--images",
        type=Path,
        help=f"Parquet file of images for int8: the first calibrate, the next {COMPARE} compare",
    )
    parser.add_argument("--calibration", type=int, default=32, help="images that calibrate int8")
    parser.add_argument("--out", type=Path, default=Path("export.csv"))
    parser.add_argument("--resume", action="store_true", help="keep the rows of --out that succeeded")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep ONNX files here, and start from them")
    options = parser.parse_args()
    entries = json.loads(options.zoo.read_text(encoding="utf-8"))
    wanted = {name for name in options.models.split(",") if name}
    entries = [e for e in entries if not wanted or e["name"] in wanted]
    if missing := wanted - {e["name"] for e in entries}:
        parser.error(f"no model of {options.zoo} is named {', '.join(sorted(missing))}")
    rows = done_before(options) if options.resume else []
    done = {(row["model"], row["format"]) for row in rows}
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        for entry in entries:
            formats = [f for f in options.formats.split(",") if (key_of(entry), f) not in done]
            for row in run(entry, formats, options) if formats else ():
                rows.append(row)
                writer.writerow(row)
                file.flush()
                print(
                    *(row[c] for c in ("model", "format", "ok", "relative_difference", "seconds", "error")),
                    flush=True,
                )
    summary(rows)


def key_of(entry: dict[str, Any]) -> str:
    """What names a model among others."""
    return f"{entry['source']}:{entry['name']}"


def done_before(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of an earlier run that passed."""
    if not options.out.exists():
        return []
    with options.out.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["ok"] == "1"]


def run(entry: dict[str, Any], formats: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one model, from its own process."""
    key = key_of(entry)
    # A server that has imported the frameworks once is forked for each model: importing takes longer than
    # the work on a small one.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(entry, formats, options, send))
    process.start()
    send.close()
    deadline = time.monotonic() + options.timeout * len(formats)
    found: list[dict[str, Any]] = []
    reason = "out of time"
    while receive.poll(max(0.0, deadline - time.monotonic())):
        try:
            found.append(receive.recv())
        except EOFError:
            process.join()
            reason = f"the process ended with {process.exitcode}"
            break
    process.kill()
    process.join()
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


def work(entry: dict[str, Any], formats: list[str], options: argparse.Namespace, rows: Any) -> None:
    """Export one model in this process; send a row for each format."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    example = torch.randn(*entry["input"])
    with nullcontext(str(options.keep)) if options.keep else tempfile.TemporaryDirectory() as folder:
        # LiteRT and SavedModel are made from the ONNX file; written once, it is the source of all.
        source = Path(folder) / f"{entry['source']}-{entry['name']}.onnx"
        about = source.with_suffix(".json")
        if about.is_file():
            first = json.loads(about.read_text(encoding="utf-8"))
        else:
            first = write_onnx(entry, source, example, options.prune)
            if first["ok"]:
                about.write_text(json.dumps(first), encoding="utf-8")
        for name in formats:
            row = dict(first)
            if name != "onnx":
                row = {**dict.fromkeys(COLUMNS, ""), "model": key_of(entry), "format": name, "ok": 0}
                row |= {c: first[c] for c in ("params", "params_before", "error")}
                row |= convert(source, name, example, options) if source.is_file() else {}
            rows.send(row)


def write_onnx(entry: dict[str, Any], path: Path, example: Any, ratio: float) -> dict[str, Any]:
    """Build, prune and write one model as ONNX; the row of that file against the module."""
    import torch

    import penjing.export as pe
    from penjing.errors import PenjingError
    from penjing.export.verify import TorchRunner

    torch.manual_seed(0)
    model = build(entry).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # heads that start at zero would agree with anything
            if parameter.is_floating_point() and not parameter.any():
                parameter.normal_(std=0.02)
    row: dict[str, Any] = {**dict.fromkeys(COLUMNS, ""), "model": key_of(entry), "format": "onnx", "ok": 0}
    row["params_before"] = row["params"] = sum(p.numel() for p in model.parameters())
    try:
        if ratio:
            from penjing.prune import prune

            model = prune(model, example, ratio=ratio).model.eval()
        row["params"] = sum(p.numel() for p in model.parameters())
        started = time.perf_counter()
        pe.export_onnx(model, path, example, dynamic_batch="auto")
        seconds = time.perf_counter() - started
        names = [spec.name for spec in pe.OnnxRunner(path).inputs]
        found = pe.verify(path, TorchRunner(model, example, names), example, batch_sizes=(1, 3))
    except PenjingError as error:
        return {**row, "error": str(error).splitlines()[0]}
    except Exception as error:  # a bench reports what it meets
        return {**row, "error": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
    return {**row, **measured(found), "seconds": round(seconds, 2), "size_bytes": path.stat().st_size}


def convert(source: Path, name: str, example: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Write one format from the ONNX file and verify it against that."""
    import penjing.export as pe
    from penjing.errors import PenjingError

    given: dict[str, Any] = {"example_inputs": example, "batch_sizes": (1, 3)}
    rounded = name.endswith("int8")
    if rounded:
        count = options.calibration
        pixels = pictures(options.images, count + COMPARE, example.shape)
        given |= {"data": pixels[:count].split(8), "batch_sizes": (1,)}
    if name == "read":
        return read(source, example)
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = pe.export(source, folder, [name], **given)[name]
            checks = [file.verification]
            if rounded:  # on pictures that calibration has not seen
                reference = pe.OnnxRunner(source)
                parts = pixels[count:].split(AT_ONCE)
                sizes = (1, 3, AT_ONCE)
                checks = [
                    pe.verify(file.path, reference, part, batch_sizes=sizes, quantized=True) for part in parts
                ]
            kernels = in_int8(file.path) if name == "litert_int8" else {}
        except PenjingError as error:
            return {"error": str(error).splitlines()[0]}
        except Exception as error:  # a bench reports what it meets
            return {"error": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
    return {**measured(*checks), "seconds": round(file.seconds, 2), "size_bytes": file.size_bytes, **kernels}


def in_int8(path: Path) -> dict[str, Any]:
    """What of a LiteRT file runs in int8, and what in float."""
    from penjing.export.litert_int8.graph import census

    found = census(path.read_bytes())
    return {
        "int8_convolutions": f"{found.int8_convolutions}/{found.convolutions}",
        "int8_multiplications": f"{found.int8_macs:.4f}",
        "in_float": " ".join(f"{kind}*{count}" for kind, count in sorted(found.floats.items())),
    }


def read(source: Path, example: Any) -> dict[str, Any]:
    """Read the file into torch: the row of the file against that module."""
    import penjing.export as pe
    from penjing.errors import PenjingError
    from penjing.models.onnx_door import OnnxModel

    try:
        started = time.perf_counter()
        model = OnnxModel(source).eval()
        seconds = time.perf_counter() - started
        found = pe.verify(source, model, example, batch_sizes=(1, 3))
    except PenjingError as error:
        return {"error": str(error).splitlines()[0]}
    return {**measured(found), "seconds": round(seconds, 2), "size_bytes": source.stat().st_size}


def pictures(path: Path | None, count: int, shape: Sequence[int]) -> Any:
    """Normalised photographs scaled to ``shape``, or noise."""
    import torch

    if path is None or len(shape) != 4:
        return torch.randn(count, *shape[1:])
    import numpy as np
    import pyarrow.parquet
    from PIL import Image

    rows = pyarrow.parquet.read_table(path, columns=["image"]).slice(0, count)["image"].to_pylist()
    size = (shape[3], shape[2])
    opened = [Image.open(io.BytesIO(row["bytes"])).convert("RGB").resize(size) for row in rows]
    x_NHWC = np.stack([np.asarray(picture, np.float32) for picture in opened]) / 255
    x_NCHW = torch.from_numpy(x_NHWC).permute(0, 3, 1, 2).contiguous()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (x_NCHW - mean) / std


def measured(*checks: Any) -> dict[str, Any]:
    """Columns of a file's verifications; the share of equal answers is that of the largest batches."""
    rows = [check.rows[-1] for check in checks]
    agreement = None if rows[0].agreement is None else mean(row.agreement for row in rows)
    return {
        "ok": int(all(check.ok for check in checks)),
        "relative_difference": f"{max(check.relative for check in checks):.1e}",
        "agreement": agreement,
        "batch_sizes": " ".join(str(row.batch) for row in checks[0].rows),
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
