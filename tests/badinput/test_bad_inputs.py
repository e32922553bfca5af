"""What users get wrong: one line with stage, cause and remedy, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import os
import pickle  # noqa: TID251 (files that want to run code are made here, never opened)
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from penjing.cli.app import main

STAGES = "trace|prune|recover|data|quantize|export|verify|measure|load|recipe|run"  # of `penjing.errors`
NET = "penjing:mlp"
SMALL = ["--option", "num_classes=4", "--option", "in_channels=1", "--option", "image_size=8"]


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@dataclass(frozen=True)
class Bad:
    """One wrong input: how to make the arguments in a folder, and words that the message has."""

    name: str
    arguments: Callable[[Path], list[str]]
    words: tuple[str, ...]


# -- files -------------------------------------------------------------------------------------------------


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_bytes(content)
    return path


def folder_at(path: Path) -> Path:
    path.mkdir()
    return path


def npz(path: Path, **changes: Any) -> Path:
    """Sixteen 8×8 images a split, of four classes; arrays may be replaced, or left out with None."""
    arrays: dict[str, Any] = {}
    for split in ("train", "val"):
        arrays[f"x_{split}"] = np.random.default_rng(0).integers(0, 255, (16, 8, 8, 1)).astype(np.uint8)
        arrays[f"y_{split}"] = np.arange(16, dtype=np.int64) % 4
    arrays |= changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def pixels(**changes: Any) -> Callable[[Path], Path]:
    return lambda folder: npz(folder / "data.npz", **changes)


def images(path: Path, *, good: int = 2, broken: bool = False, split: str = "train") -> Path:
    for label in ("a", "b"):
        (path / split / label).mkdir(parents=True, exist_ok=True)
        for index in range(good):
            Image.new("L", (8, 8)).save(path / split / label / f"{index}.png")
    if broken:
        write(path / split / "a" / "9.png", b"not an image")
    return path


def factory(folder: Path, body: str) -> str:
    text = "import torch\nfrom torch import nn\n\ndef build():\n" + "\n".join(
        f"    {line}" for line in body.splitlines()
    )
    return f"{write(folder / 'net.py', text)}:build"


def weights(folder: Path, change: Callable[[dict[str, Any]], None] = lambda tensors: None) -> Path:
    import penjing as pj

    model = pj.build("mlp", num_classes=4, in_channels=1, image_size=8)
    tensors = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    change(tensors)
    save_file(tensors, folder / "w.safetensors")
    return folder / "w.safetensors"


def spoil(tensors: dict[str, Any]) -> None:
    next(iter(tensors.values())).flat[0] = np.nan


def narrow(tensors: dict[str, Any]) -> None:
    key = next(iter(tensors))
    tensors[key] = tensors[key][:1].copy()


def drop_one(tensors: dict[str, Any]) -> None:
    del tensors[next(iter(tensors))]


def bomb(folder: Path, name: str) -> Path:
    return write(folder / name, pickle.dumps(Bomb(folder / "ran")))


def scripted(path: Path) -> Path:
    """What tells a TorchScript archive from others."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/constants.pkl", b"")
    return path


def recipe(folder: Path, text: str) -> list[str]:
    base = "data: {spec: glyphs}\nmodel: {spec: 'penjing:mlp'}\n"
    return ["run", str(write(folder / "r.yaml", base + text)), "--out", str(folder / "out")]


# -- arguments ---------------------------------------------------------------------------------------------


def inspecting(model: Callable[[Path], str] | str, *more: str) -> Callable[[Path], list[str]]:
    return lambda folder: ["inspect", model if isinstance(model, str) else model(folder), *more]


def pruning(*more: str, model: str = NET) -> Callable[[Path], list[str]]:
    return lambda folder: ["prune", model, *SMALL, "--out", str(folder / "out"), *more]


PIXELS = pixels()


def compressing(
    data: Callable[[Path], Path] = PIXELS, *more: str, model: Callable[[Path], list[str]] | None = None
) -> Callable[[Path], list[str]]:
    def arguments(folder: Path) -> list[str]:
        network = [NET, *SMALL] if model is None else model(folder)
        return ["compress", *network, "--data", str(data(folder)), "--out", str(folder / "out"), *more]

    return arguments


def under_a_file(folder: Path) -> list[str]:
    write(folder / "file", "")
    return ["prune", NET, *SMALL, "--out", str(folder / "file" / "out")]


def among_files(folder: Path) -> list[str]:
    write(folder / "out" / "notes.txt", "mine")
    return pruning()(folder)


def taken(folder: Path) -> list[str]:
    write(folder / "out" / "notes.txt", "mine")
    return compressing()(folder)


