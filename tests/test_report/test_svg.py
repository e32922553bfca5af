from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.report.svg import Bar, Point, Scale, Series, bars, chart

numbers = st.floats(-1e6, 1e6)
positive = st.floats(1e-3, 1e9)


@given(positive, st.floats(1.01, 1e6), st.floats(0, 1), st.booleans())
def test_scale_keeps_order_and_ends(low: Any, factor: Any, share: Any, log: bool) -> None:
    scale = Scale(low, low * factor, 10, 110, log)
    assert scale(low) == pytest.approx(10)
    assert scale(low * factor) == pytest.approx(110)
    assert 10 - 1e-6 <= scale(low + share * (low * factor - low)) <= 110 + 1e-6


@given(positive, st.floats(1.01, 1e6), st.booleans())
def test_ticks_are_inside_and_few(low: Any, factor: Any, log: bool) -> None:
    scale = Scale(low, low * factor, 0, 1, log)
    ticks = scale.ticks()
    assert ticks == sorted(set(ticks))
    assert 1 <= len(ticks) <= 12
    assert all(low * (1 - 1e-6) <= tick <= low * factor * (1 + 1e-6) for tick in ticks)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), st.booleans())
def test_chart_is_xml_with_every_point(pairs: Any, lines: bool) -> None:
    points = tuple(Point(x, y, label="a<b") for x, y in pairs)
    text = chart([Series("one & two", points)], x_label="x", y_label="y", lines=lines)
    root = ET.fromstring(text)
    assert len(root.findall("circle")) == len(pairs)
    assert len(root.findall("polyline")) == (1 if lines and len(pairs) > 1 else 0)


def test_nothing_to_draw_is_nothing() -> None:
    assert chart([], x_label="x", y_label="y") == ""
    assert chart([Series("a", (Point(-1, 1),))], x_label="x", y_label="y", log_x=True) == ""
    assert bars([], label="none") == ""


def test_bars_are_as_long_as_their_values() -> None:
    root = ET.fromstring(bars([Bar("a", 5, "5", whole=10), Bar("b", 10, "10", whole=10)], label="l"))
    widths = [float(rect.attrib["width"]) for rect in root.findall("rect")]
    assert widths[1] == pytest.approx(widths[0] / 2, abs=0.2)
    assert widths[3] == widths[2] == widths[0]


def test_whole_ticks_only() -> None:
    points = tuple(Point(x, x) for x in (1.0, 2.0))
    root = ET.fromstring(chart([Series("a", points)], x_label="epoch", y_label="y", whole_x=True))
    below = [
        t.text for t in root.findall("text") if t.get("class") == "tick" and t.get("text-anchor") == "middle"
    ]
    assert below == ["1", "2"]


def test_one_epoch_is_the_only_tick() -> None:
    """The axis went from 0 to 2."""
    root = ET.fromstring(chart([Series("a", (Point(1, 0.5),))], x_label="epoch", y_label="y", whole_x=True))
    ticks = [t.text for t in root.findall("text") if t.get("class") == "tick"]
    assert [t for t in ticks if t in {"0", "1", "2"}] == ["1"]


def test_a_name_lies_across_no_interval_where_there_is_room_beside() -> None:
    places = (("dense, as given", 89e-3, 54.6), ("int8", 0.115, 53.2), ("recovered", 0.119, 53.4))
    series = [Series(name, (Point(x, y, y - 4, y + 4, name),)) for name, x, y in places]
    root = ET.fromstring(chart(series, x_label="ms", y_label="%", lines=False, log_x=True))
    (name,) = (t for t in root.findall("text") if t.text == "dense, as given")
    bars = [
        float(line.attrib["x1"]) for line in root.findall("line") if "c" in line.get("class", "").split()[-1]
    ]
    assert name.get("text-anchor") == "end"
    assert float(name.attrib["x"]) < min(bars)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5))
def test_the_label_of_y_lies_on_no_number(values: list[float]) -> None:
    points = tuple(Point(float(at), value) for at, value in enumerate(values))
    root = ET.fromstring(chart([Series("a", points)], x_label="epoch", y_label="training loss"))
    numbers = [t for t in root.findall("text") if t.get("text-anchor") == "end"]
    assert all(
        float(t.attrib["x"]) - 15 / 13 * 7.4 * len(t.text or "") >= 17 for t in numbers
    )  # 13 px and a gap


def test_a_name_ends_within_the_plot_on_a_phone() -> None:
    """Phones show 15 px: "dense, as given" was cut at the right."""
    points = [
        Series(name, (Point(x, 0.5, label=name),)) for x, name in ((11e3, "int8"), (22e3, "dense, as given"))
    ]
    root = ET.fromstring(chart(points, x_label="bytes", y_label="y", lines=False, log_x=True))
    names = {t.text: t for t in root.findall("text") if "value" in t.get("class", "")}
    assert set(names) == {"int8", "dense, as given"}
    for text, t in names.items():
        start = float(t.attrib["x"])
        assert t.get("text-anchor") == "end" or start + 15 / 13 * 7.4 * len(text or "") <= 480


@given(st.lists(st.tuples(st.floats(1, 1e3), st.floats(0, 100)), min_size=1, max_size=6))
def test_names_stay_above_the_axis(places: list[tuple[float, float]]) -> None:
    """Of points near 0% they lay on the numbers of x."""
    series = [Series(str(at), (Point(x, y, label=f"name {at}"),)) for at, (x, y) in enumerate(places)]
    root = ET.fromstring(chart(series, x_label="x", y_label="%", lines=False, log_x=True, most=100))
    axis = next(float(line.attrib["y1"]) for line in root.findall("line") if line.get("class") == "axis")
    names = [t for t in root.findall("text") if "value" in t.get("class", "")]
    assert len(names) == len(places)
    assert all(float(t.attrib["y"]) <= axis - 4 for t in names)


def test_names_of_one_place_lie_under_each_other() -> None:
    points = [Series(f"name {at}", (Point(1, 0.1 * at, label=f"name {at}"),)) for at in range(6)]
    points.append(Series("whole", (Point(2, 95, label="whole"),)))
    root = ET.fromstring(chart(points, x_label="x", y_label="%", lines=False, log_x=True, most=100))
    names = [t for t in root.findall("text") if "value" in t.get("class", "")]
    assert len({(t.get("y"), t.get("text-anchor")) for t in names}) == len(points)
