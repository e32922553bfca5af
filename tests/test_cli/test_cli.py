from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import penjing.export as pe
from penjing.cli.app import VERBS, _carry_out, _how_to_resume, main
from penjing.cli.common import budget_of, emit, in_points, names, pairs
from penjing.cli.verbs.bench import _table
from penjing.cli.verbs.quantize import _text
from penjing.errors import RecipeError, RunError
from penjing.export.base import formats
from penjing.quantize import QuantizeResult

HEAVY = ("torch", "onnx", "onnxruntime", "tensorflow", "pandas", "numpy", "plotly", "jinja2", "keras")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Exit code, standard output and standard error of the command line."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_import_is_light() -> None:
    code = f"import sys, penjing, penjing.cli\nprint([n for n in {HEAVY} if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for verb in VERBS:
        assert verb in out


@pytest.mark.parametrize(
    "verb",
    [
        *("inspect", "prune", "factorize", "recover", "quantize", "export", "compress"),
        *("report", "bench", "demo", "run", "study", "worker"),
    ],
)
def test_every_verb_offers_json(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, out, _ = call(capsys, verb, "--help")
    assert code == 0
    assert "--json" in out


@pytest.mark.parametrize("verb", ["export", "compress"])
def test_help_names_every_format(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    _, out, _ = call(capsys, verb, "--help")
    assert formats().keys() <= set(re.findall(r"\w+", out))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "/nowhere"], ["/nowhere", "finished run"]),
        (["run", "/nowhere.yaml"], ["/nowhere.yaml", "YAML recipe"]),
        (["bench", "/nowhere.onnx"], ["/nowhere.onnx", "does not exist"]),
        (["inspect", "timn:resnet18"], ["timn:resnet18", "timm"]),
        (["prune", "penjing:mlp", "--out", "/tmp/x", "--budget", "params"], ["params", "key=value"]),
        (["prune", "penjing:mlp", "--out", "/tmp/x", "--budget", "params=few"], ["few", "number"]),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: Any
) -> None:
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_a_pickled_model_without_inputs_is_told_how_to_have_some(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """There is no factory that could return them."""
    torch.save(torch.nn.Linear(2, 3), tmp_path / "whole.pt")  # noqa: TID251
    code, _, err = call(capsys, "inspect", str(tmp_path / "whole.pt"), "--trust")
    assert code == 2
    assert "the factory" not in err
    assert "Write a function that loads it" in err
    assert "file.py:function" in err
    assert "--data" not in err
    code, _, err = call(
        capsys, "export", str(tmp_path / "whole.pt"), "--trust", "--out", str(tmp_path / "out")
    )
    assert code == 2
    assert "Give --data, whose first samples are taken, or: Write a function" in err


def test_unknown_options_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "demo", "--ful")
    assert code == 2
    assert "--ful" in err


