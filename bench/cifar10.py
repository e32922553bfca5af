"""Lose nothing: CIFAR-10 ResNets pruned by penjing and by Torch-Pruning, recovered alike, side by side.

Every pruned network goes through the *same* recovery, and through plain fine-tuning, which is what
Torch-Pruning's own benchmark does. Everything is chosen on a tenth of the training set that neither
calibration nor recovery sees (the given checkpoints have seen it, so its level is flattering; differences
count); the test set is read once, at the end, for all rows. An interrupted bench goes on where it stopped.

    python bench/cifar10.py --depth 56 --speedup 2.57 --epochs 8 --seeds 0 1 2 --out runs/cifar10
    python bench/cifar10.py --depth 20 --latency 0.5 --epochs 3 --seeds 0 1 2 --out runs/latency

Torch-Pruning's rows need ``pip install torch-pruning==1.6.1``; without it they are left out, and it says so.
"""

from __future__ import annotations

import argparse
import copy
import csv
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from penjing.data import open_data
from penjing.data.split import ArraySplit, DataBundle, Loader, Split
from penjing.factor import factorize, with_ranks
from penjing.files import atomic_write, write_json
from penjing.graph import trace
from penjing.graph.branches import find_branches
from penjing.measure import count, wilson
from penjing.models import build
from penjing.models.weights import load_weights
from penjing.prune import Budget, Plan, apply, prune
from penjing.prune.recalibrate import recalibrate
from penjing.prune.reconstruct import ReconstructConfig, reconstruct
from penjing.recover import RecoverConfig, evaluate, recover
from penjing.recover.augment import make_augment
from penjing.search.whole import REFERENCE, WholeTimer

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EXAMPLE = (2, 3, 32, 32)
# what the residual stream runs through: leaving these whole prunes inside the blocks only
STREAM = ("bn1.weight", "layer*.bn2.weight")
_PEER_STEPS = 400


@dataclass(frozen=True)
class Setting:
    """What is compared at what size."""

    data: Path
    out: Path
    depth: int
    speedup: float
    epochs: int
    batch_size: int
    calibration: int
    train_limit: int | None
    val_limit: int | None
    test_limit: int | None
    latency: float | None = None
    teacher: int | None = None
    block_steps: int = 150
    whole: bool = False

    @property
    def budget(self) -> Budget:
        """What every network keeps: a share of the MACs, or of the exported file's measured latency."""
        if self.latency is None:
            return Budget(macs=1 / self.speedup)
        return Budget(latency=f"{self.latency}x", batch=1, threads=1)


