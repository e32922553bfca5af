"""Model specs: every way in gives a callable network, every mistake is named with its remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from penjing.artifact import save_artifact
from penjing.errors import ArtifactError, MeasureError, PenjingError
from penjing.export.onnx import copy_onnx
from penjing.measure import size_bytes
from penjing.models.spec import files_of, load_model
from penjing.models.weights import load_weights

FACTORY = """
import torch
from torch import nn

def build(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2)), torch.zeros(2, 3)

def only_model():
    return nn.Linear(3, 2)

def wrong():
    return 3
"""


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(FACTORY)
    return path


@pytest.mark.parametrize(
    ("spec", "package", "options"),
    [
        ("penjing:vgg_small", "penjing", {"num_classes": 7}),
        ("timm:resnet10t", "timm", {"num_classes": 7}),
        ("torchvision:squeezenet1_1", "torchvision", {"num_classes": 7}),
    ],
)
def test_by_name(spec: str, package: str, options: dict[str, Any]) -> None:
    pytest.importorskip(package)
    loaded = load_model(spec, **options)
    assert not loaded.model.training
    with torch.no_grad():
        assert loaded.model(loaded.example_inputs).shape == (2, 7)


def test_no_weights_are_downloaded_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Segmentation networks of torchvision fetch their backbone's by default."""
    pytest.importorskip("torchvision")

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    loaded = load_model("torchvision:lraspp_mobilenet_v3_large", num_classes=3)
    assert loaded.kind == "torchvision"
    with pytest.raises(ArtifactError, match=r"no network.*--weights"):
        load_model("torchvision:lraspp_mobilenet_v3_large", weights_backbone="DEFAULT")


def test_by_file(factory: Path) -> None:
    loaded = load_model(f"{factory}:build", width=6)
    assert loaded.model(loaded.example_inputs).shape == (2, 2)
    assert loaded.model[0].out_features == 6  # type: ignore[index]
    assert load_model(f"{factory}:only_model").example_inputs is None


def test_artifact_folder(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval()
    save_artifact(tmp_path / "a", model, example_inputs=torch.randn(2, 3))
    loaded = load_model(tmp_path / "a")
    assert loaded.kind == "artifact"
    assert torch.equal(loaded.model(loaded.example_inputs), model(loaded.example_inputs))


def test_pt2_only_when_trusted(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()).eval()
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(model, (torch.randn(2, 3),)), path)
    with pytest.raises(ArtifactError, match="trust"):
        load_model(path)
    loaded = load_model(path, trust=True)
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(loaded.model(loaded.example_inputs), model(loaded.example_inputs))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tim:resnet18", "'timm'"),
        ("penjing:vgg_smal", "vgg_small"),
        ("penjing:vgg_small", "widdths"),
        ("nowhere", "does not exist"),
        ("net.pt", "does not exist"),
        ("net.onnx", "does not exist"),
        ("nets.py:build", "no such file"),
    ],
)
def test_mistakes_are_named(spec: str, says: str) -> None:
    options: dict[str, Any] = {"widdths": 3} if says == "widdths" else {}
    with pytest.raises(PenjingError, match=says):
        load_model(spec, **options)


@pytest.mark.parametrize(
    ("name", "says"), [("", "which function"), (":buidl", "Use one of build$"), (":wrong", "not a torch")]
)
def test_mistakes_in_a_file_are_named(factory: Path, name: str, says: str) -> None:
    with pytest.raises(ArtifactError, match=says):
        load_model(f"{factory}{name}")


