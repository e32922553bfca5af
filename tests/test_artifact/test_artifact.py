"""The artifact folder: whole or refused."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from penjing.artifact import load, read_artifact, save_artifact, seal
from penjing.errors import ArtifactError, RunError
from penjing.export import export
from penjing.prune import apply, prune
from penjing.quantize import quantize


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    ).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "x.pb").write_bytes(b"pb")
    save_artifact(
        tmp_path / "art",
        build(),
        example_inputs=torch.randn(2, 4),
        recipe={"seed": 3},
        metrics={"accuracy": 0.5},
        files={"model.onnx": tmp_path / "model.onnx", "saved_model": tmp_path / "saved"},
        stages=["train", {"stage": "prune", "ratio": 0.5}],
    )
    return tmp_path / "art"


def test_it_loads_and_tells_its_history(folder: Path) -> None:
    x = torch.randn(5, 4)
    assert torch.equal(load(folder)(x), build()(x))
    artifact = read_artifact(folder)
    assert [stage["stage"] for stage in artifact.stages] == ["train", "prune"]
    assert artifact.metrics == {"accuracy": 0.5}
    assert artifact.recipe == {"seed": 3}
    assert artifact.num_params == sum(p.numel() for p in build().parameters())
    assert artifact.inputs[0]["shape"] == ["batch", 4]
    assert {"model.onnx", "saved_model/x.pb", "program.json"} <= {file.path for file in artifact.files}
    json.dumps(artifact.to_dict(), allow_nan=False)
    assert not list(folder.parent.glob(".*"))


def test_whoever_may_read_the_folder_may_read_its_files(folder: Path) -> None:
    modes = {path.name: path.stat().st_mode for path in folder.glob("*.*") if path.is_file()}
    assert modes["model.safetensors"] == modes["program.json"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(RunError, match=r"cannot write .*too large"):
            save_artifact(tmp_path / "art", nn.Linear(64, 64), example_inputs=torch.randn(2, 64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_it_trains_again(folder: Path) -> None:
    model = load(folder).train()
    before = model.state_dict()["1.running_mean"].clone()
    model(torch.randn(8, 4)).sum().backward()
    assert not torch.equal(model.state_dict()["1.running_mean"], before)
    assert all(p.grad is not None for p in model.parameters())


def test_the_plan_goes_along(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    result = prune(build(), x, ratio=0.5)
    artifact = save_artifact(tmp_path / "a", result.model, example_inputs=x, plan=result.plan)
    plan = type(result.plan).from_dict(artifact.plan)  # type: ignore[arg-type]
    assert torch.equal(load(tmp_path / "a")(x), apply(build(), plan, x).model(x))


@pytest.mark.parametrize("file", ["model.safetensors", "program.json", "model.onnx", "metrics.json"])
def test_a_changed_byte_is_found(folder: Path, file: str) -> None:
    data = bytearray((folder / file).read_bytes())
    data[-1] ^= 1
    (folder / file).write_bytes(data)
    with pytest.raises(ArtifactError, match=file):
        read_artifact(folder)
    if file in ("model.safetensors", "program.json"):
        with pytest.raises(ArtifactError, match=file):
            load(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "program.json", "manifest.json"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ArtifactError, match=file):
        load(folder)


@pytest.mark.parametrize(
    "text", ["{}", "[1]", "[" * 100_000, '{"tensors": null}', '{"graph": {"nodes": [1]}}']
)
def test_a_damaged_program_is_named_though_the_manifest_agrees(text: str, folder: Path) -> None:
    path = folder / "program.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | json.loads(text)) if "null" in text or "nodes" in text else text)
    with pytest.raises(ArtifactError, match=r"program\.json"):
        seal(folder)


def test_a_newer_version_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(ArtifactError, match="newer penjing"):
        load(folder)


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 0},
        {"version": True},
        {"version": "1"},
        {"normalize": {"mean": [0.5], "std": [0.0]}},
        {"normalize": {"mean": [float("nan")], "std": [1.0]}},
        {"normalize": {"mean": [0.5, 0.5], "std": [1.0]}},
    ],
)
def test_a_manifest_of_nonsense_is_refused(folder: Path, changed: dict[str, object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changed))
    with pytest.raises(ArtifactError, match="manifest"):
        load(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname"])
def test_a_manifest_cannot_point_outside(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="damaged"):
        load(folder)


@pytest.mark.parametrize(("name", "data"), [("extra.pt", b"anything"), ("hidden.bin", b"\x80\x04K\x01.")])
def test_a_pickle_inside_is_refused_unless_trusted(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    for read in (load, read_artifact):
        with pytest.raises(ArtifactError, match="pickled"):
            read(folder)
        read(folder, trust=True)


def test_sealing_admits_a_changed_file(folder: Path) -> None:
    (folder / "metrics.json").write_text('{"accuracy": 0.75}')
    with pytest.raises(ArtifactError):
        read_artifact(folder)
    assert seal(folder).metrics == {"accuracy": 0.75}


def test_what_is_written_into_an_artifact_on_purpose_belongs_to_it(folder: Path) -> None:
    (folder / "work").mkdir()
    (folder / "work" / "part").write_bytes(b"goes on")
    x = torch.randn(2, 4)
    export(load(folder), folder, ["onnx"], example_inputs=x)
    quantize(folder / "model.onnx", [x], out=folder / "int8.onnx", time_it=False)
    files = {file.path for file in read_artifact(folder).files}
    assert {"model.onnx", "int8.onnx", "int8.safetensors", "saved_model/x.pb"} <= files
    assert "work/part" not in files
    assert files == {file.path for file in seal(folder).files}
    (folder / "saved_model" / "x.pb").write_bytes(b"damaged")
    export(load(folder), folder, ["onnx"], example_inputs=x)
    with pytest.raises(ArtifactError, match=r"x\.pb is not the file"):
        read_artifact(folder)


def test_a_failed_save_leaves_the_old_one(folder: Path, tmp_path: Path) -> None:
    before = read_artifact(folder)
    with pytest.raises(ArtifactError, match="does not exist"):
        save_artifact(folder, build(), example_inputs=torch.randn(2, 4), files=[tmp_path / "none.onnx"])
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ArtifactError, match="pickled"):
        save_artifact(folder, build(), example_inputs=torch.randn(2, 4), files=[tmp_path / "x.pkl"])
    assert read_artifact(folder) == before
    assert not (tmp_path / ".art.part").exists()


def test_reserved_names_and_missing_examples_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        save_artifact(
            tmp_path / "b", build(), example_inputs=torch.randn(2, 4), files={"manifest.json": tmp_path}
        )
    with pytest.raises(ArtifactError, match="example_inputs"):
        save_artifact(tmp_path / "b", build())
    with pytest.raises(ArtifactError, match="no artifact"):
        load(tmp_path)
