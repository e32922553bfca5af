from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.prune.ranges import from_ranges, to_ranges


@given(st.sets(st.integers(0, 200)))
def test_round_trip(values: set[int]) -> None:
    positions = np.array(sorted(values), dtype=np.int64)
    assert np.array_equal(from_ranges(to_ranges(positions)), positions)


def test_text() -> None:
    assert to_ranges(np.array([0, 1, 2, 5, 8, 9])) == "0-2,5,8-9"
    assert to_ranges(np.array([], dtype=np.int64)) == ""


@pytest.mark.parametrize("positions", [[1, 0], [0, 0], [-1, 2]])
def test_only_increasing_positions(positions: list[int]) -> None:
    with pytest.raises(ValueError, match="increasing"):
        to_ranges(np.array(positions))


@pytest.mark.parametrize("text", ["3-1,0", "2,2", "5,1"])
def test_damaged_text(text: str) -> None:
    with pytest.raises(ValueError, match="increasing"):
        from_ranges(text)
