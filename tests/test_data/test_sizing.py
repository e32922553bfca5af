"""Photographs come to one size as torchvision's evaluation brings them to it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from penjing.data.sizing import INTERPOLATIONS, Sizing

transforms = pytest.importorskip("torchvision.transforms")
sides = st.integers(3, 90)


@given(
    sides,
    sides,
    st.integers(4, 40),
    st.integers(0, 12),
    st.sampled_from(sorted(INTERPOLATIONS)),
    st.booleans(),
)
def test_the_middle_is_torchvisions(
    width: int, height: int, size: int, more: int, interpolation: str, gray: bool
) -> None:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert("L" if gray else "RGB")
    wanted = transforms.Compose(
        [
            transforms.Resize(size + more, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(size),
        ]
    )(picture)
    found = Sizing(size, size / (size + more), interpolation)(picture)
    assert found.size == (size, size)
    assert np.array_equal(np.asarray(found), np.asarray(wanted))