class Bench:
    """The network, its data, and what every row shares."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.dense = self._given(setting.depth)
        self.teacher = self.dense if setting.teacher is None else self._given(setting.teacher)
        self.bundle = self._open()
        self.val = list(self._loader("val", setting.val_limit, 250))
        self.macs = count(self.dense, torch.zeros(EXAMPLE)).num_macs
        self._timer = WholeTimer(self.dense, torch.zeros(EXAMPLE), batch=1, threads=1)

    def _given(self, depth: int) -> nn.Module:
        """A ResNet of this depth with the weights it comes with."""
        model = build(f"resnet{depth}", 10, 3, 32)
        load_weights(model, self.setting.data / f"resnet{depth}-cifar10.safetensors")
        return model.eval()

    def _open(self) -> DataBundle:
        """The images, decoded once."""
        decoded = self.setting.out.parent / "cifar10.npz"
        if not decoded.exists():
            files = (self.setting.data / f"cifar10-{part}.parquet" for part in ("train", "test"))
            train, test = files
            bundle = open_data(train, test=test)
            parts = {part: getattr(bundle, part).load() for part in ("train", "val", "test")}
            arrays = {f"x_{name}": split.images for name, split in parts.items()}
            arrays |= {f"y_{name}": split.labels for name, split in parts.items()}
            with atomic_write(decoded) as aside, open(aside, "wb") as file:
                np.savez(file, **arrays)
        return open_data(decoded, mean=_MEAN, std=_STD)

    def _loader(self, part: str, limit: int | None, batch_size: int, **options: Any) -> Loader:
        split = self._whole() if part == "whole" else getattr(self.bundle, part)
        if limit is not None:
            rows = np.arange(min(limit, len(split)))
            if part == "test":  # sorted by class; the others are shuffled
                rows = rows * len(split) // len(rows)
            split = split.subset(rows)
        return Loader(split, batch_size, mean=_MEAN, std=_STD, **options)

    def _whole(self) -> ArraySplit:
        """The training images with those of validation."""
        train, val = (cast("Split", part).load() for part in (self.bundle.train, self.bundle.val))
        images, labels = (
            np.concatenate(pair) for pair in ((train.images, val.images), (train.labels, val.labels))
        )
        return ArraySplit(images, labels, train.classes, "whole")

    def latency_share(self, model: nn.Module) -> float:
        """Latency of the exported file (ONNX Runtime, one image, one thread) as a share of the original's."""
        timed = self._timer({"pruned": model})
        return timed["pruned"] / timed[REFERENCE]

    def calibration(self) -> list[Tensor]:
        """Training images without labels."""
        return [x for x, _ in self.labelled()]

    def labelled(self) -> list[tuple[Tensor, Tensor]]:
        """The same images with their labels."""
        return list(self._loader("train", self.setting.calibration, 256))

    def training(self, seed: int, *, taught: bool) -> Loader | Taught:
        """Augmented training batches, on request with the teacher's answers."""
        loader = self._loader(
            "whole" if self.setting.whole else "train",
            self.setting.train_limit,
            self.setting.batch_size,
            shuffle=True,
            seed=seed,
            augment=make_augment("photos"),
            drop_last=True,
        )
        return Taught(loader, self.teacher, self.setting.out / "teacher" / str(seed)) if taught else loader

    def test(self) -> Loader:
        """The test set: read once, at the end."""
        return self._loader("test", self.setting.test_limit, 250)


class Taught:
    """A loader whose batches carry the teacher's logits.

    Order and augmentation are functions of seed and epoch, so the answers of one epoch serve every row of
    that seed: they are computed once and kept in a file.
    """

    def __init__(self, loader: Loader, teacher: nn.Module, folder: Path) -> None:
        self.loader, self.teacher, self.folder = loader, teacher, folder

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self.loader.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        path = self.folder / f"{self.loader.epoch:03d}.npy"
        if path.exists():
            for (x, y), answers in zip(self.loader, np.load(path), strict=True):
                yield x, y, torch.from_numpy(answers)
            return
        found = []
        for x, y in self.loader:
            with torch.no_grad():
                answers = self.teacher(x.contiguous(memory_format=torch.channels_last))
            found.append(answers.numpy())
            if len(found) == len(self):  # before the last batch goes out: nobody has to ask for one more
                with atomic_write(path) as aside, open(aside, "wb") as file:
                    np.save(file, np.stack(found))
            yield x, y, answers


@dataclass(frozen=True)
class Network:
    """A pruned network before recovery; the plan is None where it is not ours."""

    model: nn.Module
    plan: Plan | None
    seconds: float
    latency: float | None = None


Maker = Callable[[Bench, int], Network]


def ours(*, stream: bool = False, shorter: bool = False, blocks: bool = False) -> Maker:
    """Optimal brain surgeon by damage to the output, per MAC saved, then the refit; without labels.

    For a latency, widths go by the measured damage against the measured milliseconds. ``shorter`` takes a
    third of the residual branches out whole, before the widths; ``blocks`` fits whole blocks, too.
    """

    def make(bench: Bench, seed: int) -> Network:
        began, data = time.perf_counter(), bench.calibration()
        pruned = prune(
            bench.dense,
            torch.zeros(EXAMPLE),
            criterion="obs",
            scope="global" if bench.setting.latency is None else "sensitivity",
            budget=bench.setting.budget,
            ignore=() if stream else STREAM,
            data=data,
            min_slots=2,
            branches=len(find_branches(trace(bench.dense, torch.zeros(EXAMPLE)))) // 3 if shorter else 0,
            seed=seed,
        )
        steps = bench.setting.block_steps if blocks else 0
        config = ReconstructConfig(max_samples=bench.setting.calibration, block_steps=steps)
        refitted = reconstruct(pruned.model, bench.dense, pruned.plan, data, config, seed=seed)
        return Network(refitted.model, pruned.plan, time.perf_counter() - began)

    return make