BAD = (
    # models
    Bad("unknown scheme", inspecting("timn:resnet18"), ("timn", "timm")),
    Bad("unknown network", inspecting("penjing:resnet57"), ("resnet57", "resnet56")),
    Bad("unknown option", inspecting(NET, *SMALL, "--option", "widhts=[8]"), ("widhts", "hidden")),
    Bad("negative size", inspecting(NET, "--option", "num_classes=-1"), ("num_classes",)),
    Bad("missing file", inspecting("nowhere.py:build"), ("nowhere.py",)),
    Bad("missing factory", inspecting(lambda f: factory(f, "pass").replace("build", "biuld")), ("biuld",)),
    Bad("factory of nothing", inspecting(lambda f: factory(f, "return 3")), ("int",)),
    Bad("factory that fails", inspecting(lambda f: factory(f, "raise ValueError('no disk')")), ("no disk",)),
    Bad(
        "file that does not parse",
        inspecting(lambda f: f"{write(f / 'net.py', 'def build(:')}:build"),
        ("net.py",),
    ),
    Bad(
        "inputs of a wrong shape",
        inspecting(lambda f: factory(f, "return nn.Linear(8, 2), torch.zeros(2, 7)")),
        ("7",),
    ),
    Bad(
        "weights with NaN",
        lambda f: ["inspect", NET, *SMALL, "--weights", str(weights(f, spoil))],
        ("NaN",),
    ),
    Bad(
        "weights of another shape",
        lambda f: ["inspect", NET, *SMALL, "--weights", str(weights(f, narrow))],
        ("[1, 64]",),
    ),
    Bad(
        "weights missing",
        lambda f: ["inspect", NET, *SMALL, "--weights", str(weights(f, drop_one))],
        ("weight",),
    ),
    Bad("weights not there", inspecting(NET, *SMALL, "--weights", "no.safetensors"), ("no.safetensors",)),
    Bad(
        "weights truncated",
        lambda f: ["inspect", NET, *SMALL, "--weights", str(write(f / "w.safetensors", b"\x08\0"))],
        ("w.safetensors",),
    ),
    Bad(
        "weights as a pickle",
        lambda f: ["inspect", NET, *SMALL, "--weights", str(bomb(f, "w.pt"))],
        ("safetensors",),
    ),
    Bad("a pickled model", inspecting(lambda f: str(bomb(f, "model.pt"))), ("model.pt",)),
    Bad("a pickled archive", inspecting(lambda f: str(bomb(f, "model.pt2"))), ("model.pt2",)),
    Bad("a damaged Keras file", inspecting(lambda f: str(write(f / "m.keras", b"PK"))), ("m.keras",)),
    Bad("a damaged ONNX file", inspecting(lambda f: str(write(f / "m.onnx", b"\0\1"))), ("m.onnx",)),
    Bad(
        "an empty folder as a model",
        inspecting(lambda f: str(folder_at(f / "empty"))),
        ("empty",),
    ),
    Bad(
        "an artifact with a damaged manifest",
        inspecting(lambda f: str(write(f / "a" / "manifest.json", "{").parent)),
        ("manifest",),
    ),
    Bad(
        "a pickle without its class",
        inspecting(lambda f: str(write(f / "m.pt", pickle.dumps(Bomb(f))[:-20])), "--trust"),
        ("m.pt",),
    ),
    Bad(
        "TorchScript", inspecting(lambda f: str(scripted(f / "m.pt")), "--trust"), ("TorchScript", "factory")
    ),
    Bad(
        "a network without inputs",
        inspecting(lambda f: factory(f, "return nn.Linear(8, 2)")),
        ("example inputs", "return model, "),
    ),
    Bad("no model at all", inspecting(""), ("artifact",)),
    # pruning
    Bad("ratio of one", pruning("--ratio", "1"), ("ratio",)),
    Bad("negative ratio", pruning("--ratio", "-0.5"), ("ratio",)),
    Bad("a ratio and a budget", pruning("--ratio", "0.5", "--budget", "params=0.5"), ("--ratio", "budget")),
    Bad("unknown criterion", pruning("--criterion", "magnitud"), ("magnitude",)),
    Bad("unknown scope", pruning("--scope", "globl"), ("global",)),
    Bad("ignore without a match", pruning("--ignore", "cnv1.weight"), ("cnv1",)),
    Bad("budget without a value", pruning("--budget", "params"), ("key=value",)),
    Bad("budget of words", pruning("--budget", "params=few"), ("number",)),
    Bad("budget with a typo", pruning("--budget", "parms=0.5"), ("params",)),
    Bad("negative budget", pruning("--budget", "params=-3"), ("params",)),
    Bad("budget out of reach", pruning("--budget", "params=0.0001"), ("out of reach",)),
    Bad("latency of words", pruning("--budget", "latency=fast"), ("latency",)),
    Bad("slower than the original", pruning("--budget", "latency=2x"), ("slower",)),
    Bad("criterion without data", pruning("--criterion", "taylor"), ("data",)),
    Bad(
        "a network for other images, by its gradients",
        lambda f: [
            *("prune", "penjing:resnet20", "--option", "in_channels=3", "--criterion", "taylor"),
            *("--data", str(npz(f / "d.npz")), "--out", str(f / "out")),
        ],
        ("[16, 1, 8, 8]",),
    ),
    Bad("output under a file", under_a_file, ("out",)),
    Bad("output among other files", among_files, ("notes.txt",)),
    Bad("output that is a file", lambda f: [*pruning()(f)[:-1], str(write(f / "file", ""))], ("is a file",)),
    # data
    Bad("data not there", compressing(lambda f: f / "none.npz"), ("none.npz",)),
    Bad("data of an unknown kind", compressing(lambda f: write(f / "d.csv", "1,2")), ("d.csv",)),
    Bad("arrays missing", compressing(pixels(y_train=None)), ("y_train",)),
    Bad("fewer labels than images", compressing(pixels(y_train=np.arange(3))), ("16", "3")),
    Bad("labels below zero", compressing(pixels(y_train=np.full(16, -1))), ("-1",)),
    Bad("labels as fractions", compressing(pixels(y_train=np.linspace(0, 1, 16))), ("label",)),
    Bad("labels out of range", compressing(pixels(y_train=np.full(16, 9), y_val=np.full(16, 9))), ("9",)),
    Bad(
        "no samples",
        compressing(pixels(x_train=np.zeros((0, 8, 8, 1), np.uint8), y_train=np.zeros(0, np.int64))),
        ("train",),
    ),
    Bad("images with NaN", compressing(pixels(x_train=np.full((16, 8, 8, 1), np.nan, np.float32))), ("NaN",)),
    Bad("images of another size", compressing(pixels(x_val=np.zeros((16, 9, 9, 1), np.uint8))), ("9",)),
    Bad("images as text", compressing(pixels(x_train=np.full((16, 8, 8, 1), "a"))), ("images are",)),
    Bad("a pickled array", compressing(pixels(x_train=np.array([{}], dtype=object))), ("pickle",)),
    Bad("damaged npz", compressing(lambda f: write(f / "d.npz", b"PK\3\4")), ("d.npz",)),
    Bad("damaged Parquet", compressing(lambda f: write(f / "d.parquet", b"PAR1")), ("d.parquet",)),
    Bad("an empty folder", compressing(lambda f: folder_at(f / "e")), ("e",)),
    Bad(
        "a broken image", compressing(lambda f: images(images(f / "i", broken=True), split="val")), ("9.png",)
    ),
    Bad(
        "a network for other images",
        compressing(PIXELS, model=lambda f: ["penjing:resnet20", "--option", "in_channels=3"]),
        ("channel",),
    ),
    Bad(
        "a data factory that fails",
        compressing(lambda f: Path(factory(f, "raise OSError('no share')"))),
        ("no share",),
    ),
    Bad("a factory of no loaders", compressing(lambda f: Path(factory(f, "return 3"))), ("int",)),
    # runs
    Bad("a folder with other files", taken, ("other files",)),
    Bad("unknown export format", compressing(PIXELS, "--formats", "onxx"), ("onnx",)),
    Bad("a loss of words", compressing(PIXELS, "--max-drop", "little"), ("little",)),
    Bad("a loss above all", compressing(PIXELS, "--max-drop", "300"), ("300",)),
    Bad("a latency without a unit", compressing(PIXELS, "--latency", "0.5"), ("'0.5x'",)),
    Bad("a number as latency", compressing(PIXELS, "--budget", "latency=0.5"), ("'0.5x'",)),
    Bad(
        "two latencies",
        compressing(PIXELS, "--latency", "0.5x", "--budget", "latency=2ms"),
        ("0.5x", "2ms", "one of them"),
    ),
    Bad("unknown runtime", compressing(PIXELS, "--latency", "0.5x", "--runtime", "tensorrt"), ("runtime",)),
    Bad("unknown recovery option", compressing(PIXELS, "--recover", "epoch=3"), ("epochs",)),
    Bad("recovery that explodes", compressing(PIXELS, "--lr", "1e30", "--epochs", "1"), ("NaN or infinite",)),
    Bad("unknown augmentation", compressing(PIXELS, "--augment", "flp"), ("flp",)),
    Bad(
        "latency of nothing",
        lambda f: recipe(f, "prune: {ratio: 0.5}\nmeasure: {batches: [0]}\n"),
        ("measure.batches",),
    ),
    Bad("unknown recipe key", lambda f: recipe(f, "prune: {ratio: 0.5}\nrecovr: {}\n"), ("recover",)),
    Bad("unknown nested key", lambda f: recipe(f, "prune: {raito: 0.5}\n"), ("ratio",)),
    Bad("two goals", lambda f: recipe(f, "prune: {ratio: 0.5, budget: {params: 0.5}}\n"), ("either",)),
    Bad("no goal", lambda f: recipe(f, "prune: {}\n"), ("budget",)),
    Bad(
        "a search without a loss",
        lambda f: recipe(f, "prune: {budget: {params: 0.5}}\nsearch: {}\n"),
        ("max_drop",),
    ),
    Bad("a recipe that is a list", lambda f: ["run", str(write(f / "r.yaml", "- 1"))], ("list",)),
    Bad("a recipe that is no YAML", lambda f: ["run", str(write(f / "r.yaml", "a: [1"))], ("YAML",)),
    Bad(
        "a recipe that runs code",
        lambda f: ["run", str(write(f / "r.yaml", "a: !!python/object/apply:os.system ['touch ran']"))],
        ("YAML",),
    ),
    Bad("a recipe not there", lambda f: ["run", str(f / "no.yaml")], ("no.yaml",)),
    # files
    Bad("bench of nothing", lambda f: ["bench", str(f / "no.onnx")], ("no.onnx",)),
    Bad("bench of a text", lambda f: ["bench", str(write(f / "a.txt", ""))], ("a.txt",)),
    Bad("bench of a damaged file", lambda f: ["bench", str(write(f / "a.onnx", b"\0"))], ("a.onnx",)),
    Bad("report of nothing", lambda f: ["report", str(f)], ("metrics.json",)),
    Bad(
        "report of damage",
        lambda f: ["report", str(write(f / "m" / "metrics.json", "{}").parent)],
        ("metrics.json",),
    ),
    Bad(
        "quantize a damaged file",
        lambda f: [
            "quantize",
            str(write(f / "a.onnx", b"\0")),
            "--data",
            str(npz(f / "d.npz")),
            "--out",
            str(f / "out"),
        ],
        ("a.onnx",),
    ),
)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name.replace(" ", "-"))
def test_bad_input(
    bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = bad.arguments(tmp_path)
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    out, err = capsys.readouterr()
    message = [line for line in err.strip().splitlines() if line.startswith("penjing: ")]
    assert stop.value.code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert len(message) == 1, err
    stage, cause, remedy = parts(message[0])
    assert re.fullmatch(STAGES, stage), message[0]
    assert len(cause) > 8, message[0]
    assert len(remedy) > 8, message[0]
    for word in bad.words:
        assert word in message[0], message[0]
    assert not (tmp_path / "ran").exists(), "code from a file was run"
    assert nothing_half_written(tmp_path, before)


def parts(message: str) -> tuple[str, str, str]:
    """Stage, cause and remedy of ``penjing: stage at layer: cause. Remedy``."""
    head, _, rest = message.removeprefix("penjing: ").partition(": ")
    cause, _, remedy = rest.rpartition(". ")
    return head.partition(" at ")[0], cause, remedy


def nothing_half_written(folder: Path, before: dict[Path, int]) -> bool:
    """New files are those of a run that can go on (its ``work`` folder and log; none before its first stage),
    and no temporary ones.
    """
    begun = '"kind": "start"' in _text_of(folder / "out" / "log.jsonl")
    for path in folder.rglob("*"):
        if path in before:
            assert path.is_dir() or path.stat().st_size == before[path], f"{path} was changed"
            continue
        inside = path.relative_to(folder).parts
        if "__pycache__" in inside:
            continue
        assert not path.name.endswith(".part"), f"{path} was left"
        run_files = inside[:2] in (("out", "work"), ("out", "log.jsonl")) or inside == ("out",)
        assert run_files, f"{path} was left"
        assert begun, f"{path} was left"
    return True


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def test_a_class_too_many_is_said_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.arange(16) % 4
    labels[-1] = 4
    with pytest.raises(SystemExit):
        main(compressing(pixels(y_train=labels))(tmp_path))
    assert "train: label 4 is outside the model's classes 0 … 3" in capsys.readouterr().err
    assert not [*(tmp_path / "out" / "work").glob("*/*"), *(tmp_path / "out" / "work").glob("*.safetensors")]


def test_enough_of_them() -> None:
    assert len(BAD) >= 60
    assert len({bad.name for bad in BAD}) == len(BAD)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(SystemExit) as stop:
        main(["prune", NET, *SMALL, "--out", str(tmp_path / "out" / "a")])
    assert stop.value.code == 2
    assert "writable" in capsys.readouterr().err


def test_json_output_stays_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["inspect", NET, *SMALL, "--json"])
    assert json.loads(capsys.readouterr().out)["num_params"] > 0
    assert torch.is_grad_enabled()
