from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from penjing.errors import RecipeError
from penjing.recipe import Recipe
from penjing.recipe.schema import first_difference

BASE = {
    "data": {"spec": "glyphs"},
    "model": {"spec": "penjing:vgg_small"},
    "prune": {"ratio": 0.5},
}
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def test_yaml_is_the_object(tmp_path: Path) -> None:
    recipe = Recipe.parse({**BASE, "train": {"epochs": 3}, "quantize": None, "name": "a-b_1.2"})
    path = tmp_path / "recipe.yaml"
    text = recipe.to_yaml(path)
    assert Recipe.from_file(path) == recipe
    assert Recipe.parse(yaml.safe_load(text)) == recipe
    assert Recipe.parse(recipe.to_dict()) == recipe


def test_a_number_is_a_number_in_free_options_too(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "{model: {spec: a, options: {lr: 1e-3, tag: '1e-3'}}, data: {spec: b}, prune: {ratio: 5e-1}}"
    )
    recipe = Recipe.from_file(path)
    assert recipe.model.options == {"lr": 0.001, "tag": "1e-3"}
    recipe.to_yaml(path)
    assert Recipe.from_file(path) == recipe


def test_a_key_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("base: &b {lr: 1}\nrecover: {epochs: 3, <<: *b, lr: 2, epochs: 30}\n")
    with pytest.raises(RecipeError, match=r"'epochs' stands twice.*line 2"):
        Recipe.from_file(path)


@pytest.mark.parametrize(
    ("change", "where", "words"),
    [
        ({"prunee": {}}, "Recipe", "did you mean 'prune'"),
        ({"data": {"spec": "glyphs", "batchsize": 3}}, "data", "did you mean 'batch_size'"),
        ({"prune": {"ratio": 1.0}}, "prune.ratio", "less than 1"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"prune": {}}, "prune", "budget"),
        ({"prune": {"ratio": 0.5, "budget": {"params": 0.1}}}, "prune", "either"),
        ({"prune": {"ratio": 0.5, "steps": 3}}, "prune", "budget"),
        ({"prune": {"ratio": 0.5, "reconstruct": {"rigde": 1}}}, "prune.reconstruct", "ridge"),
        ({"prune": {"ratio": 0.5, "criterion": "magnitud"}}, "prune.criterion", "unknown criterion"),
        ({"recover": {"epochs": "many"}}, "recover.epochs", "no whole number"),
        ({"recover": {"lr": True}}, "recover.lr", "true is no number"),
        ({"recover": {"betas": [0.9, True]}}, "recover.betas", "1: true is no number"),
        ({"prune": {"ratios": {"conv": True}}}, "prune.ratios", "conv: true is no number"),
        ({"measure": {"batches": [True, 2]}}, "measure.batches", "0: true is no number"),
        ({"measure": {"batches": []}}, "measure.batches", "at least 1 item"),
        ({"recover": {"lr": float("inf")}}, "recover.lr", "finite"),
        ({"article": {"epochs": 1}}, "Recipe", "train"),
        ({"name": "../up"}, "name", "letters"),
        ({"name": ".."}, "name", "no folder of its own"),
        ({"seed": 2**70}, "seed", "less than"),
        ({"recover": {"betas": [0.9, 1.0]}}, "recover.betas.1", "less than 1"),
        ({"prune": {"ratio": 0.5, "between": {"epochs": 1}}}, "prune", "`steps`"),
        ({"prune": {"ratio": 0.5, "reconstruct": {"ridges": []}}}, "prune.reconstruct.ridges", "at least 1"),
        (
            {"prune": {"ratio": 0.5, "reconstruct": {"ridges": [-1.0]}}},
            "prune.reconstruct.ridges.0",
            "than 0",
        ),
        ({"export": {"opset": -1}}, "export.opset", "greater than or equal to 1"),
        ({"max_drop": 2}, "max_drop", "less than or equal to 1"),
        ({"drop": "relative"}, "Recipe", "give `max_drop`"),
        ({"measure": {"threads": 0}}, "measure.threads", "greater than or equal to 1"),
    ],
)
def test_wrong_entries_are_named(change: Any, where: Any, words: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse({**BASE, **change})
    assert words in str(caught.value)
    assert caught.value.layer == where


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\x00", "just words"])
def test_files_that_are_no_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError):
        Recipe.from_file(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml"):
        Recipe.from_file(tmp_path / "none.yaml")


def test_onnx_is_always_exported() -> None:
    recipe = Recipe.parse({**BASE, "export": {"formats": ["saved_model"]}})
    assert recipe.export.formats == ("onnx", "saved_model")


def test_demo_recipe_is_valid() -> None:
    from importlib.resources import files

    recipe = Recipe.parse(yaml.safe_load((files("penjing.recipe") / "demo.yaml").read_text("utf-8")))
    assert recipe.name == "demo"
    assert recipe.article is not None
    assert recipe.article.steps_per_epoch == 1


@given(plain)
def test_no_difference_to_itself(value: Any) -> None:
    assert first_difference(value, value) is None


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"prune": {"ratio": "40%"}}, r"prune\.ratio: '40%' is no number; as a share it is 0\.4"),
        (
            {"prune": {"budget": {"macs": "7.5 %"}}},
            r"budget\.macs: '7\.5 %' is no number; as a share it is 0\.075",
        ),
        ({"prune": {"ratio": "0,4"}}, r"prune\.ratio: '0,4' is no number\. "),
        ({"max_drop": 5}, r"max_drop: .* less than or equal to 1, and is 5\. "),
        ({"recover": {"epochs": 1.5}}, r"recover\.epochs: .*, and is 1\.5\. "),
    ],
)
def test_a_wrong_number_is_shown(entry: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.parse({**BASE, **entry})


@given(plain, plain)
def test_a_difference_is_found_in_both_directions(old: Any, new: Any) -> None:
    forward, backward = first_difference(old, new), first_difference(new, old)
    assert (forward is None) == (backward is None)
    if forward is not None:
        assert forward[1] != forward[2]


def test_difference_names_the_dotted_key() -> None:
    assert first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ("a.c", 2, 3)
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == ("b", None, 2)


@pytest.mark.parametrize(
    ("budget", "quantize", "precision"),
    [
        ({"latency": "0.5x"}, {}, "int8"),
        ({"latency": "0.5x"}, None, "fp32"),
        ({"latency": "0.5x"}, {"mode": "dynamic"}, "fp32"),
        ({"latency": "0.5x", "runtime": "litert"}, {}, "fp32"),
        ({"latency": "0.5x", "precision": "fp32"}, {}, "fp32"),
        ({"params": 0.5}, {}, None),
    ],
)
def test_a_latency_is_that_of_the_delivered_file(budget: Any, quantize: Any, precision: str | None) -> None:
    recipe = Recipe.parse({**BASE, "prune": {"budget": budget}, "quantize": quantize})
    assert recipe.prune.budget is not None
    assert recipe.prune.budget.precision == precision
    assert Recipe.parse(recipe.to_dict()) == recipe