def thin() -> Maker:
    """Two thin layers in the place of each, fitted block by block; without labels."""

    def make(bench: Bench, seed: int) -> Network:
        began, setting = time.perf_counter(), bench.setting
        config = ReconstructConfig(
            max_samples=setting.calibration, block_steps=setting.block_steps, max_memory=12.0
        )
        done = factorize(
            bench.dense,
            torch.zeros(EXAMPLE),
            setting.budget,
            bench.calibration(),
            reconstruct=config,
            seed=seed,
        )
        return Network(done.model, None, time.perf_counter() - began)

    return make


def plain(criterion: str) -> Maker:
    """One ratio for all blocks, by a criterion without data, nothing refitted."""

    def make(bench: Bench, seed: int) -> Network:
        began = time.perf_counter()
        done = prune(
            bench.dense,
            torch.zeros(EXAMPLE),
            criterion=criterion,
            scope="local",
            budget=bench.setting.budget,
            ignore=STREAM,
            seed=seed,
        )
        return Network(done.model, done.plan, time.perf_counter() - began)

    return make


def peer(*, everywhere: bool) -> Maker:
    """Torch-Pruning's group L2, step by step until the MACs are met, as its own benchmark does.

    For a latency, the fewest steps whose file is quick enough, at widths of 8.

    Its dependency graph does not follow zero-padded shortcuts, so what they carry is left whole.
    """

    def make(bench: Bench, seed: int) -> Network:
        import torch_pruning as tp

        began = time.perf_counter()
        example = torch.zeros(EXAMPLE)

        def after(steps: int, max_macs: float = 0.0) -> nn.Module:
            """The network after so many steps, or once it has few enough MACs."""
            model = copy.deepcopy(bench.dense)
            names = [name for name, _ in model.named_modules()]
            pruner = tp.pruner.BasePruner(
                model,
                example,
                importance=tp.importance.GroupMagnitudeImportance(p=2),
                global_pruning=everywhere,
                pruning_ratio=1.0,
                max_pruning_ratio=0.95,
                iterative_steps=_PEER_STEPS,
                round_to=None if bench.setting.latency is None else 8,  # what its kernels take whole
                ignored_layers=[
                    model.get_submodule(name)
                    for name in names
                    if name in ("conv1", "linear") or name.endswith("conv2")
                ],
            )
            for _ in range(steps):
                if count(model, example).num_macs <= max_macs:
                    break
                pruner.step()
            return model.eval()

        share = bench.setting.latency
        if share is None:
            model = after(_PEER_STEPS, bench.macs / bench.setting.speedup)
            return Network(model, None, time.perf_counter() - began)
        low, high = 0, _PEER_STEPS  # fewest steps whose file is quick enough
        while high - low > 1:
            middle = (low + high) // 2
            quick = bench.latency_share(after(middle)) <= share
            low, high = (low, middle) if quick else (middle, high)
        return Network(after(high), None, time.perf_counter() - began)

    return make


NETWORKS: dict[str, Maker] = {
    "penjing": ours(),
    "penjing, by blocks": ours(blocks=True),
    "penjing, stream too": ours(stream=True),
    "penjing, shorter": ours(shorter=True),
    "penjing, factorized": thin(),
    "torch-pruning global L2": peer(everywhere=True),
    "torch-pruning uniform L2": peer(everywhere=False),
    "uniform magnitude": plain("magnitude"),
    "random": plain("random"),
}

