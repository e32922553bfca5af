"""Small networks and data for the quantization tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

Batches = list[NDArray[np.float32]]


class Vgg(nn.Module):
    """Convolutions, batch norm, ReLU, max pool, wide linears, dropout."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for out in (16, 32):
            layers += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            width = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.features(x))
        return out


class Residual(nn.Module):
    """A residual add, ReLU6, a depthwise convolution, concatenation, a padded shortcut, a global mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.last = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self.stem(x))
        x = x + self.point(functional.relu6(self.depthwise(x)))
        short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        down = functional.relu(self.down(x) + short)
        x = functional.relu(self.last(torch.cat([down, short], dim=1)))
        out: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return out


class Block(nn.Module):
    """A transformer's feed-forward part: layer norm, two 3-D linears, GELU, softmax at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.up = nn.Linear(24, 48)
        self.down = nn.Linear(48, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x + self.down(functional.gelu(self.up(self.norm(x)))), dim=-1)


def trained_stats(model: nn.Module, shape: tuple[int, ...] = (16, 3, 16, 16)) -> nn.Module:
    """Give batch norms real statistics and affine parts, then inference mode."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(shape) + 0.2)
    return model.eval()


def batches(count: int = 4, size: int = 16, shape: tuple[int, ...] = (3, 16, 16), seed: int = 1) -> Batches:
    """Smooth random inputs."""
    draw = np.random.default_rng(seed)
    return [draw.normal(0.2, 1.0, (size, *shape)).astype(np.float32) for _ in range(count)]


def conv_chain(
    path: Path, weights: list[NDArray[np.float32]], *, batch: int | str = "batch", side: int = 8
) -> Path:
    """An ONNX file of Conv → Relu → … → Conv → BatchNormalization without bias, written by hand."""
    nodes, inits, value = [], [], "x"
    for index, w in enumerate(weights):
        inits.append(numpy_helper.from_array(w, f"conv{index}.weight"))
        nodes.append(
            helper.make_node("Conv", [value, f"conv{index}.weight"], [f"c{index}"], pads=[1, 1, 1, 1])
        )
        value = f"c{index}"
        if index + 1 < len(weights):
            nodes.append(helper.make_node("Relu", [value], [f"r{index}"]))
            value = f"r{index}"
    width = len(weights[-1])
    draw = np.random.default_rng(3)
    for name, array in {
        "gamma": draw.uniform(0.5, 1.5, width),
        "beta": draw.normal(size=width),
        "mean": draw.normal(size=width),
        "var": draw.uniform(0.5, 2.0, width),
    }.items():
        inits.append(numpy_helper.from_array(array.astype(np.float32), name))
    nodes.append(helper.make_node("BatchNormalization", [value, "gamma", "beta", "mean", "var"], ["y"]))
    shape_in, shape_out = [batch, weights[0].shape[1], side, side], [batch, width, side, side]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape_in)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape_out)],
        inits,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def graph_file(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, NDArray[np.float32]],
    inputs: dict[str, list[int | str]],
    opset: int = 17,
) -> Path:
    """An ONNX file of these nodes, whose output is ``y``."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Normal numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
