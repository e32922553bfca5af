"""What a recipe's text means: numbers as people read them, and nothing changed on the way through a file."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from penjing.config import Config
from penjing.errors import RecipeError
from penjing.plain_yaml import from_yaml, to_yaml

_TEXT = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")))  # PyYAML folds other line breaks
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT
_NUMBERLIKE = st.text("0123456789_.:+-exobaf", min_size=1, max_size=8)


@given(st.recursive(_SCALARS | _NUMBERLIKE, lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner)))
def test_what_is_written_is_read_back(data: Any) -> None:
    assert from_yaml(to_yaml(data)) == data


@given(st.integers(0, 10**9), st.integers(0, 3))
def test_leading_zeros_make_no_other_number(number: int, zeros: int) -> None:
    """YAML 1.1 took 010 for eight."""
    assert from_yaml("0" * zeros + str(number)) == number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),  # ninety in YAML 1.1
        ("1:30.5", "1:30.5"),
        ("1_000", 1000),
        ("-0x1f", -31),
        ("0o17", 15),
        ("0x_", "0x_"),
        ("1e-3", 0.001),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("._", "._"),
    ],
)
def test_numbers(text: str, value: Any) -> None:
    found = from_yaml(text)
    assert found == value
    assert type(found) is type(value)


class _Options(Config):
    rate: float = 0.1


class _Made(Config):
    name: str = "run"
    options: _Options | None = None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: no", "YAML reads yes, no, on and off as truth.* put it in quotes"),
        ("name: 12", "12 is no text; put it in quotes"),
        ("options: off", "no mapping of options.* null"),
    ],
)
def test_what_yaml_makes_of_a_word_is_said(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        _Made.parse(from_yaml(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ratio: {{ ratio }}", "a key is no text"),  # a template that nobody has filled in
        ("{{ more }}: 1", "a key is no text"),
        ("? [a, b]\n: 1", "a key is no text"),
        ("model: &m {options: {a: *m}}", r"\*m stands within what it names"),
        ("a: &m [1, *m]", r"\*m stands within what it names"),
        ("a: !!int x", "cannot be read"),
        ("a: !!timestamp x", "cannot be read"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_what_is_no_plain_data(text: str, said: str) -> None:
    with pytest.raises(yaml.YAMLError, match=said):
        from_yaml(text)


def test_anchors_and_dates() -> None:
    """An anchor may be used after what it names; a date stays the text it is, also one that there is not."""
    text = "a: &r {lr: 1e-3}\nb: {<<: *r, epochs: 2}\nc: [*r, 2026-11-30, 2026-13-01]"
    rate = {"lr": 0.001}
    assert from_yaml(text) == {"a": rate, "b": {**rate, "epochs": 2}, "c": [rate, "2026-11-30", "2026-13-01"]}
