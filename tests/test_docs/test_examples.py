"""The examples run, each in a process of its own, as a reader would start them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
CIFAR = Path(os.environ.get("PENJING_CIFAR", Path(__file__).parents[3] / "shared" / "data"))


def output(name: str, *arguments: str, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_own_loop(tmp_path: Path) -> None:
    assert "% right" in output("own_loop.py", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "needs"), [("hf_trainer.py", "transformers"), ("lightning_module.py", "lightning")]
)
def test_with_another_trainer(name: str, needs: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    assert "right" in output(name, cwd=tmp_path)


@pytest.mark.slow
def test_resnet56_goes_through(tmp_path: Path) -> None:
    names = ("cifar10-train.parquet", "cifar10-test.parquet", "resnet56-cifar10.safetensors")
    if not all((CIFAR / name).exists() for name in names):
        pytest.skip(f"{CIFAR} holds no CIFAR-10; PENJING_CIFAR names the folder that does")
    files = [str(CIFAR / name) for name in names]
    found = output("resnet56_cifar10.py", *files, "--max-steps", "2", "--out", "run", cwd=tmp_path)
    assert "held" in found or "did not hold" in found
    assert (tmp_path / "run" / "report.html").exists()
