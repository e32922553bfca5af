"""A user's file finds what lies beside it, and its mistakes are named."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penjing.cli.app import main
from penjing.data import open_data
from penjing.errors import ArtifactError, DataError, RunError
from penjing.models.spec import load_model
from penjing.recipe.lock import run_lock
from penjing.user_file import named_function, users_fault

MINE = """
from __future__ import annotations
import dataclasses, typing
from penjing_test_beside import WIDTH

@dataclasses.dataclass
class Batch:
    size: int = WIDTH

def at_import(): return Batch().size, typing.get_type_hints(Batch)
def when_called():
    import penjing_test_later
    return penjing_test_later.DEPTH
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    path = list(sys.path)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "penjing_test_beside.py").write_text("WIDTH = 7\n")
    (tmp_path / "penjing_test_later.py").write_text("DEPTH = 3\n")
    yield tmp_path
    sys.path[:] = path
    for name in [name for name in sys.modules if "penjing_test_" in name or "penjing_user_" in name]:
        del sys.modules[name]


def test_what_lies_beside_it_is_found_whenever_it_is_imported(folder: Path) -> None:
    assert named_function(folder / "mine.py", "at_import", DataError)() == (7, {"size": int})
    assert named_function(folder / "mine.py", "when_called", DataError)() == 3
    assert sys.path[0] != str(folder)
    assert sys.path.count(str(folder)) == 1


def test_a_file_that_fails_leaves_nothing_behind(folder: Path) -> None:
    (folder / "broken.py").write_text("import penjing_test_nowhere\n")
    before = set(sys.modules), list(sys.path)
    with pytest.raises(DataError, match=r"broken\.py.*ModuleNotFoundError.*penjing_test_nowhere"):
        named_function(folder / "broken.py", "any", DataError)
    assert (set(sys.modules), sys.path) == before


def test_the_nearest_name_is_offered(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no function 'at_imprt'.*Use one of at_import$"):
        named_function(folder / "mine.py", "at_imprt", DataError)


@pytest.mark.parametrize(
    ("signature", "given", "said"),
    [
        (
            "width=4, *, depth=2",
            {"with": 3},
            "unexpected keyword argument 'with'. It may be given width, depth",
        ),
        ("width, depth=2", {}, "missing a required argument: 'width'. It needs width and may be given depth"),
        ("", {"width": 3}, "unexpected keyword argument 'width'. It takes no options"),
    ],
)
def test_of_wrong_options_the_file_is_not_blamed(
    signature: str, given: dict[str, Any], said: str, folder: Path
) -> None:
    (folder / "net.py").write_text(f"import torch\ndef make({signature}): return torch.nn.Linear(2, 2)\n")
    for read, error in ((load_model, ArtifactError), (lambda spec, **o: open_data(spec, **o), DataError)):
        with pytest.raises(error, match=re.escape(said) + "$") as caught:
            read(f"{folder / 'net.py'}:make", **given)
        assert "Correct the file" not in str(caught.value)


def test_a_factory_of_any_options_is_given_them(folder: Path) -> None:
    (folder / "net.py").write_text(
        "import torch\ndef make(**sizes): return torch.nn.Linear(2, sizes['out'])\n"
    )
    assert load_model(f"{folder / 'net.py'}:make", out=5).model.out_features == 5


def test_what_it_raises_later_is_no_bug_of_ours(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.py").write_text("import json\ndef batches():\n    yield json.loads('{')\n")
    batches = named_function(folder / "mine.py", "batches", DataError)
    monkeypatch.setattr("penjing.cli.app.app", lambda *_, **__: next(batches()))
    with pytest.raises(SystemExit) as stop:
        main(["run", "recipe.yaml"])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert f"at {folder / 'mine.py'}:3: its code failed (JSONDecodeError: " in said
    with pytest.raises(RunError) as ours:
        as_lock(folder / "mine.py")
    assert users_fault(ours.value) is None


@pytest.mark.parametrize("workers", [0, 1])
def test_the_line_is_named_in_a_loaders_worker_and_in_a_file_beside_it_too(
    workers: int, folder: Path
) -> None:
    (folder / "penjing_test_set.py").write_text(
        "class Images:\n"
        "    def __len__(self): return 2\n"
        "    def __getitem__(self, index):\n"
        "        raise ValueError(f'no image {index}\\nat all')\n"
    )
    (folder / "mine.py").write_text(
        "import torch, penjing_test_set\n"
        "def train(workers):\n"
        "    return torch.utils.data.DataLoader(penjing_test_set.Images(), num_workers=workers)\n"
    )
    loader = named_function(folder / "mine.py", "train", DataError)(workers)
    with pytest.raises(ValueError, match="no image 0") as raised:
        list(loader)
    fault = users_fault(raised.value)
    assert fault is not None
    assert fault.line == f"{folder / 'penjing_test_set.py'}:4"
    assert fault.said == "ValueError: no image 0"


def test_of_a_worker_that_fails_elsewhere_nothing_is_said(folder: Path) -> None:
    named_function(folder / "mine.py", "at_import", DataError)
    with pytest.raises(TypeError) as raised:
        list(torch.utils.data.DataLoader([object()], num_workers=1))  # type: ignore[arg-type]
    assert "Traceback" in str(raised.value)
    assert users_fault(raised.value) is None


def as_lock(path: Path) -> None:
    """Fails in our code, called by a user's."""
    path.write_text("def hold(lock, path):\n    with lock(path):\n        pass\n")
    named_function(path, "hold", DataError)(run_lock, path)


def test_of_compiled_code_nobodys_file_is_blamed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy names its sources from where it was built: here they would lie beside the user's file."""
    named_function(folder / "mine.py", "at_import", DataError)
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="negative") as raised:
        np.random.default_rng(0).normal(size=(-1,))
    assert any(str(frame.path).endswith(".pyx") for frame in raised.traceback)
    assert users_fault(raised.value) is None


def test_a_file_that_may_not_be_read_is_not_blamed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)  # the superuser may read all
    with pytest.raises(DataError, match=r"no permission to read .*mine.py"):
        named_function(folder / "mine.py", "at_import", DataError)
