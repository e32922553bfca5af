"""Blocks of a graph, and training each one to give its fp32 output."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from nets import Batches, Block, Residual, Vgg, batches, trained_stats

from penjing.errors import QuantizeError
from penjing.events import silent
from penjing.export import export_onnx
from penjing.models.onnx_door import OnnxModel
from penjing.models.onnx_ops import as_tensor
from penjing.quantize import QuantizeConfig, quantize
from penjing.quantize.blocks import find_blocks, reconstruct_blocks
from penjing.quantize.job import Job
from penjing.quantize.student import QuantizedStudent, student_of

SHAPES = {"vgg": (3, 16, 16), "residual": (3, 16, 16), "block": (6, 24)}
NETS = {"vgg": Vgg, "residual": Residual, "block": Block}
# what is left of the error on fresh samples, at most: one block of layers in a row has little to gain
LEFT = {"vgg": 1.01, "residual": 0.9, "block": 0.9}


@pytest.fixture(params=sorted(NETS))
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[QuantizedStudent, Job, Batches]:
    """A student with its job and its data."""
    torch.manual_seed(0)
    shape = SHAPES[request.param]
    model = trained_stats(NETS[request.param](), (16, *shape))
    data = batches(24, 32, shape)
    path = export_onnx(model, tmp_path / "m.onnx", torch.from_numpy(data[0][:2]), dynamic_batch=True)
    job = Job(path, data, QuantizeConfig(weight_bits=4, samples=768), 0, silent)
    job.calibrate()
    return student_of(job, tmp_path / "prepared.onnx"), job, data


def reference_of(student: QuantizedStudent) -> OnnxModel:
    """The fp32 graph of a student."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        ir.save(student.frame.model, path)
        return OnnxModel(path)


def test_blocks_one_after_the_other_are_the_network(
    parts: tuple[QuantizedStudent, Job, Batches],
) -> None:
    """Each int8 layer is in one block, and running the blocks gives the network's output to the last bit."""
    student, _, data = parts
    blocks = find_blocks(reference_of(student), student.frame.layers)
    assert [out for block in blocks for out in block.layers] == list(student.frame.layers)
    feed = {student.input_names[0]: torch.from_numpy(data[0])}
    values = dict(feed)
    with torch.no_grad():
        for block in blocks:
            env = student.after([student.steps[index] for index in block.steps], {**feed, **values})
            values = {name: as_tensor(value) for name in block.ends if (value := env[name]) is not None}
        whole = student(*feed.values())
    torch.testing.assert_close(values[student.output_names[0]], whole, rtol=0, atol=0)


def test_training_blocks_brings_the_output_closer(
    parts: tuple[QuantizedStudent, Job, Batches], request: pytest.FixtureRequest
) -> None:
    """On samples that no block was trained on the error falls, and no block is left worse than it was."""
    student, job, _ = parts
    fresh = torch.from_numpy(batches(1, 256, tuple(job.feeds.specs[0].dims[1:]), seed=9)[0])  # type: ignore[arg-type]
    reference = reference_of(student)
    with torch.no_grad():
        wanted, before = reference(fresh), student(fresh)
    errors = reconstruct_blocks(student, reference, job.feeds, steps=60, seed=0, listen=silent)
    with torch.no_grad():
        after = student(fresh)
    assert all(error.after <= error.before for error in errors)
    left = float((after - wanted).square().mean() / (before - wanted).square().mean())
    assert left < LEFT[request.node.callspec.params["parts"]]


def test_the_file_is_closer_to_fp32(tmp_path: Path) -> None:
    """`rounding="blocks"` writes a file whose answers are nearer to fp32's than those of second order."""
    torch.manual_seed(0)
    model, data = trained_stats(Residual()), batches(16, 32)
    fresh = batches(1, 32, seed=9)[0]
    with torch.no_grad():
        wanted = model(torch.from_numpy(fresh)).numpy()
    errors = {}
    for rounding in ("second_order", "blocks"):
        config = QuantizeConfig(rounding=rounding, weight_bits=2, samples=512, block_steps=60)
        made = quantize(model, data, config, out=tmp_path / f"{rounding}.onnx", time_it=False)
        session = ort.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: fresh})[0]
        errors[rounding] = float(np.square(found - wanted).mean())
    assert errors["blocks"] < 0.95 * errors["second_order"]
    assert any("reconstructed" in note for note in made.notes)


def test_too_few_samples_is_said(tmp_path: Path) -> None:
    """Two samples leave nothing to judge by; four do, of which one is for the file."""
    model, config = trained_stats(Vgg()), QuantizeConfig(rounding="blocks", block_steps=1)
    with pytest.raises(QuantizeError, match="too few"):
        quantize(model, batches(1, 2), config, out=tmp_path / "few.onnx", time_it=False)
    assert list(tmp_path.iterdir()) == []
    assert quantize(model, batches(1, 4), config, out=tmp_path / "four.onnx", time_it=False).path.exists()
