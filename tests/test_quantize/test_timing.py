from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from penjing.export.onnx import export_onnx
from penjing.quantize import time_against_fp32
from penjing.quantize.feeds import Feed
from penjing.quantize.runtime import Session


def test_other_work_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that has the core in most calls of one file, which sleeping stands for."""
    file = export_onnx(nn.Linear(8, 8).eval(), tmp_path / "m.onnx", torch.zeros(2, 8))
    run, calls = Session.run, 0

    def interrupted(self: Session, feed: Feed) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls % 2:
            time.sleep(0.02)
        return run(self, feed)

    monkeypatch.setattr(Session, "run", interrupted)
    found = time_against_fp32(file, file, {"input": np.zeros((1, 8), np.float32)}, seconds=0.5)
    assert found.fp32_ms < 10
    assert found.int8_ms < 10