_GUIDED: dict[str, Any] = {
    "lr": 0.02,
    "schedule": "cosine",
    "warmup": 0.05,
    "losses": {"kd": 1.0, "mse": {"weight": 40.0, "layers": "blocks"}},
    "mixup": 1.0,
}
_LABELS: dict[str, Any] = {
    "lr": 0.1,
    "schedule": "cosine",
    "warmup": 0.05,
    "losses": {"ce": 0.5, "kd": 0.5},
    "weight_decay": 5e-4,
    "grad_clip": None,
}

# the same for every network; at a rate that keeps what a refit earned; on images mixed in pairs, where the
# original is not sure of itself and says more; this with what every block gives held to the original's, too;
# and with the last epochs' weights averaged; held on the images as they are; on mixed images for long, the
# original asked in a few epochs only; trained anew from labels and original alike, at the rate that the
# original was trained at; this for long, the original asked in ten epochs only; and what Torch-Pruning's own
# benchmark does: plain fine-tuning
RECOVERIES: dict[str, dict[str, Any]] = {
    "same": {"lr": 0.02, "schedule": "cosine", "warmup": 0.05, "losses": {"ce": 0.1, "kd": 0.9}},
    "gentle": {"lr": 0.008, "schedule": "cosine", "warmup": 0.05, "losses": {"ce": 0.1, "kd": 0.9}},
    "mixed": {"lr": 0.01, "schedule": "cosine", "warmup": 0.05, "losses": {"kd": 1.0}, "mixup": 1.0},
    "guided": _GUIDED,
    "averaged": {**_GUIDED, "lr_end": 0.2, "ema": 0.9995},
    "held": {
        "lr": 0.02,
        "schedule": "cosine",
        "warmup": 0.05,
        "losses": {"ce": 0.1, "kd": 0.9, "mse": {"weight": 40.0, "layers": "blocks"}},
    },
    "patient": {
        "lr": 0.02,
        "schedule": "cosine",
        "warmup": 0.05,
        "losses": {"kd": 1.0},
        "mixup": 1.0,
        "distinct_epochs": 6,
    },
    "labels": _LABELS,
    "long": {**_LABELS, "distinct_epochs": 10},
    "fine-tuning": {"lr": 0.01, "schedule": "cosine", "losses": {"ce": 1.0}, "weight_decay": 5e-4},
}

ROWS: tuple[tuple[str, str], ...] = (
    ("penjing", "same"),
    ("torch-pruning global L2", "same"),
    ("torch-pruning uniform L2", "same"),
    ("uniform magnitude", "same"),
    ("random", "same"),
    ("penjing, stream too", "same"),
    ("penjing, shorter", "same"),
    ("torch-pruning global L2", "fine-tuning"),
    ("penjing", "fine-tuning"),
    ("penjing", "gentle"),
    ("torch-pruning global L2", "gentle"),
    ("penjing, by blocks", "same"),
    ("penjing, by blocks", "mixed"),
    ("penjing, by blocks", "guided"),
    ("penjing, by blocks", "averaged"),
    ("penjing, by blocks", "patient"),
    ("penjing", "mixed"),
    ("penjing", "patient"),
    ("penjing, shorter", "mixed"),
    ("torch-pruning global L2", "mixed"),
    ("torch-pruning global L2", "guided"),
    ("penjing, by blocks", "held"),
    ("penjing, factorized", "held"),
    ("torch-pruning global L2", "held"),
    ("uniform magnitude", "held"),
    ("random", "held"),
    ("penjing, by blocks", "labels"),
    ("penjing, by blocks", "long"),
    ("torch-pruning global L2", "labels"),
)


# ------------------------------------------------------------------------------------------------ one row


