"""Prune every model of a zoo at one ratio and check each result.

    python bench/zoo.py ../shared/data/zoo.json --out zoo.csv [--models 'resnet*'] [--onnx] [--resume]
    python bench/zoo.py bench/hugging_face.json --out hugging_face.csv

For each model, in a process of its own: parameters removed, forward and backward, output shape, the
relative error of masked equivalence, plan → JSON → fresh copy gives identical weights, with ``--onnx``
also the largest difference between ONNX Runtime and torch; the time of torch.export apart from the time
of solving, planning and slicing; and what is frozen and why. Rows are written one by one to JSON lines
and CSV, a summary at the end; with ``--resume`` models that passed before are not run again.
"""

from __future__ import annotations

import argparse
import copy
import csv
import fnmatch
import importlib
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FIELDS = (
    "name", "source", "ok", "passed", "in_place", "removed", "macs_removed", "error", "leak", "identical",
    "shape_kept", "backward", "onnx", "seconds_export", "seconds_couple", "seconds_plan", "seconds_apply",
    "groups", "frozen", "reason", "failure",
)  # fmt: skip
TOLERANCE = 1e-4


def main() -> int:
    """Run the bench; exit code 1 if a model fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path, help="JSON list of {name, source, kind, input}")
    parser.add_argument("--out", type=Path, default=Path("zoo.csv"), help="CSV; JSON lines go beside it")
    parser.add_argument("--models", nargs="+", default=["*"], help="globs of names, or source:name")
    parser.add_argument("--resume", action="store_true", help="keep the rows that passed before")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--least", type=float, default=0.4, help="fraction of the parameters that must go")
    parser.add_argument("--onnx", action="store_true", help="export and compare in ONNX Runtime")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one model")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    entries = json.loads(options.zoo.read_text())
    preload({entry["source"] for entry in entries})
    chosen = [entry for entry in entries if any(named(entry, pattern) for pattern in options.models)]
    if not chosen:
        parser.error(f"no model of {options.zoo} is named {', '.join(options.models)}")
    journal = options.out.with_suffix(".jsonl")
    rows = passed_before(journal) if options.resume else {}
    todo = [entry for entry in chosen if key(entry) not in rows]
    with open(journal, "a" if options.resume else "w") as lines, ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda entry: isolated(entry, options), todo):
            rows[key(row)] = row
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            write_table(options.out, rows.values())
            print(line(row), flush=True)
    return summary([rows[key(entry)] for entry in chosen], options.least)


def preload(sources: set[str]) -> None:
    """Import what every model's process needs, one thread each."""
    import torch

    torch.set_num_threads(1)
    for source in sources:
        importlib.import_module(source)


def key(entry: Mapping[str, Any]) -> str:
    """``source:name`` of a zoo entry or a row."""
    return f"{entry['source']}:{entry['name']}"


def named(entry: Mapping[str, Any], pattern: str) -> bool:
    """Whether a glob matches the name with or without its source."""
    return fnmatch.fnmatch(entry["name"], pattern) or fnmatch.fnmatch(key(entry), pattern)


def passed_before(journal: Path) -> dict[str, dict[str, Any]]:
    """Rows of an earlier run that passed, the last of each model."""
    text = journal.read_text() if journal.exists() else ""
    rows = {key(row): row for row in map(json.loads, text.splitlines())}
    return {name: row for name, row in rows.items() if row["passed"]}