@pytest.mark.parametrize("verb", ["prune", "factorize", "recover", "quantize", "compress"])
def test_a_negative_seed_is_a_wrong_option(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    needed = {"recover": ["--teacher", "t"], "factorize": ["--budget", "macs=0.5"]}.get(verb, [])
    code, _, err = call(capsys, verb, "m", "--data", "d", "--out", "o", "--seed", "-1", *needed)
    assert code == 2
    assert "--seed" in err


def test_debug_lets_the_error_through(capsys: pytest.CaptureFixture[str]) -> None:
    from penjing.errors import ArtifactError

    with pytest.raises(ArtifactError):
        main(["report", "/nowhere", "--debug"])


def test_a_tilde_behind_an_option_is_the_home_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--out=~/x``, which no shell replaces, made a folder called ``~`` in the current one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "prune", "penjing:mlp", "--option=image_size=4", "--out=~/small", "--json")
    assert code == 0, err
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_recipe_errors_name_the_entry(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("data: {spec: glyphs}\nmodel: {spec: 'penjing:mlp'}\nprune: {ratio: 0.5}\nrecovr: {}\n")
    code, _, err = call(capsys, "run", str(path), "--out", str(tmp_path / "run"))
    assert code == 2
    assert "recover" in err
    assert not (tmp_path / "run").exists()


def test_interrupt_says_how_to_resume(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "penjing", "demo", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[run]"):
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    last = err.strip().splitlines()[-1]
    assert last.endswith(f"penjing demo --out {tmp_path / 'run'} --resume")
    assert "Traceback" not in err


def test_terminated_is_not_interrupted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penjing.cli.app.app", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    code, _, err = call(capsys, "run", "recipe.yaml")
    assert code == 143
    assert "penjing run recipe.yaml --resume" in err


@pytest.mark.parametrize(
    "error", [RuntimeError("DataLoader worker exited"), RunError("no file", remedy="Mend it")]
)
def test_an_error_after_a_signal_comes_of_it(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallow(*_: Any, **__: Any) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise error

    monkeypatch.setattr("penjing.cli.app.app", swallow)
    code, _, err = call(capsys, "run", "recipe.yaml")
    assert code == 130
    assert err == "penjing: interrupted. Go on with: penjing run recipe.yaml --resume\n"


def test_quantize_shows_what_max_drop_bounds() -> None:
    made = QuantizeResult(
        *(Path("q.onnx"), Path("q.safetensors"), (), 40.0, 50.0, 40.0, 1, 0, (), 10, 40, 8, "off", 1.0),
        metric_fp32=0.98,
        metric_int8=0.97,
        metric_samples=200,
    )
    assert "validation accuracy 0.9800 → 0.9700 (n=200)" in _text(made, "accuracy")


def test_report_from_metrics_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from penjing.files import write_json

    row = {"label": "x", "num_params": 10, "num_macs": 1, "size_bytes": 40}
    values = {"name": "r", "before": "dense", "after": "int8"}
    rows = [{**row, "key": "dense"}, {**row, "key": "int8", "num_params": 5}]
    write_json(tmp_path / "metrics.json", {**values, "rows": rows, "max_drop": 0.01, "held": False})
    code, out, _ = call(capsys, "report", str(tmp_path), "--json")
    assert code == 0
    found = json.loads(out)
    assert found["name"] == "r"
    assert found["verdict"].endswith("did not hold.")
    assert (tmp_path / "report.html").is_file()
    code, out, _ = call(capsys, "report", str(tmp_path))
    assert "10 → 5 parameters" in out
    assert found["verdict"] in out


class TestParsing:
    def test_pairs(self) -> None:
        assert pairs(["a=1", "b=[2, 3]", "c=x=y"], "--option") == {"a": 1, "b": [2, 3], "c": "x=y"}
        assert pairs(None, "--option") == {}

    def test_budget(self) -> None:
        assert budget_of(["params=0.1,macs=5e7"]) == {"params": 0.1, "macs": 5e7}
        assert budget_of(["params=0.1", "macs=2"]) == {"params": 0.1, "macs": 2.0}
        assert budget_of(None) is None

    def test_allowed_loss(self) -> None:
        given = ("0.5", " 1% ", "0.5pt", "0", "100")
        assert [in_points(one) for one in given] == ["0.5pt", "1%", "0.5pt", "0pt", "100pt"]

    @pytest.mark.parametrize("given", ["-1", "200", "nan", "1%%", "-1%", "few", ""])
    def test_bad_allowed_loss_is_quoted_as_typed(self, given: str) -> None:
        with pytest.raises(RecipeError, match=rf"^recipe at --max-drop: '{given}' is no allowed loss"):
            in_points(given)

    def test_what_is_wrong_with_it_is_said(self) -> None:
        with pytest.raises(
            RecipeError, match=r"'-1' is .*: what may be lost is not negative\. .*; 0 allows no"
        ):
            in_points("-1")
        with pytest.raises(RecipeError, match=r"'200' is .*: more than there is"):
            in_points("200")
        with pytest.raises(RecipeError) as caught:
            in_points("few", relative=False)
        assert "%" not in caught.value.remedy

    def test_names(self) -> None:
        assert names("onnx, saved_model,") == ("onnx", "saved_model")

    @pytest.mark.parametrize("entry", ["a", "=1", "a=["])
    def test_bad_pairs(self, entry: str) -> None:
        with pytest.raises(RecipeError):
            pairs([entry], "--option")


def test_tables_are_not_cut_off_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"file": "f" * 90, "size_bytes": 28574, "batch": 1, "threads": 1, "runtime": "onnxruntime 1.32.0"}
    ]
    emit({}, _table([{**row, "median_ms": 1.5, "p95_ms": 2.5} for row in rows]), False)
    assert {"f" * 90, "28.6", "kB", "1.32.0"} <= set(capsys.readouterr().out.split())


def test_a_size_that_no_file_leaves_free_is_no_size(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "m.onnx"
    pe.export_onnx(torch.nn.Conv1d(4, 3, 3), file, torch.randn(2, 4, 8), dynamic_axes={"*": {2: "length"}})
    timed = ["bench", str(file), "--batch", "1", "--runs", "2", "--json", "--size"]
    code, _, err = call(capsys, *timed, "length=16", "--size", "lenght=8")
    assert code == 2
    assert "no file leaves lenght free" in err
    assert call(capsys, *timed, "length=16")[0] == call(capsys, *timed, "*:2=16")[0] == 0


def test_the_report_of_a_study_is_elsewhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("{}")
    code, _, err = call(capsys, "report", str(tmp_path))
    assert code == 2
    assert f"penjing study --out {tmp_path}" in err


def test_what_a_factory_draws_follows_from_the_seed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = (
        "from torch import nn, zeros\ndef make():\n    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))"
    )
    (tmp_path / "net.py").write_text(text + ", zeros(2, 4)\n")

    def weights(seed: int, name: str) -> Any:
        prune = ("prune", f"{tmp_path / 'net.py'}:make", "--out", str(tmp_path / name), "--seed", str(seed))
        assert call(capsys, *prune)[0] == 0
        return (tmp_path / name / "model.safetensors").read_bytes()

    torch.manual_seed(5)
    one = weights(0, "one")
    torch.manual_seed(6)
    before = torch.get_rng_state()
    assert weights(0, "two") == one != weights(1, "three")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_study_goes_on_when_given_again() -> None:
    assert (
        _how_to_resume(["study", "r.yaml", "--out", "a b"]) == "Go on with: penjing study r.yaml --out 'a b'"
    )


def test_of_several_processes_the_first_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def second(*_: Any, **__: Any) -> None:
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)

    monkeypatch.setattr(import_module("penjing.recover"), "recover", second)
    np.savez(tmp_path / "d.npz", x=np.zeros((8, 8, 8, 1), np.uint8), y=np.arange(8) % 2)
    files = ["--data", str(tmp_path / "d.npz"), "--out", str(tmp_path / "out")]
    assert call(capsys, "recover", "penjing:mlp", "--teacher", "penjing:mlp", *files)[:2] == (0, "")
    assert not (tmp_path / "out").exists()


def test_what_standard_output_cannot_write_is_escaped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a C locale: the work is done by then."""
    for options in ((), ("--json",)):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
        out = str(tmp_path / "ö蓝😀")
        with pytest.raises(SystemExit) as stop:
            main(["prune", "penjing:mlp", "--out", out, *options])
        sys.stdout.flush()
        assert stop.value.code == 0
        text = written.getvalue().decode("ascii")
        assert json.loads(text)["folder"] == out if options else r"\u2192" in text


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (EOFError("Ran out of input"), 1, "unexpected EOFError: Ran out of input"),
        (PermissionError(13, "Permission denied", "w.npz"), 2, "w.npz cannot be used (Permission denied)"),
        (
            OSError(28, "No space left on device"),
            2,
            "cannot be written ([Errno 28] No space left on device). Make room",
        ),
        (MemoryError("Unable to allocate 7 TiB"), 2, "not enough memory (Unable to allocate 7 TiB). Give"),
        (
            RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            2,
            "not enough memory (can't allocate memory: 9 bytes). Give",
        ),
    ],
)
def test_what_files_and_memory_refuse_is_no_interrupt_and_no_bug(
    error: Exception,
    code: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("penjing.recipe.Recipe.from_file", fails)
    found, _, err = call(capsys, "run", "recipe.yaml")
    assert found == code
    assert says in err


@pytest.mark.parametrize(
    ("verb", "stage"),
    [("export", "export"), ("inspect", "inspect"), ("--debug quantize", "quantize"), ("run", "run")],
)
def test_a_folder_that_cannot_be_written_is_told_of_the_verb(
    verb: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RunError("cannot write out", remedy="Choose")

    monkeypatch.setattr("penjing.cli.app.app", fails)
    with pytest.raises(RunError, match=f"^{stage}: cannot write out"):
        _carry_out(verb.split())


def test_what_is_to_be_known_of_a_file_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "import torch\nclass Net(torch.nn.Linear):\n    def forward(self, x):\n"
    text += "        return super().forward(x) * float(len(range(x.shape[0])))\n"
    (tmp_path / "net.py").write_text(text + "def make():\n    return Net(4, 3), torch.randn(2, 4)\n")
    files = ["--formats", "onnx,program", "--out", str(tmp_path / "out")]
    code, out, err = call(capsys, "export", f"{tmp_path / 'net.py'}:make", *files)
    assert code == 0
    assert (out + err).count("every batch has 2 samples") == 1


def test_sizes_that_callers_choose_are_named_by_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "import torch\ndef make():\n    return torch.nn.Conv1d(4, 3, 3), torch.randn(2, 4, 8)\n"
    (tmp_path / "net.py").write_text(text)
    asked = ["export", f"{tmp_path / 'net.py'}:make", "--formats", "onnx", "--out", str(tmp_path / "out")]
    code, out, _ = call(capsys, *asked, "--dynamic-axis", "*:2=length")
    assert code == 0
    assert "at batch 1, 3, 8, 1 (length = 16)" in " ".join(out.split())
    code, _, err = call(capsys, *asked, "--dynamic-axis", "length")
    assert code == 2
    assert "'length' names no size" in err
