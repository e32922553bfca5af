"""Groups found in small networks: the worked examples of the axis algebra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import penjing as pj
from penjing.graph import Coupling, Group, couple, positions, trace

X = torch.randn(2, 3, 8, 8)
TOKENS = torch.randn(2, 6, 12)


class Fn(nn.Module):
    """Modules by name and a forward given as a function of them."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = forward

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def solve(model: nn.Module, inputs: object = X, **options: object) -> Coupling:
    return couple(trace(model, inputs), **options)  # type: ignore[arg-type]


def dims(group: Group) -> set[str]:
    return {f"{member.tensor}:{member.dim}" for member in group.members}


def by_id(coupling: Coupling) -> dict[str, Group]:
    return {group.id: group for group in coupling.groups}


def conv(i: int, o: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, 3, padding=1, groups=groups)


def test_plain_chain_with_flatten() -> None:
    model = nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 5)
    )
    coupling = solve(model)
    (group,) = coupling.groups
    assert (group.id, group.size, group.kind) == ("0.weight:0", 8, "channel")
    assert dims(group) == {
        "0.weight:0", "0.bias:0", "1.weight:0", "1.bias:0", "1.running_mean:0", "1.running_var:0",
        "5.weight:1",
    }  # fmt: skip
    last = next(member for member in group.members if member.tensor == "5.weight")
    assert last.index.tolist()[3] == list(range(48, 64))
    assert {(f.kind, f.params) for f in coupling.frozen} == {
        ("input", ("0.weight:1",)),
        ("output", ("5.weight:0", "5.bias:0")),
    }
    assert {group.id for group in solve(model, prune_outputs=True).groups} == {"0.weight:0", "5.weight:0"}


def test_ignore_by_name_keeps_axes_whole() -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 6), nn.ReLU(), conv(6, 4))
    assert set(by_id(solve(model, ignore=["2.*"]))) == set()
    assert set(by_id(solve(model, ignore=["2.bias"]))) == {"0.weight:0"}
    assert set(by_id(solve(model, ignore=["4"]))) == {"0.weight:0"}
    frozen = solve(model, ignore=["2"]).frozen
    assert any(f.kind == "ignored" and "'2'" in f.reason for f in frozen)


def test_residual_stream_is_one_group() -> None:
    model = Fn(
        lambda m, x: m.out(m.stem(x) + m.b(F.relu(m.a(m.stem(x))))),
        stem=conv(3, 8), a=conv(8, 6), b=conv(6, 8), out=conv(8, 2),
    )  # fmt: skip
    groups = by_id(solve(model))
    assert dims(groups["stem.weight:0"]) == {
        "stem.weight:0", "stem.bias:0", "a.weight:1", "b.weight:0", "b.bias:0", "out.weight:1"
    }  # fmt: skip
    assert dims(groups["a.weight:0"]) == {"a.weight:0", "a.bias:0", "b.weight:1"}


def test_dense_block_segments_stay_apart() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        one = m.a(x)
        two = torch.cat([one, m.b(one)], 1)
        return m.d(torch.cat([two, m.c(two)], 1))

    groups = by_id(solve(Fn(forward, a=conv(3, 4), b=conv(4, 5), c=conv(9, 6), d=conv(15, 2))))
    assert set(groups) == {"a.weight:0", "b.weight:0", "c.weight:0"}
    member = next(m for m in groups["b.weight:0"].members if m.tensor == "d.weight")
    assert member.index[:, 0].tolist() == [4, 5, 6, 7, 8]


def test_glu_halves_go_together() -> None:
    model = Fn(lambda m, x: m.b(F.glu(m.a(x), 1)), a=conv(3, 8), b=conv(4, 2))
    chunked = Fn(
        lambda m, x: m.b(torch.mul(*(part.tanh() for part in m.a(x).chunk(2, 1)))), a=conv(3, 8), b=conv(4, 2)
    )
    for each in (model, chunked):
        (group,) = solve(each).groups
        first = next(m for m in group.members if m.tensor == "a.weight")
        assert first.index.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_interleaved_pairs_go_together() -> None:
    model = Fn(lambda m, x: m.b(m.a(x)[:, ::2] * m.a(x)[:, 1::2]), a=conv(3, 8), b=conv(4, 2))
    (group,) = solve(model).groups
    assert group.members[0].index.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_unequal_chunks_stay_apart() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        one, two = m.a(x).split([3, 5], 1)
        return m.b(one) + m.c(two)

    groups = solve(Fn(forward, a=conv(3, 8), b=conv(3, 2), c=conv(5, 2))).groups
    assert [group.size for group in groups] == [3, 5]