def write_table(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """All rows so far as CSV; of the frozen axes the ops and how many dims of parameters each keeps whole."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | {"frozen": frozen_text(row.get("frozen", ()))} for row in rows)


def frozen_text(frozen: Iterable[Mapping[str, Any]]) -> str:
    """``"aten.unbind.int 24, aten.index.Tensor 2"``: what keeps how many dims of parameters whole."""
    counts = Counter[str]()
    for reason in frozen:
        counts[reason["op"] or reason["kind"]] += len(reason["params"])
    return ", ".join(f"{op} {count}" for op, count in counts.items())


def summary(rows: Sequence[Mapping[str, Any]], least: float) -> int:
    """Print the totals; the exit code."""
    passed = sum(row["passed"] for row in rows)
    exact = sum(row["ok"] for row in rows)
    in_place = sum(bool(row.get("in_place")) for row in rows)
    print(
        f"{passed} of {len(rows)} pass (correct and ≥ {least:.0%} of the parameters removed); "
        f"{exact} are correct; {in_place} in the user's own class"
    )
    return 0 if passed == len(rows) else 1


def isolated(entry: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Check one model in a process of its own, so that it can neither hang nor kill the rest."""
    context = multiprocessing.get_context("fork")  # the imports are paid for once
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, entry, options.ratio, options.onnx))
    process.start()
    sender.close()
    row: dict[str, Any] = {"name": entry["name"], "source": entry["source"], "ok": False, "failure": ""}
    if receiver.poll(options.timeout):
        try:
            row.update(receiver.recv())
        except EOFError:
            process.join()
            row["failure"] = f"died with exit code {process.exitcode}"
    else:
        row["failure"] = f"no end within {options.timeout:.0f} s"
        process.kill()
    process.join()
    row["passed"] = row["ok"] and row["removed"] >= options.least
    return row


def _send(sender: Any, entry: dict[str, Any], ratio: float, onnx: bool) -> None:
    sender.send(check(entry, ratio, onnx))


def line(row: dict[str, Any]) -> str:
    """One line for people."""
    if row["failure"]:
        return f"FAIL {row['name']:40s} {row['failure'].splitlines()[-1][:200]}"
    mark = "ok  " if row["passed"] else ("LOW " if row["ok"] else "BAD ")
    times = "+".join(f"{row['seconds_' + k]:.1f}" for k in ("export", "couple", "plan", "apply"))
    return (
        f"{mark} {row['name']:40s} removed {row['removed']:.1%} error {row['error']:.1e} "
        f"{'class' if row['in_place'] else 'graph'} {times} s {'' if row['onnx'] is None else row['onnx']}"
    )


def build(entry: dict[str, Any]) -> tuple[Any, Any]:
    """The model with random weights, and its inputs; of a detector the backbone and neck."""
    import torch

    torch.manual_seed(0)
    if entry["source"] == "transformers":
        import hugging_face

        model = randomised(hugging_face.build(entry["name"]))
        return model, hugging_face.inputs(entry["name"], model)
    if entry["source"] == "timm":
        import timm

        model = timm.create_model(entry["name"], pretrained=False)
    else:
        import torchvision

        detection = (
            {"weights": None, "weights_backbone": None}
            if entry["kind"] in ("det", "seg")
            else {"weights": None}
        )
        extra = {"init_weights": True} if entry["name"] in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(entry["name"], **detection, **extra)
        if entry["kind"] == "det":
            model = model.backbone
    shape = [2, *entry["input"][1:]]
    return randomised(model), torch.randn(shape, generator=torch.Generator().manual_seed(1))


def randomised(model: Any) -> Any:
    """Statistics, scales and heads at random, so that a wrong slice shows; in eval mode."""
    import torch
    from torch import nn

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        for param in model.parameters():
            if param.numel() > 1 and bool((param == param.flatten()[0]).all()):
                if float(param.flatten()[0]) == 1.0:
                    param.uniform_(0.5, 1.5)
                else:
                    param.normal_(0, 0.1)
    return model.eval()


def check(entry: dict[str, Any], ratio: float, onnx: bool) -> dict[str, Any]:
    """Everything about one model, as one row."""
    warnings.simplefilter("ignore")
    row: dict[str, Any] = {
        "name": entry["name"],
        "source": entry["source"],
        "ok": False,
        "onnx": None,
        "failure": "",
    }
    try:
        model, inputs = build(entry)
        _check(model, inputs, ratio, onnx, row)
    except Exception:  # the row tells what went wrong; the bench goes on
        row["failure"] = traceback.format_exc()[-3000:]
    return row


