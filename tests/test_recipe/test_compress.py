from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from vector_data import halves

import penjing as pj
from penjing.cli.verbs.compress import command
from penjing.cli.verbs.export import command as export_verb
from penjing.errors import DataError, RecipeError, RunError
from penjing.events import Event, Listener
from penjing.export.export import export
from penjing.recipe import Recipe
from penjing.recipe.result import RunResult
from penjing.recipe.schema import ExportConfig, SearchConfig


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A trained network of one's own, outside any recipe."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    trained: nn.Module = pj.train(model, halves(200, 0), pj.RecoverConfig(epochs=5, lr=0.1)).model
    return trained


def test_as_many_sizes_are_tried_however_it_is_asked() -> None:
    doors = (pj.compress, command)
    assert {inspect.signature(door).parameters["trials"].default for door in doors} == {SearchConfig().trials}


def test_the_same_files_are_written_however_it_is_asked() -> None:
    def default(door: Callable[..., Any]) -> Any:
        return inspect.signature(door).parameters["formats"].default

    written = ExportConfig().formats
    assert default(pj.compress) == written
    assert default(export) == written
    for verb in (command, export_verb):
        assert tuple(default(verb).split(",")) == written


def test_own_network_and_loaders(network: nn.Module, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    data = (halves(200, 0), halves(100, 1), halves(100, 2))
    out = tmp_path / "small"
    config = pj.RecoverConfig(epochs=2, lr=0.02)
    budget = pj.Budget(params=0.3)
    options = {"export": {"batch_sizes": [1, 3]}, "measure": {"runs": 3}}
    result = pj.compress(
        network,
        data,
        budget=budget,
        max_drop=0.2,
        recover=config,
        formats=("onnx",),
        out=out,
        options=options,
    )
    rows = {row.key: row for row in result.metrics.rows}
    assert rows["int8"].num_params <= 0.3 * rows["dense"].num_params
    assert rows["dense"].accuracy["test"].value > 0.9
    assert result.held is True
    loss = rows["dense"].accuracy["val"].value - rows["int8"].accuracy["val"].value
    assert loss <= 0.2
    # The network given is as it was, and the one that comes back is that of the artifact.
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert sum(p.numel() for p in result.model.parameters()) == rows["recovered"].num_params
    # Again with the same network and data: nothing to do. With others: refused, or it would be made of two.
    again = partial(
        pj.compress,
        budget=budget,
        max_drop=0.2,
        recover=config,
        formats=("onnx",),
        out=out,
        options=options,
        resume=True,
    )
    assert len(again(network, data).skipped) == len(result.metrics.seconds) + 1
    others = {
        r"the given model": (
            nn.Sequential(*list(copy.deepcopy(network).children())[:-1], nn.Linear(64, 2)),
            data,
        ),
        r"the given data \(batches of train\)": (network, (halves(200, 7), *data[1:])),
        r"the given data \(batches of val\)": (network, (data[0], [data[1][0], *halves(80, 7)], data[2])),
        r"the given data \(batches of test\)": (network, (*data[:2], halves(100, 7))),
    }
    for what, given in others.items():
        with pytest.raises(RunError, match=f"{what} is not what it was"):
            again(*given)
    # The stored recipe cannot be run by itself: it says so.
    with pytest.raises(RunError, match="compress"):
        pj.run(Recipe.from_file(out / "recipe.yaml"), tmp_path / "other")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"data": [halves(20, 0)]}, DataError),
        ({"data": (iter(halves(20, 0)), halves(20, 0))}, DataError),
        ({"budget": {"parms": 0.1}}, RecipeError),
        ({"budget": {"params": -1}}, RecipeError),
        ({"max_drop": 3}, RecipeError),
        ({"options": {"seed": 3}}, RecipeError),
        ({"options": {"measur": {}}}, RecipeError),
    ],
)
def test_wrong_arguments_leave_nothing(
    network: nn.Module, tmp_path: Path, arguments: dict[str, object], error: type[Exception]
) -> None:
    out = tmp_path / "out"
    good: dict[str, object] = {"data": (halves(20, 0), halves(20, 1)), "out": out}
    with pytest.raises(error):
        pj.compress(network, **(good | arguments))  # type: ignore[arg-type]
    assert not out.exists()


def test_a_network_that_knows_nothing_is_said_once(network: nn.Module, tmp_path: Path) -> None:
    """Everything after it is held to its answers, so a forgotten file of weights costs hours."""
    torch.manual_seed(0)
    untrained = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    heard: list[Event] = []

    def run(model: nn.Module, folder: str, listen: Listener) -> RunResult:
        return pj.compress(
            model,
            (halves(200, 0), halves(400, 1)),
            prune={"ratio": 0.3},
            max_drop=None,
            quantize=None,
            recover=pj.RecoverConfig(epochs=1),
            formats=("onnx",),
            out=tmp_path / folder,
            options={"export": {"batch_sizes": [1]}, "measure": {"runs": 3, "batches": [1]}},
            listen=listen,
        )

    def until_read(event: Event) -> None:
        heard.append(event)
        if event.stage == "prune":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(network, "trained", until_read)
    assert not [event for event in heard if event.kind == "warning"]
    heard.clear()
    notes = run(untrained, "untrained", heard.append).metrics.notes
    warned = [e for e in heard if e.kind == "warning" and "no better than chance" in e.message]
    assert [event.stage for event in warned] == ["train"]
    assert [note for note in notes if "no better than chance" in note] == [warned[0].message]
