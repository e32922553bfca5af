"""Files whose sizes callers choose are run at another size before they are handed over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from penjing.errors import QuantizeError
from penjing.export import export_onnx
from penjing.quantize import quantize
from penjing.quantize.check import check_sizes
from penjing.quantize.feeds import Feeds, input_specs
from penjing.quantize.prepare import load_onnx
from penjing.quantize.runtime import Session

AXES = {"*": {2: "height"}}


class Sums(nn.Module):
    """What is added up grows with the image, past what calibration saw."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.conv, self.head, self.mean = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4), mean

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(x).relu()
        hidden = hidden.mean((2, 3)) if self.mean else hidden.sum((2, 3)) ** 4 / 1e6
        found: Tensor = self.head(hidden)
        return found


@pytest.mark.parametrize(("mean", "told"), [(True, False), (False, True)])
def test_another_size_is_run_and_a_poor_answer_told(mean: bool, told: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = Sums(mean).eval(), [torch.randn(4, 3, 8, 8) for _ in range(4)]
    with torch.no_grad():
        model.head.bias.zero_()
    made = quantize(
        model, data, {"dynamic_axes": AXES, "rounding": "nearest"}, out=tmp_path / "m.onnx", time_it=False
    )
    assert any(note.startswith("with height = 16") for note in made.notes) == told


def test_a_file_that_holds_the_examples_size_is_refused(tmp_path: Path) -> None:
    class Rows(nn.Module):
        def __init__(self, cut: bool) -> None:
            super().__init__()
            self.cut = cut

        def forward(self, x: Tensor) -> Tensor:
            return x.mean(2).flatten(1).repeat(1, 8) if self.cut else x.flatten(1)

    example = torch.randn(4, 3, 8, 8)
    free, cut = (
        export_onnx(Rows(cut).eval(), tmp_path / f"{cut}.onnx", example, dynamic_axes=AXES)
        for cut in (False, True)
    )
    feeds = Feeds([example], input_specs(load_onnx(free).graph), 4)
    assert check_sizes(free, Session(free), feeds, 50.0, 10.0) == ()
    with pytest.raises(QuantizeError, match=r"with height = 16 the file gives \S+ in shape \[1, 192\]"):
        check_sizes(cut, Session(free), feeds, 50.0, 10.0)