def row(bench: Bench, network: str, recovery: str, seed: int) -> dict[str, Any]:
    """Prune, recover, validate; finished parts are read from their files."""
    setting = bench.setting
    place = _row_place(bench, network, recovery, seed)
    name, result = place.name, place.with_suffix(".json")
    if result.exists():
        return dict(json.loads(result.read_text(encoding="utf-8")))
    before = _pruned(bench, network, seed)
    config = RecoverConfig.parse({"epochs": setting.epochs, **RECOVERIES[recovery]})
    # its logits serve every row, unless images are mixed, blocks are compared, it is not asked at all, or few
    # rows would use them
    asked_of_both = {term.name for term in config.losses} == {"ce", "kd"}
    by_labels = RECOVERIES[recovery].items() >= _LABELS.items()
    taught = asked_of_both and not config.mixup and not by_labels
    done = recover(
        before.model,
        None if taught else bench.teacher,
        bench.training(seed, taught=taught),
        config,
        # the original knows these images by heart: what imitates it looks best on them, and what has learned
        # from labels would be given up for the weights from before
        val=None if by_labels else bench.val,
        plan=before.plan,
        checkpoint=setting.out / "checkpoints" / name,
        seed=seed,
        listen=lambda event: _say(name, event.kind, dict(event.metrics)),
    )
    _save(done.model, place.with_suffix(".safetensors"))
    counted = count(done.model, torch.zeros(EXAMPLE))
    found = {
        "network": network,
        "recovery": recovery,
        "seed": seed,
        "macs": counted.num_macs,
        "params": counted.num_params,
        "speedup": bench.macs / counted.num_macs,
        "latency": before.latency,
        "prune_seconds": before.seconds,
        "val_pruned": done.start.get("val_accuracy"),
        "epochs": setting.epochs,
        "val": [record["val_accuracy"] for record in done.history if "val_accuracy" in record],
        "recover_seconds": done.seconds,
        "kept": done.kept,
    }
    write_json(result, found)
    return found


def _row_place(bench: Bench, network: str, recovery: str, seed: int) -> Path:
    """Where a row's files are, without their suffix."""
    name = f"{network}, {recovery}, {seed}".replace(" ", "-").replace(",", "")
    return bench.setting.out / "rows" / name


def _pruned_place(bench: Bench, network: str, seed: int) -> Path:
    """Where a pruned network's files are, without their suffix."""
    return bench.setting.out / "pruned" / f"{network}-{seed}".replace(" ", "-")


def _pruned(bench: Bench, network: str, seed: int) -> Network:
    """The pruned network of this seed, made once."""
    place = _pruned_place(bench, network, seed)
    if not place.with_suffix(".json").exists():
        made = NETWORKS[network](bench, seed)
        if made.plan is not None:
            made.plan.save(place.with_suffix(".plan"))
        # batch-norm statistics measured anew cost no training: everyone gets them where validation likes them
        settled = recalibrate(made.model, bench.calibration(), max_samples=bench.setting.calibration)
        right, total, _ = evaluate(made.model, bench.val)
        renewed, _, _ = evaluate(settled, bench.val)
        _save(settled if renewed > right else made.model, place.with_suffix(".safetensors"))
        facts = {"seconds": made.seconds, "val": right / total, "val_recalibrated": renewed / total}
        if bench.setting.latency is not None:
            facts["latency"] = bench.latency_share(made.model)
        write_json(place.with_suffix(".json"), facts)
        _say(network, "pruned", facts)
    facts = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
    model = _rebuilt(bench, place.with_suffix(".plan"), load_file(place.with_suffix(".safetensors")))
    plan = Plan.load(place.with_suffix(".plan")) if place.with_suffix(".plan").exists() else None
    return Network(model, plan, facts["seconds"], facts.get("latency"))


def recovered(bench: Bench, network: str, recovery: str, seed: int) -> nn.Module:
    """The recovered network of a finished row."""
    weights = _row_place(bench, network, recovery, seed).with_suffix(".safetensors")
    return _rebuilt(bench, _pruned_place(bench, network, seed).with_suffix(".plan"), load_file(weights))


