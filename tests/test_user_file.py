"""A user's file finds what lies beside it, and its mistakes are named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penjing.cli.app import main
from penjing.errors import DataError, RunError
from penjing.recipe.lock import run_lock
from penjing.user_file import named_function, users_line

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
    assert users_line(ours.value) == ""


def as_lock(path: Path) -> None:
    """Fails in our code, called by a user's."""
    path.write_text("def hold(lock, path):\n    with lock(path):\n        pass\n")
    named_function(path, "hold", DataError)(run_lock, path)