def test_grouped_and_depthwise_convolutions() -> None:
    model = Fn(
        lambda m, x: m.c(m.dw(m.b(m.a(x)))),
        a=conv(3, 12),
        b=conv(12, 6, groups=3),
        dw=conv(6, 6, groups=6),
        c=conv(6, 2),
    )
    coupling = solve(model)
    groups = by_id(coupling)
    assert {group.size for group in groups.values()} == {3, 4, 2}
    whole, into, out = groups["a.weight:0#0"], groups["a.weight:0#1"], groups["b.weight:0#1"]
    assert (whole.size, into.size, out.size) == (3, 4, 2)
    assert dims(into) == {"a.weight:0", "a.bias:0", "b.weight:1"}
    assert "dw.weight:0" in dims(whole) & dims(out)
    assert whole.cofactors == (into.id, out.id)
    assert into.cofactors == (whole.id,)


def test_squeeze_excite_follows_its_block() -> None:
    model = Fn(
        lambda m, x: m.c(m.a(x) * m.up(F.relu(m.down(m.a(x).mean((2, 3), keepdim=True)))).sigmoid()),
        a=conv(3, 8), down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1), c=conv(8, 2),
    )  # fmt: skip
    groups = by_id(solve(model))
    assert dims(groups["a.weight:0"]) >= {"down.weight:1", "up.weight:0", "c.weight:1"}
    assert groups["down.weight:0"].size == 4


