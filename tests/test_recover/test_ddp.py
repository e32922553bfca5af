from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from recover_kit import Batches
from safetensors.torch import load_file
from torch import Tensor, nn, testing

from penjing.recover import RecoverConfig, recover

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from safetensors.torch import save_file
from test_ddp import job
from penjing.files import write_json
import os
result = job(sys.argv[3])
folder = sys.argv[1]
rank = os.environ["RANK"]
save_file(result.model.state_dict(), f"{folder}/{rank}.safetensors")
write_json(f"{folder}/{rank}.json", result.history)
"""


def plain(seed: int) -> nn.Module:
    import torch

    torch.manual_seed(seed)  # no batch norm or dropout: then two halves of a batch are the batch
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 5))


def job(checkpoint: str) -> object:
    config = RecoverConfig(epochs=2, grad_accumulation=2, ema=0.8)
    return recover(
        plain(0), plain(1), Batches(), config, val=Batches(3), checkpoint=checkpoint or None, seed=2
    )


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    command += [str(script), str(tmp_path), str(Path(__file__).parent), str(tmp_path / "checkpoint")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(root),
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = recover(
        plain(0), plain(1), Batches(), RecoverConfig(epochs=2, grad_accumulation=2, ema=0.8), seed=2
    )
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    expected: dict[str, Tensor] = alone.model.state_dict()
    for name, value in expected.items():
        testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
        testing.assert_close(first[name], second[name], rtol=0, atol=0)
    assert (tmp_path / "0.json").read_text() == (tmp_path / "1.json").read_text()