def _check(model: Any, inputs: Any, ratio: float, onnx: bool, row: dict[str, Any]) -> None:
    import torch
    from torch.utils import _pytree as pytree

    from penjing.graph import couple, trace
    from penjing.graph.inputs import bind_inputs
    from penjing.prune import Cost, Plan, allocate, apply, make_criterion, prune_slots
    from penjing.prune.compare import relative_error, run
    from penjing.prune.criteria import Material
    from penjing.prune.masked import masked_output
    from penjing.prune.slots import by_leaf

    marks = [time.process_time()]

    def lap(name: str) -> None:
        marks.append(time.process_time())
        row[f"seconds_{name}"] = round(marks[-1] - marks[-2], 3)

    graph = trace(model, inputs)
    lap("export")
    coupling = couple(graph)
    lap("couple")
    scores = make_criterion("magnitude").scores(Material(model, graph, coupling))
    # by ids: every factor of a product, heads and their sizes
    kept = allocate(coupling.groups, scores, ratios={"*:*": ratio})
    lap("plan")
    result = prune_slots(model, inputs, graph, coupling, kept)
    lap("apply")
    before, after = result.before, result.after
    row["removed"] = round(1 - after["params"] / before["params"], 4)
    row["macs_removed"] = round(1 - after["macs"] / max(before["macs"], 1), 4)
    row["in_place"], row["reason"] = result.in_place, result.reason
    row["groups"] = len(coupling.groups)
    row["frozen"] = [
        {
            **f.to_dict(),
            "size": sum(
                graph.params[p.rsplit(":", 1)[0]].numel()
                for p in f.params
                if p.rsplit(":", 1)[0] in graph.params
            ),
        }
        for f in coupling.frozen
        if f.kind in ("unsolved", "structure")
    ]
    counted = sum(p.numel() for p in result.model.parameters())
    if counted != after["params"]:
        raise AssertionError(f"counted {counted} parameters, planned {after['params']}")

    leaves = by_leaf(coupling, kept)
    expected, row["leak"] = masked_output(graph, coupling, leaves, inputs)
    output = run(result.model, inputs)
    outputs = [t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]
    if all(float(t.std()) == 0 for t in outputs):
        raise AssertionError("the outputs are constant: the comparison would say nothing")
    row["error"] = relative_error(output, expected)
    original = [tuple(t.shape) for t in pytree.tree_leaves(run(model, inputs)) if isinstance(t, torch.Tensor)]
    leaves_out = [t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]
    row["shape_kept"] = original == [tuple(t.shape) for t in leaves_out]

    trained = copy.deepcopy(result.model).train()
    args, kwargs = bind_inputs(trained, inputs)
    losses = [t for t in pytree.tree_leaves(trained(*args, **kwargs)) if isinstance(t, torch.Tensor)]
    torch.stack([t.float().square().mean() for t in losses if t.requires_grad]).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in trained.parameters() if p.grad is not None]
    row["backward"] = bool(gradients) and all(bool(torch.isfinite(grad).all()) for grad in gradients)
    del trained, gradients, losses

    plan = Plan.from_dict(json.loads(json.dumps(result.plan.to_dict())))
    again = apply(model, plan, inputs)
    ours, theirs = again.model.state_dict(), result.model.state_dict()
    row["identical"] = ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs)
    row["cost"] = Cost(graph, coupling)(leaves)
    if onnx:
        row["onnx"] = onnx_error(again.model, inputs)
    row["ok"] = bool(
        row["error"] <= TOLERANCE
        and row["leak"] <= TOLERANCE
        and row["shape_kept"]
        and row["backward"]
        and row["identical"]
        and (row["onnx"] is None or row["onnx"] <= 1e-3)
    )


def onnx_error(model: Any, inputs: Any) -> float:
    """Export, run in ONNX Runtime, and give the relative error against torch."""
    import numpy as np
    import onnxruntime
    import torch
    from torch.utils import _pytree as pytree

    from penjing.export.onnx import export_onnx
    from penjing.prune.compare import relative_error, run

    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(model, Path(folder) / "model.onnx", inputs)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        feeds = {name: leaf.numpy() for name, leaf in zip(names, pytree.tree_leaves(inputs), strict=True)}
        found = session.run(None, feeds)
    expected = [t for t in pytree.tree_leaves(run(model, inputs)) if isinstance(t, torch.Tensor)]
    return relative_error([torch.from_numpy(np.asarray(a)) for a in found], expected)


if __name__ == "__main__":
    sys.exit(main())