def _rebuilt(bench: Bench, plan: Path, weights: dict[str, Tensor]) -> nn.Module:
    """A pruned network from its weights: by plan or ranks, or, where another library made it, by shapes."""
    suffix = ".into.weight"
    ranks = {name.removesuffix(suffix): len(weights[name]) for name in weights if name.endswith(suffix)}
    if ranks:
        model = with_ranks(bench.dense, ranks)
    elif plan.exists():
        model = apply(bench.dense, Plan.load(plan), torch.zeros(EXAMPLE)).model
    else:
        model = copy.deepcopy(bench.dense)
        for name, value in weights.items():
            module, _, last = name.rpartition(".")
            owner = model.get_submodule(module)
            kind = nn.Parameter if isinstance(getattr(owner, last), nn.Parameter) else Tensor.clone
            setattr(owner, last, kind(value))
    model.load_state_dict(weights)
    return model.eval()


def _save(model: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, aside)


def _say(name: str, kind: str, metrics: dict[str, float]) -> None:
    if kind in ("metric", "warning", "note", "pruned") and metrics:
        told = {key: round(value, 4) for key, value in metrics.items()}
        print(f"{time.strftime('%H:%M:%S')} {name}: {told}", flush=True)


# ------------------------------------------------------------------------------------------------ the table


