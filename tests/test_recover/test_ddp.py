"""Two processes, started once for all tests; each job runs in both and leaves what it found."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from recover_kit import CLASSES, Batches, network
from safetensors.torch import load_file, save_file
from torch import Tensor, nn, testing
from torch.utils.data import DataLoader, TensorDataset

from penjing.files import write_json
from penjing.recover import RecoverConfig, RecoverResult, recover, train

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
import test_ddp
test_ddp.run_jobs(sys.argv[1])
"""


def plain(seed: int) -> nn.Module:
    torch.manual_seed(seed)  # no batch norm or dropout: then two halves of a batch are the batch
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 5))


CONFIG = RecoverConfig(epochs=2, grad_accumulation=2, ema=0.8)


def void() -> list[tuple[Tensor, Tensor]]:
    """Batches in which labels that do not count all fall to one process."""
    return [(x, y.clone().index_fill_(0, torch.arange(0, 8, 2), -100)) for x, y in Batches()]


def resumable(folder: Path) -> RecoverResult:
    return recover(
        plain(0), plain(1), void(), CONFIG, val=Batches(3), checkpoint=folder / "checkpoint", seed=2
    )


class Noting(nn.Module):
    """Notes the samples that a process works on."""

    samples: ClassVar[list[float]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.samples.extend(x[:, 0].tolist())
        return x


def shuffled(folder: Path) -> list[float]:
    loader = DataLoader(
        TensorDataset(torch.arange(16.0)[:, None], torch.arange(16) % CLASSES), 8, shuffle=True
    )
    train(nn.Sequential(Noting(), nn.Linear(1, CLASSES)), loader, RecoverConfig(epochs=1))
    return Noting.samples[-8:]  # without those of a look at the network


def judged(folder: Path) -> RecoverResult:
    """Batch norms see each process's half: their statistics, and what is decided by them, would differ."""
    config = RecoverConfig(epochs=8, lr=1e-4, patience=1, keep="best", recalibrate=0)

    def sharpness(outputs: Tensor, targets: Tensor) -> float:
        return float(outputs.softmax(1).gather(1, targets[:, None]).mean())

    return recover(network(), network(seed=1), Batches(), config, val=Batches(2), metric=sharpness)


class Auxiliary(nn.Module):
    """A head whose answers no loss looks at, and one that is never asked."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.aux, self.idle = plain(0), nn.Linear(64, 2), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), self.aux(x.flatten(1))


def partly(folder: Path) -> RecoverResult:
    return train(Auxiliary(), Batches(3), RecoverConfig(epochs=1))


def inside(folder: Path) -> RecoverResult:
    config = RecoverConfig.parse({"epochs": 1, "losses": {"mse": {"layers": ["1"]}}})
    return recover(plain(0), plain(1), Batches(3), config)


class Skipping(nn.Module):
    """Draws whether a layer runs."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.more = plain(0), nn.Linear(CLASSES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y if random.random() < 0.3 else y + self.more(y)


def skipping(folder: Path) -> RecoverResult:
    return train(Skipping(), Batches(12), RecoverConfig(epochs=1))


def odd(folder: Path) -> RecoverResult:
    x_NCHW, y_N = next(iter(Batches(1)))
    data = [(x_NCHW, y_N), (x_NCHW[:1], y_N[:1])]
    return train(plain(0), data * 2, RecoverConfig(epochs=1, grad_accumulation=2))


JOBS: dict[str, Callable[[Path], Any]] = {
    "resumable": resumable,
    "shuffled": shuffled,
    "judged": judged,
    "partly": partly,
    "inside": inside,
    "skipping": skipping,
    "odd": odd,
}


def run_jobs(name: str) -> None:
    folder, rank = Path(name), os.environ["RANK"]
    for job, run in JOBS.items():
        found = run(folder)
        if isinstance(found, RecoverResult):
            save_file(found.model.state_dict(), folder / f"{job}-{rank}.safetensors")
            found = {"history": found.history, "steps": found.steps, "stopped": found.stopped.name}
        write_json(folder / f"{job}-{rank}.json", found)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which both processes left what they found."""
    folder = tmp_path_factory.mktemp("both")
    script = folder / "job.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    command += [str(script), str(folder), str(Path(__file__).parent)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def found(folder: Path, job: str) -> list[Any]:
    return [json.loads((folder / f"{job}-{rank}.json").read_text()) for rank in (0, 1)]


def models(folder: Path, job: str) -> list[dict[str, Tensor]]:
    return [load_file(folder / f"{job}-{rank}.safetensors") for rank in (0, 1)]


def assert_alike(folder: Path, job: str) -> None:
    """Both processes found the same and hold the same model."""
    first, second = found(folder, job)
    assert first == second
    mine, theirs = models(folder, job)
    for name, value in mine.items():
        testing.assert_close(value, theirs[name], rtol=0, atol=0)


def test_two_processes_learn_what_one_learns(both: Path) -> None:
    assert_alike(both, "resumable")
    alone = recover(plain(0), plain(1), void(), CONFIG, seed=2)
    for name, value in alone.model.state_dict().items():
        testing.assert_close(models(both, "resumable")[0][name], value, rtol=1e-4, atol=1e-6)


def test_processes_share_out_one_order(both: Path) -> None:
    first, second = found(both, "shuffled")
    assert sorted(first + second) == list(range(16))


@pytest.mark.parametrize(
    ("job", "steps"),
    [("judged", None), ("partly", 3), ("inside", 3), ("skipping", 12), ("odd", 2)],
    ids=["own statistics", "heads without a loss", "features alone", "skipped layers", "a batch too small"],
)
def test_processes_stay_alike(both: Path, job: str, steps: int | None) -> None:
    assert_alike(both, job)
    assert steps in (None, found(both, job)[0]["steps"])
