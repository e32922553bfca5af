"""The guides are run: Python as it stands, commands against the options, messages against the code."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
import yaml
from torch import nn

import penjing
from penjing.cli.app import app
from penjing.recipe import Recipe

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES = [*GUIDES, ROOT / "README.md", ROOT / "README.zh.md"]
RUN = [path for path in GUIDES if "```python" in path.read_text(encoding="utf-8")]
REGISTERS = {"extend"}
"""Guides that add names, which other tests list: each runs in a process of its own."""


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if path.stem in REGISTERS:
        (tmp_path / "guide.py").write_text("\n".join(blocks(path, "python")))
        command = [sys.executable, "guide.py"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return
    names: dict[str, Any] = {"__name__": "guide"}
    for block in blocks(path, "python"):
        exec(compile(block, f"{path.name}", "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_the_readme_runs_with_a_network_of_ones_own(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks take what a reader has; one of them halves a measured time, which no test can ask for."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    batches = [(torch.randn(16, 3, 8, 8), torch.randint(0, 4, (16,))) for _ in range(4)]
    convolutions = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3))
    model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    names: dict[str, Any] = {
        "pj": penjing,
        "model": model,
        "example_inputs": batches[0][0],
        **dict.fromkeys(("train", "train_loader", "calibration_batches"), batches[:3]),
        **dict.fromkeys(("val", "val_loader"), batches[3:]),
    }
    timed, step_by_step = sorted(blocks(ROOT / page, "python"), key=lambda block: "latency" not in block)
    exec(compile(step_by_step, page, "exec"), names)
    for name in ("model.onnx", "saved_model", "model.int8.onnx"):
        assert (tmp_path / "out" / name).exists()
    call = next(one for one in ast.parse(timed).body if isinstance(one, ast.Assign))
    assert isinstance(call.value, ast.Call)
    given = inspect.signature(penjing.compress).parameters
    assert {one.arg for one in call.value.keywords} <= set(given)


def test_there_is_something_to_run() -> None:
    assert {path.stem for path in RUN} >= {"quickstart", "own-model", "extend"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_blocks_compile(path: Path) -> None:
    for block in blocks(path, "python"):
        compile(block, path.name, "exec")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_have_these_options(path: Path) -> None:
    group = typer.main.get_command(app)
    text = "\n".join(blocks(path, "bash")).replace("\\\n", " ")
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if "penjing" not in words:
            continue
        words = words[words.index("penjing") + 1 :]
        words = words[: next((at for at, word in enumerate(words) if word in ("&", "|", ";")), len(words))]
        command = group.commands[words[0]]  # type: ignore[attr-defined]
        command.make_context(words[0], words[1:], resilient_parsing=False)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_recipes_are_recipes() -> None:
    found = list(blocks(ROOT / "docs" / "guides" / "recipes.md", "yaml"))
    assert found
    for block in found:
        Recipe.parse(yaml.safe_load(block))


def test_messages_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert len(messages) >= 10
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "penjing").rglob("*.py"))
    for message in messages:
        assert message in code, message


def test_both_readmes_name_the_same_commands() -> None:
    english, chinese = (ROOT / "README.md").read_text("utf-8"), (ROOT / "README.zh.md").read_text("utf-8")
    for name in ("make demo", "penjing compress", "pj.prune", "pj.recover", "pj.export", "pj.quantize"):
        assert name in english
        assert name in chinese


def test_both_readmes_give_the_same_numbers() -> None:
    """A row that is measured anew in one of them is measured anew in the other."""
    english, chinese = (ROOT / "README.md").read_text("utf-8"), (ROOT / "README.zh.md").read_text("utf-8")
    rows = [[line for line in text.splitlines() if line.startswith("|")] for text in (english, chinese)]
    assert len(rows[0]) == len(rows[1])
    for one, other in zip(*rows, strict=True):
        numbers = [set(re.findall(r"\d[\d,.]*\d(?: ± \d[\d.]*)?", row)) for row in (one, other)]
        assert numbers[0] == numbers[1], (one, other)