def read_test_set(bench: Bench, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Test accuracy of every row, before and after recovery, and of the dense network; each read once."""
    path = bench.setting.out / "test.json"
    known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    test = list(bench.test())
    total = sum(len(y) for _, y in test)

    def read(key: str, model: Callable[[], nn.Module]) -> float:
        if key not in known:
            known[key] = evaluate(model(), test)[0] / total
            write_json(path, known)
        return known[key]

    rows: list[dict[str, Any]] = [
        {"network": "dense", "test": read("dense", lambda: bench.dense), "n": total}
    ]
    for one in found:
        network, recovery, seed = one["network"], one["recovery"], one["seed"]
        name = _row_place(bench, network, recovery, seed).name

        def pruned(network: str = network, seed: int = seed) -> nn.Module:
            return _pruned(bench, network, seed).model

        before = read(f"{network} {seed}", pruned)
        after = before
        if bench.setting.epochs:
            after = read(name, partial(recovered, bench, network, recovery, seed))
        rows.append({**one, "test_pruned": before, "test": after, "n": total})
    return rows


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and deviation over seeds, one line a network and recovery; the dense network first."""
    dense = rows[0]
    lines = [{"network": "dense", "recovery": "", "seeds": 1, "test": dense["test"], "n": dense["n"]}]
    pairs = dict.fromkeys((row["network"], row["recovery"]) for row in rows[1:])
    for network, recovery in pairs:
        same = [row for row in rows[1:] if (row["network"], row["recovery"]) == (network, recovery)]
        tests = [row["test"] for row in same]
        low, high = wilson(round(statistics.mean(tests) * dense["n"]), dense["n"])
        lines.append(
            {
                "network": network,
                "recovery": recovery,
                "seeds": len(same),
                "speedup": statistics.mean(row["speedup"] for row in same),
                "latency": statistics.mean(row["latency"] for row in same) if same[0]["latency"] else None,
                "params": statistics.mean(row["params"] for row in same),
                "test_pruned": statistics.mean(row["test_pruned"] for row in same),
                "test": statistics.mean(tests),
                "test_std": statistics.stdev(tests) if len(tests) > 1 else None,
                "test_low": low,
                "test_high": high,
                "epochs": same[0].get("epochs", len(same[0]["val"])),
                "n": dense["n"],
            }
        )
    return lines


def write_table(lines: list[dict[str, Any]], out: Path) -> None:
    """``table.csv``, ``table.json``, ``table.svg`` and the table on the screen."""
    write_json(out / "table.json", lines)
    columns = list(dict.fromkeys(key for line in lines for key in line))
    with atomic_write(out / "table.csv") as aside, open(aside, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)
    _plot(lines, out / "table.svg")
    for line in lines:
        before = f"{100 * line['test_pruned']:6.2f} →" if "test_pruned" in line else " " * 8
        spread = f" ± {100 * line['test_std']:.2f}" if line.get("test_std") is not None else ""
        faster = f"{line['speedup']:.2f}×" if "speedup" in line else ""
        if share := line.get("latency"):
            faster += f", {share:.3f} of ms"
        name = f"{line['network']:26}{line['recovery']:12}"
        print(f"{name}{faster:>20} {before} {100 * line['test']:6.2f}{spread}")


def _plot(lines: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    shown = lines[1:]
    figure, axes = pyplot.subplots(figsize=(8, 0.5 + 0.45 * len(shown)), layout="constrained")
    heights = range(len(shown))[::-1]
    accuracy = [100 * line["test"] for line in shown]
    errors = [100 * (line["test_std"] or 0.0) for line in shown]
    axes.barh(heights, accuracy, xerr=errors, color="#2a7f62")
    axes.plot(
        [100 * line["test_pruned"] for line in shown], heights, "o", color="#222", label="before recovery"
    )
    axes.axvline(100 * lines[0]["test"], color="#a33", label="dense")
    axes.set_yticks(heights, [f"{line['network']}, {line['recovery']}" for line in shown])
    axes.set_xlabel("test accuracy, %")
    axes.legend(loc="lower right", frameon=False)
    with atomic_write(path) as aside:
        figure.savefig(aside, format="svg")
    pyplot.close(figure)


# ----------------------------------------------------------------------------------------------- command line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"), help="where it all goes")
    parser.add_argument("--depth", type=int, default=56, choices=(20, 56))
    parser.add_argument("--speedup", type=float, default=2.57, help="times fewer MACs")
    parser.add_argument(
        "--latency", type=float, help="share of the original's measured latency, instead of MACs: 0.5"
    )
    parser.add_argument(
        "--teacher", type=int, choices=(20, 56), help="depth of the network that teaches, if not the original"
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--calibration", type=int, default=4096, help="training images without labels")
    parser.add_argument("--block-steps", type=int, default=150, help="of the rows by blocks, for each block")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--recoveries", nargs="+", default=list(RECOVERIES), choices=list(RECOVERIES))
    parser.add_argument("--train-limit", type=int, help="training images used")
    parser.add_argument(
        "--whole",
        action="store_true",
        help="recover on the validation images, too, once all is chosen; validation then means nothing",
    )
    parser.add_argument(
        "--no-test", action="store_true", help="leave the test set alone: more rows will come"
    )
    parser.add_argument("--quick", action="store_true", help="minutes: ResNet-20, few images, one epoch")
    args = parser.parse_args()
    limits: dict[str, Any] = {"train_limit": args.train_limit, "val_limit": None, "test_limit": None}
    if args.quick:
        args.depth, args.epochs, args.calibration, args.seeds = 20, 1, 256, [0]
        limits = {"train_limit": 1280, "val_limit": 500, "test_limit": 500}
    for depth in {args.depth, args.teacher} - {None}:
        if not (args.data / f"resnet{depth}-cifar10.safetensors").exists():
            sys.exit(f"no weights of ResNet-{depth} in {args.data}: give --data")
    setting = Setting(
        args.data,
        args.out,
        args.depth,
        args.speedup,
        args.epochs,
        args.batch_size,
        args.calibration,
        **limits,
        latency=args.latency,
        teacher=args.teacher,
        block_steps=args.block_steps,
        whole=args.whole,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    stamp = args.out / "setting.json"
    plain_setting = {key: str(value) for key, value in asdict(setting).items() if key not in ("data", "out")}
    for key in ("latency", "teacher", "whole"):
        if not getattr(args, key):
            del plain_setting[key]
    if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) != plain_setting:
        sys.exit(f"{args.out} holds a bench of another setting ({stamp}): give another --out")
    write_json(stamp, plain_setting)
    bench = Bench(setting)
    has_peer = importlib.util.find_spec("torch_pruning") is not None
    if not has_peer:
        print("torch-pruning is not installed: its rows are left out (pip install torch-pruning==1.6.1)")
    found = [
        row(bench, network, recovery, seed)
        for seed in args.seeds
        for network, recovery in ROWS
        if network in args.networks
        and recovery in args.recoveries
        and (has_peer or not network.startswith("torch-pruning"))
    ]
    if not args.no_test:
        write_table(summarise(read_test_set(bench, found)), args.out)


if __name__ == "__main__":
    main()