def shuffle(x: Tensor, g: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, g, c // g, h, w).transpose(1, 2).reshape(n, c, h, w)


def test_channel_shuffle_of_plain_convolutions_is_a_permutation() -> None:
    model = Fn(lambda m, x: m.b(shuffle(m.a(x), 2)), a=conv(3, 8), b=conv(8, 2))
    (group,) = solve(model).groups
    assert (group.size, sorted(group.marks)) == (8, ["index"])
    (last,) = [m for m in group.members if m.tensor == "b.weight"]
    (first,) = [m for m in group.members if m.tensor == "a.weight"]
    assert first.index[:, 0].tolist() != last.index[:, 0].tolist()
    order = torch.arange(8).view(2, 4).t().reshape(-1)
    assert [order[place].item() for place in last.index[:, 0]] == first.index[:, 0].tolist()


def test_channel_shuffle_between_grouped_convolutions_is_a_transposed_product() -> None:
    model = Fn(
        lambda m, x: m.c(m.b(shuffle(m.a(x), 2))),
        a=conv(4, 24, groups=2), b=conv(24, 8, groups=2), c=conv(8, 2),
    )  # fmt: skip
    coupling = solve(model, torch.randn(2, 4, 8, 8))
    assert not [f for f in coupling.frozen if f.kind == "unsolved"]
    kept = {group.leaf: torch.arange(group.size - 1).numpy() for group in coupling.groups if group.size > 2}
    assert kept
    sizes = {name: [len(positions(axis, kept)) for axis in axes] for name, axes in coupling.tensors.items()}
    assert sizes["a.weight"][0] < 24
    assert sizes["a.weight"][0] == 2 * sizes["b.weight"][1]


def test_shufflenet_unit_with_split_and_shuffle_is_free() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        for branch in (m.one, m.two, m.three):
            left, right = x.chunk(2, 1)
            x = shuffle(torch.cat([left, branch(right)], 1), 2)
        return m.head(x)

    coupling = solve(
        Fn(forward, stem=conv(3, 12), one=conv(6, 6), two=conv(6, 6), three=conv(6, 6), head=conv(12, 2))
    )
    assert not [f for f in coupling.frozen if f.kind == "unsolved"]
    # the half of the stem that only the first branch reads, and one set of slots for the whole shuffled
    # stream
    assert sorted(group.size for group in coupling.groups) == [6, 6 + 3 * 6]


def test_flip_and_constant_index_are_index_maps() -> None:
    order = [7, 6, 5, 4, 3, 2, 1, 0]
    for way in (lambda y: y.flip(1), lambda y: y[:, order]):
        model = Fn(lambda m, x, way=way: m.b(way(m.a(x))), a=conv(3, 8), b=conv(8, 2))
        (group,) = solve(model).groups
        last = next(m for m in group.members if m.tensor == "b.weight")
        first = next(m for m in group.members if m.tensor == "a.weight")
        assert [order[place] for place in last.index[:, 0]] == first.index[:, 0].tolist()


def test_zero_padded_shortcut() -> None:
    model = Fn(
        lambda m, x: m.out(m.b(m.a(x)) + F.pad(m.a(x), (0, 0, 0, 0, 2, 2))),
        a=conv(3, 4),
        b=conv(4, 8),
        out=conv(8, 2),
    )
    groups = by_id(solve(model))
    assert {group.size for group in groups.values()} == {4, 2}
    stream = groups["a.weight:0"]
    assert next(m for m in stream.members if m.tensor == "b.weight" and m.dim == 0).index[:, 0].tolist() == [
        2,
        3,
        4,
        5,
    ]
    assert len(groups) == 3


def test_group_norm_keeps_as_many_in_each_group() -> None:
    model = nn.Sequential(conv(3, 12), nn.GroupNorm(3, 12), nn.ReLU(), conv(12, 2))
    groups = by_id(solve(model))
    assert [(group.size, sorted(group.marks)) for group in groups.values()] == [(3, []), (4, ["normalised"])]


@pytest.mark.parametrize("batch_first", [True, False])
def test_multi_head_attention(batch_first: bool) -> None:
    model = Fn(
        lambda m, x: m.out(m.mha(m.embed(x), m.embed(x), m.embed(x), need_weights=False)[0]),
        embed=nn.Linear(12, 12), mha=nn.MultiheadAttention(12, 3, batch_first=batch_first),
        out=nn.Linear(12, 2),
    )  # fmt: skip
    groups = by_id(solve(model, TOKENS))
    kinds = {group.kind: group for group in groups.values()}
    assert kinds["head"].size == 3
    assert kinds["head_dim"].size == 4
    assert dims(kinds["head"]) == {"mha.in_proj_weight:0", "mha.in_proj_bias:0", "mha.out_proj.weight:1"}
    assert "mha.in_proj_weight:1" in dims(groups["embed.weight:0"])


class Grouped(nn.Module):
    def __init__(self, interleave: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (
            nn.Linear(12, 24),
            nn.Linear(12, 8),
            nn.Linear(12, 8),
            nn.Linear(24, 3),
        )
        self.interleave = interleave

    def forward(self, x: Tensor) -> Any:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, 6, 4).transpose(1, 2)
        k, v = (layer(x).view(n, t, 2, 4).transpose(1, 2) for layer in (self.k, self.v))
        if self.interleave:
            k, v = k.repeat_interleave(3, dim=1), v.repeat_interleave(3, dim=1)
        else:
            k, v = (y[:, :, None].expand(n, 2, 3, t, 4).reshape(n, 6, t, 4) for y in (k, v))
        y = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        return self.o(y.transpose(1, 2).reshape(n, t, 24))


@pytest.mark.parametrize("interleave", [True, False])
def test_grouped_query_attention(interleave: bool) -> None:
    coupling = solve(Grouped(interleave), TOKENS)
    assert not [f for f in coupling.frozen if f.kind == "unsolved"]
    shared = next(
        g for g in coupling.groups if {"q.weight:0", "k.weight:0", "v.weight:0"} <= dims(g) and g.size == 2
    )
    key = next(m for m in shared.members if m.tensor == "k.weight")
    query = next(m for m in shared.members if m.tensor == "q.weight")
    assert key.index.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert query.index.tolist() == [list(range(12)), list(range(12, 24))]
    assert {g.size for g in coupling.groups} == {2, 3, 4}


def test_window_partition_and_roll_leave_channels_free() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = torch.roll(m.a(x).permute(0, 2, 3, 1), (-2, -2), (1, 2))
        n, h, w, c = y.shape
        y = y.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        y = m.norm(y)
        y = y.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return m.b(y.permute(0, 3, 1, 2))

    (group,) = solve(Fn(forward, a=conv(3, 8), norm=nn.LayerNorm(8), b=conv(8, 2))).groups
    assert dims(group) == {"a.weight:0", "a.bias:0", "norm.weight:0", "norm.bias:0", "b.weight:1"}
    assert group.marks == {"normalised"}


def test_roll_of_channels_is_two_segments() -> None:
    model = Fn(lambda m, x: m.b(m.a(x).roll(3, 1)), a=conv(3, 8), b=conv(8, 2))
    groups = solve(model).groups
    assert [group.size for group in groups] == [5, 3]
    assert next(m for m in groups[1].members if m.tensor == "b.weight").index[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_recurrent_hidden_width(cell: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = getattr(nn, cell)(12, 5, num_layers=2, bidirectional=True, batch_first=True)
            self.out = nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Any:
            return self.out(self.rnn(x)[0])

    (group,) = solve(Net(), TOKENS).groups
    assert group.size == 5
    assert {"rnn.weight_ih_l0:0", "rnn.weight_hh_l0:1", "rnn.weight_ih_l1_reverse:1", "out.weight:1"} <= dims(
        group
    )
    assert next(m for m in group.members if m.tensor == "out.weight").index.tolist()[1] == [1, 6]


def test_tied_weights_are_one_tensor() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.head = (
                nn.Embedding(20, 8),
                nn.Linear(8, 8),
                nn.Linear(8, 20, bias=False),
            )
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            e = self.embed(tokens)
            result: Tensor = self.head(e + self.mix(e))
            return result

    graph = trace(Tied(), torch.randint(0, 20, (2, 5)))
    assert graph.aliases == {"head.weight": "embed.weight"}
    (group,) = couple(graph).groups
    assert dims(group) == {"embed.weight:1", "mix.weight:0", "mix.weight:1", "mix.bias:0"}


def test_bare_parameters_and_einsum() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.scale, self.v = (nn.Parameter(torch.randn(s)) for s in ((12, 7), (7,), (7, 3)))

        def forward(self, x: Tensor) -> Any:
            return torch.einsum("...i,io->...o", torch.einsum("bti,io->bto", x, self.w) * self.scale, self.v)

    (group,) = solve(Bare(), TOKENS).groups
    assert dims(group) == {"w:1", "scale:0", "v:0"}


def test_unknown_op_freezes_only_what_it_touches_and_says_where() -> None:
    @torch.library.custom_op("penjing_test::opaque", mutates_args=())
    def opaque(x: Tensor) -> Tensor:
        return x.clone()

    @opaque.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    model = Fn(lambda m, x: m.c(opaque(m.b(m.a(x)))), a=conv(3, 8), b=conv(8, 6), c=conv(6, 2))
    coupling = solve(model)
    assert [group.id for group in coupling.groups] == ["a.weight:0"]
    (frozen,) = [f for f in coupling.frozen if f.kind == "unsolved"]
    assert frozen.op == "penjing_test.opaque.default"
    assert "test_coupling.py:" in frozen.source
    assert frozen.source in frozen.reason
    assert set(frozen.params) == {"b.weight:0", "b.bias:0", "c.weight:1"}


def test_unused_parameters_are_reported() -> None:
    coupling = solve(Fn(lambda m, x: m.b(m.a(x)), a=conv(3, 8), b=conv(8, 2), idle=nn.Linear(4, 4)))
    assert [group.id for group in coupling.groups] == ["a.weight:0"]
    assert any(f.kind == "unused" and "idle.weight:0" in f.params for f in coupling.frozen)


@pytest.mark.parametrize(
    "cut",
    [
        lambda table, length: table[:length],
        lambda table, length: (2 * table[None])[:, -length:],
        lambda table, length: table.split([length, len(table) - length])[0],
        lambda table, length: F.pad(table, (0, 0, 0, length - len(table))),
    ],
)
def test_positions_that_longer_inputs_read_stay(cut: Callable[[Tensor, int], Tensor]) -> None:
    model = Fn(
        lambda m, x: m.out(F.relu(m.stem(x) + cut(m.table.weight, x.shape[1]))),
        stem=nn.Linear(12, 8), table=nn.Embedding(16, 8), out=nn.Linear(8, 2),
    )  # fmt: skip
    coupling = solve(model, TOKENS)
    (group,) = coupling.groups
    assert dims(group) == {"stem.weight:0", "stem.bias:0", "table.weight:1", "out.weight:1"}
    (reason,) = (f for f in coupling.frozen if f.kind == "unused")
    assert reason.params == ("table.weight:0",)
    assert "test_coupling.py:" in reason.source


def test_channels_that_nothing_reads_may_go() -> None:
    model = Fn(lambda m, x: m.out(m.stem(x)[:, :5]), stem=conv(3, 8), out=conv(5, 2))
    assert {(group.id, group.size) for group in solve(model).groups} == {
        ("stem.weight:0#0", 5),
        ("stem.weight:0#1", 3),
    }


def test_attention_written_with_einsum_has_heads() -> None:
    def attend(m: Any, x: Tensor) -> Any:
        q, k, v = (layer(x).unflatten(-1, (4, -1)) for layer in (m.q, m.k, m.v))
        weights = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
        return m.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))

    model = Fn(attend, q=nn.Linear(12, 24), k=nn.Linear(12, 24), v=nn.Linear(12, 24), out=nn.Linear(24, 2))
    kinds = {group.id: (group.size, group.kind) for group in solve(model, TOKENS).groups}
    assert kinds == {
        "q.weight:0#0": (4, "head"),
        "q.weight:0#1": (6, "head_dim"),
        "v.weight:0#1": (6, "head_dim"),
    }


@pytest.mark.parametrize("tensordot", [False, True])
def test_heads_laid_out_apart_share_a_width_with_their_size(tensordot: bool) -> None:
    """Kernels with a dimension for each, as Keras has them: a ratio takes from the finer."""

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Parameter(torch.randn(12, 4, 6)) for _ in range(3))
            self.out = nn.Parameter(torch.randn(4, 6, 12))

        def forward(self, x: Tensor) -> Any:
            def project(x: Tensor, kernel: Tensor, dims: int, equation: str) -> Tensor:
                return torch.tensordot(x, kernel, dims) if tensordot else torch.einsum(equation, x, kernel)

            q, k, v = (project(x, kernel, 1, "bti,ihd->bthd") for kernel in (self.q, self.k, self.v))
            weights = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
            return project(torch.einsum("bhij,bjhd->bihd", weights, v), self.out, 2, "bthd,hdo->bto")

    groups = {group.id: group for group in solve(Apart(), TOKENS).groups}
    assert {name: (group.kind, group.cofactors) for name, group in groups.items()} == {
        "q:1": ("head", ("q:2", "v:2")),
        "q:2": ("head_dim", ("q:1",)),
        "v:2": ("head_dim", ("q:1",)),
    }
    assert pj.prune(Apart(), TOKENS, ratio=0.5).after["params"] == 4 * 12 * 4 * 3


def test_values_follow_every_node() -> None:
    graph = trace(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 2)), X)
    coupling = couple(graph)
    kept = {coupling.groups[0].leaf: torch.tensor([1, 4, 6]).numpy()}
    relu = next(node for node in graph.module.graph.nodes if "relu" in node.name)
    assert positions(coupling.values[relu.name][0][1], kept).tolist() == [1, 4, 6]
    assert [len(positions(axis, kept)) for axis in coupling.tensors["2.weight"]] == [2, 3, 3, 3]


def test_cost_does_not_grow_with_width() -> None:
    def equations(width: int) -> list[str]:
        model = nn.Sequential(
            conv(3, width), nn.BatchNorm2d(width), conv(width, width, groups=4), conv(width, 2)
        )
        return [repr(axes).count("<") * "." for axes in solve(model).tensors.values()]

    assert equations(8) == equations(64)