@pytest.mark.parametrize("name", ["net.pt", "NET.PT"])
def test_a_pickled_model_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ArtifactError, match="pickled"):
        load_model(tmp_path / name)
    with pytest.raises(ArtifactError, match="pickled"):
        load_weights(nn.Linear(1, 1), tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\3\4 cut off"])
@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_a_damaged_pickle_is_told_where_it_is_trusted(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"net\.pt2? cannot be opened"):
        load_model(path, trust=True)
    if name == "net.pt":
        with pytest.raises(ArtifactError, match=r"net\.pt cannot be opened"):
            load_weights(nn.Linear(1, 1), path, trust=True)


def test_an_artifact_is_no_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is a folder\. Give a file, such as .*model\.safetensors"):
        load_weights(nn.Linear(1, 1), tmp_path)


def test_weights_are_strict(factory: Path, tmp_path: Path) -> None:
    spec, path = f"{factory}:build", tmp_path / "w.safetensors"
    state = load_model(spec).model.state_dict()
    state = {name: torch.randn_like(tensor) for name, tensor in state.items()}
    save_file(state, path)
    loaded = load_model(spec, weights=path).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())

    save_file({("0.wieght" if name == "0.weight" else name): t for name, t in state.items()}, path)
    with pytest.raises(ArtifactError, match=r"lacks '0.weight' \(nearest: '0.wieght'\)"):
        load_model(spec, weights=path)
    save_file(state | {"0.weight": torch.zeros(9, 9)}, path)
    with pytest.raises(ArtifactError, match=r"\[9, 9\]"):
        load_model(spec, weights=path)
    save_file(state | {"0.weight": (50 * state["0.weight"]).to(torch.int8)}, path)
    with pytest.raises(ArtifactError, match=r"'0.weight' is int8 in .*, float32 in the model"):
        load_model(spec, weights=path)
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ArtifactError, match="safetensors"):
        load_model(spec, weights=path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_a_prefix_before_every_name_is_a_wrappers(prefix: str, factory: Path, tmp_path: Path) -> None:
    spec, path = f"{factory}:build", tmp_path / "w.safetensors"
    state = {name: torch.randn_like(tensor) for name, tensor in load_model(spec).model.state_dict().items()}
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    save_file(wrapped, path)
    torch.save({"epoch": 3, "model_state_dict": wrapped}, tmp_path / "w.pth")  # noqa: TID251
    for file in (path, tmp_path / "w.pth"):
        loaded = load_model(spec, weights=file, trust=True).model.state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    save_file(wrapped | {"loss.weight": torch.zeros(1)}, path)
    with pytest.raises(ArtifactError, match="has the unknown"):
        load_model(spec, weights=path)


def saved_apart(path: Path, location: str) -> Path:
    """A small network in ONNX whose weights, one of them in a node's attribute, are in a file beside it."""
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", n]) for name, n in (("x", 4), ("y", 3))
    )
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(3, np.float32)))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        constant,
        helper.make_node("Add", ["h", "c"], ["y"]),
    ]
    model = helper.make_model(helper.make_graph(nodes, "net", [x], [y], [weight]))
    options: Any = {"convert_attribute": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(model, path, save_as_external_data=True, **options)
    stored = path.read_bytes()
    assert len(location) == len("weights.bin")  # so that the name can be written over
    path.write_bytes(stored.replace(b"weights.bin", location.encode()))
    return path


def test_the_files_of_a_spec_are_those_it_is_read_from(tmp_path: Path) -> None:
    saved_apart(tmp_path / "net.onnx", "weights.bin")
    assert files_of(tmp_path / "net.onnx") == (tmp_path / "net.onnx", tmp_path / "weights.bin")
    save_artifact(tmp_path / "artifact", nn.Linear(2, 2), example_inputs=torch.zeros(2, 2))
    names = [file.name for file in files_of(tmp_path / "artifact")]
    assert names == ["program.json", "model.safetensors"]
    assert files_of("penjing:vgg_small") == files_of("net.py:build") == ()


def test_the_size_of_a_file_counts_its_weights_under_any_name(tmp_path: Path) -> None:
    path, weights = saved_apart(tmp_path / "net.onnx", "weights.bin"), tmp_path / "weights.bin"
    assert size_bytes(path) == path.stat().st_size + weights.stat().st_size > 4 * 15
    weights.rename(tmp_path / "gone")
    with pytest.raises(MeasureError, match=r"weights\.bin with weights of net\.onnx is missing"):
        size_bytes(path)


@pytest.mark.parametrize("location", ["../outer.bi", "/a/outer.bi"])
def test_weights_outside_the_folder_are_neither_read_nor_written(location: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = saved_apart(tmp_path / "in" / "net.onnx", location)
    for use in (files_of, size_bytes, lambda given: copy_onnx(given, tmp_path / "out" / "net.onnx")):
        with pytest.raises(ArtifactError, match=rf"'{location}', outside its own folder"):
            use(path)
