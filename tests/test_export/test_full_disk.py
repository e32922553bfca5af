"""TensorFlow's errors of the file system are its own; they are told as all others."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from torch import nn, randn

import penjing as pj
from penjing.errors import DataError, RunError, at_stage


def test_the_stage_is_that_of_the_innermost_call() -> None:
    with pytest.raises(RunError) as refused, at_stage("run"), at_stage("export"), at_stage("run"):  # noqa: PT012
        with at_stage("recover"), pytest.raises(DataError, match=r"^data: "):
            raise DataError("no samples", remedy="Give some")
        raise RunError("cannot write out", remedy="Choose")
    assert str(refused.value) == "export: cannot write out. Choose"
    assert RunError.stage == "run"


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed")
@pytest.mark.parametrize("kind", ["ResourceExhaustedError", "OutOfRangeError", "PermissionDeniedError"])
def test_a_saved_model_that_cannot_be_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penjing.export.tf_ops.backend import tf

    def save(_: object, folder: str, **__: object) -> None:
        raise getattr(tf.errors, kind)(
            None, None, f"{folder}/saved_model.pb.tmp3f10; No space left on device"
        )

    monkeypatch.setattr(tf.saved_model, "save", save)
    with pytest.raises(
        RunError, match=r"^export: cannot write \S*out/saved_model \(No space left on device\)"
    ):
        pj.export(nn.Linear(3, 2), tmp_path / "out", formats=("saved_model",), example_inputs=randn(2, 3))
    assert not list(tmp_path.rglob("*saved_model*"))
