from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from penjing.measure import Inspection, count, inspect
from penjing.models import build


@pytest.fixture(scope="module")
def vgg() -> Inspection:
    return inspect(build("vgg_small", 10, 1, 32), torch.zeros(1, 1, 32, 32))


@pytest.fixture(scope="module")
def resnet() -> Inspection:
    return inspect(build("resnet20", 10), torch.zeros(1, 3, 32, 32))


def test_totals_are_those_of_count(vgg: Inspection) -> None:
    counted = count(build("vgg_small", 10, 1, 32), torch.zeros(1, 1, 32, 32))
    assert (vgg.num_params, vgg.num_macs) == (counted.num_params, counted.num_macs)
    assert sum(layer.num_macs for layer in vgg.layers) == vgg.num_macs


def test_a_group_holds_what_removing_all_of_it_takes_away(vgg: Inspection) -> None:
    rows = {row.id: row for row in vgg.groups}
    hidden = rows["classifier.4.weight:0"]
    assert hidden.size == 128
    assert hidden.num_params == 128 * 128 + 128 + 128 * 10
    assert hidden.num_macs == 128 * 128 + 128 * 10
    first = rows["features.0.weight:0"]
    assert first.num_params == 16 * 9 + 2 * 16 + 32 * 16 * 9
    # Everything but the bias of the classifier goes with some group.
    assert vgg.num_params_in_groups == vgg.num_params - 10


def test_layers_say_what_can_shrink_and_frozen_dimensions_say_why(
    vgg: Inspection, resnet: Inspection
) -> None:
    states = {layer.name: layer.state for layer in vgg.layers}
    assert states["features.0"] == states["classifier.1"] == "prunable"
    assert states["classifier.7"] == "inputs"
    reasons = {param: row.reason for row in vgg.frozen for param in row.params}
    assert "output" in reasons["classifier.7.weight:0"]
    reasons = {param: row.reason for row in resnet.frozen for param in row.params}
    assert "input" in reasons["conv1.weight:1"]


def test_a_residual_block_is_read_as_a_chain_with_one_join(resnet: Inspection) -> None:
    layers = {layer.name: layer for layer in resnet.layers}
    assert layers["layer1.1.conv1"].reads == ("layer1.0.conv2",)
    assert layers["layer1.1.conv2"].reads == ("layer1.1.conv1",)
    assert layers["layer1.1.conv2"].joined_by == ("layer1.0.conv2",)
    assert layers["linear"].reads == ("layer3.2.conv2",)


def test_ignored_parameters_are_not_prunable() -> None:
    found = inspect(build("vgg_small", 10, 1, 32), torch.zeros(1, 1, 32, 32), ignore=["features.4.*"])
    assert all("features.4.weight:0" not in row.tensors for row in found.groups)
    assert next(layer for layer in found.layers if layer.name == "features.4").outputs == 0


def test_it_prints_as_text_table_json_and_picture(vgg: Inspection, resnet: Inspection) -> None:
    for found in (vgg, resnet):
        json.dumps(found.to_dict(), allow_nan=False)
        console = Console(file=io.StringIO(), width=140)
        console.print(found)
        assert isinstance(console.file, io.StringIO)
        for text in (str(found), console.file.getvalue(), found.html()):
            assert f"{found.num_params:,} parameters" in text
            assert all(row.id in text for row in found.groups)
        svg = ET.fromstring(found.svg())
        bars = [item for item in svg.iter() if item.tag.endswith("rect") and len(item)]
        assert len(bars) == len(found.layers)
        assert not any(item.tag.endswith("script") for item in svg.iter())
        assert "http://" not in found.html().replace("http://www.w3.org/2000/svg", "")


def test_the_keys_of_the_picture_lie_apart(vgg: Inspection) -> None:
    """In a wide font one ended in the next one's box."""
    items = list(ET.fromstring(vgg.svg()).iter())
    boxes = [float(item.attrib["x"]) for item in items if item.get("height") == "10"]
    texts = [item for item in items if item.tag.endswith("text") and item.get("y") == "13"]
    ends = [float(text.attrib["x"]) + 6.9 * len(text.text or "") for text in texts]
    assert len(boxes) == len(ends) == 4
    assert all(end < box for end, box in zip(ends, [*boxes[1:], 720], strict=True))


def test_names_are_escaped_in_the_picture() -> None:
    model = nn.Sequential()
    model.add_module("a<b>&", nn.Linear(3, 4))
    model.add_module("out", nn.Linear(4, 2))
    picture = ET.fromstring(inspect(model, torch.zeros(1, 3)).svg())
    assert any("a<b>&" in (item.text or "") for item in picture.iter())


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.left = nn.Conv2d(4, 5, 1)
        self.right = nn.Conv2d(4, 6, 1)
        self.head = nn.Conv2d(11, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out: Tensor = self.head(torch.cat([self.left(x), self.right(x)], 1))
        return out


def test_branches_meet_under_the_later_one() -> None:
    layers = {layer.name: layer for layer in inspect(TwoBranches(), torch.zeros(1, 3, 4, 4)).layers}
    assert layers["left"].reads == layers["right"].reads == ("stem",)
    assert layers["right"].joined_by == ("left",)
    assert layers["head"].reads == ("right",)


def test_residual_branches_are_listed() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.block = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 1))
            self.other = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 1, bias=False))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.block(x)
            return x - self.other(x)  # type: ignore[no-any-return]  # a difference is no sum

    found = inspect(Net(), torch.zeros(2, 3, 5, 5))
    (branch,) = found.branches
    assert (branch.name, branch.num_params) == ("block", 4 * 8 * 9 + 4 + 8 * 4 + 8)
    assert branch.num_macs == 25 * (4 * 8 * 9 + 8 * 4)
    assert "1 residual branch\n" in str(found)
    assert found.to_dict()["branches"] == [vars(branch)]
