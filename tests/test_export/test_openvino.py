"""OpenVINO files give what the model gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from export_models import vgg_like
from torch import nn

import penjing.export as pe
from penjing.errors import ExportError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs OpenVINO (pip install penjing[openvino])"
)
X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Two(nn.Module):
    """Outputs of equal shape whose names are not in alphabetical order."""

    def __init__(self) -> None:
        super().__init__()
        self.body = vgg_like()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.body(x)
        return {"z": y, "a": y * 2 + 1}


@pytest.mark.parametrize("model", [vgg_like(), Two()], ids=["one", "two"])
def test_openvino_gives_what_the_model_gives_at_any_batch_size(model: nn.Module, tmp_path: Path) -> None:
    made = pe.export(model, tmp_path, ["openvino"], example_inputs=X, batch_sizes=(1, 3, 8))["openvino"]
    assert made.verification.relative < 1e-5
    runner = pe.open_file(made.path)
    outputs = dict(zip(runner.outputs, runner.run({"input": X[:2].numpy()}), strict=True))
    with torch.no_grad():
        expected = model.eval()(X[:2])
    expected = expected if isinstance(expected, dict) else {"output": expected}
    for name, wanted in expected.items():
        np.testing.assert_allclose(outputs[name], wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_an_op_that_openvino_lacks_is_named(tmp_path: Path) -> None:
    model = nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular")
    with pytest.raises(ExportError, match=r"at openvino: .*Pad: Unsupported padding mode: \[wrap\]"):
        pe.export(model, tmp_path, ["openvino"], example_inputs=X)
