"""Decisions that a forward takes in Python: those by constants are followed, those by inputs are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from penjing.errors import TraceError
from penjing.export import export
from penjing.graph import trace
from penjing.graph.decisions import decide
from penjing.prune import masked_equivalence, prune


class Masked(nn.Module):
    """torch's own encoder looks at the values of its mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.encoder(x, mask=mask)[:, -1])  # type: ignore[no-any-return]


class Constants(nn.Module):
    """Every way a value gets to Python, from buffers."""

    flags: Tensor
    power: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(12, 3)
        self.register_buffer("flags", torch.tensor([1, 0]))
        self.register_buffer("power", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        which = [self.b, self.a][int(self.flags[0])]
        x = which(x) if bool(self.flags.any()) else self.b(x)
        return self.head(x.abs() ** self.power.item())  # type: ignore[no-any-return]


class ByInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else self.b(x)  # type: ignore[no-any-return]


class TrainsByInput(nn.Module):
    """A branch that only training takes, and takes by what it sees; what it reads is not in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.aside = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Parameter(torch.ones(8))
        self.drop, self.head = nn.Dropout(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.a(x)))
        if self.training and bool(x.sum() > 0):
            x = torch.where(x > 1, self.aside, x)
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("make", "shape"), [(Masked, (3, 6, 16)), (Constants, (4, 5))])
def test_constant_decisions_are_followed(make: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    graph = trace(model, x)
    assert graph.batch_dim
    assert any("taken as fixed" in note and "decisions.py" in note for note in graph.notes)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(graph(-2 * x[:2]), model(-2 * x[:2]), rtol=1e-5, atol=1e-6)
    result = prune(model, x, ratio=0.5)
    assert result.after["params"] < 0.8 * result.before["params"]
    assert masked_equivalence(model, result, x) <= 1e-5


def test_the_original_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    done = export(Masked().eval(), tmp_path, formats=("onnx",), example_inputs=torch.randn(3, 6, 16))
    verified = done.files[0].verification
    assert verified is not None
    assert {row.batch for row in verified.rows} >= {1, 3}


def test_a_decision_by_the_inputs_is_named(tmp_path: Path) -> None:
    model, x = ByInput(), torch.ones(2, 5)
    with pytest.raises(TraceError, match=r"values of its inputs at test_graph/test_decisions.py:\d+"):
        trace(model, x)
    with pytest.raises(TraceError, match="values of its inputs"):
        export(model, tmp_path, formats=("onnx",), example_inputs=x)
    assert not list(tmp_path.iterdir())


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    trace(Masked().eval(), torch.randn(3, 6, 16))
    with pytest.raises(TraceError):
        trace(ByInput(), torch.ones(2, 5))
    assert "".join(capfd.readouterr()) == ""


def test_each_decision_says_where() -> None:
    found = decide(Constants().eval(), (torch.randn(4, 5),), {})
    assert [decision.answer for decision in found] == [1, True, 2.0]
    assert len({decision.source for decision in found}) == 3
    assert decide(nn.Linear(5, 3), (torch.randn(4, 5),), {}) == ()


def test_a_training_branch_that_cannot_be_traced_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model, x = TrainsByInput(), torch.randn(4, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    assert trace(model, x).training is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.training
