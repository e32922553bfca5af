"""Random networks: image features through a random program of ops, with branches that meet again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from small_networks import randomise
from torch import Tensor, nn
from torch.nn import functional as F

Values = list[Tensor]


class Op(nn.Module):
    """Makes a new value from ``x`` and, for some, an earlier one."""

    def __init__(self, channels: int, other: int, number: int) -> None:
        super().__init__()
        self.channels, self.other, self.number = channels, other, number
        self.out = channels
        self.make()

    def make(self) -> None:
        """Create parameters and set ``out``."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError


class Conv(Op):
    def make(self) -> None:
        self.out = (8, 12, 16)[self.number % 3]
        self.conv = nn.Conv2d(self.channels, self.out, (1, 3)[self.number % 2], padding=self.number % 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class GroupedConv(Op):
    def make(self) -> None:
        groups = (2, 4)[self.number % 2]
        self.conv = nn.Conv2d(self.channels, self.channels, 3, padding=1, groups=groups)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class Depthwise(Op):
    def make(self) -> None:
        times = 1 + self.number % 2
        self.out = self.channels * times if self.channels < 32 else self.channels
        self.conv = nn.Conv2d(self.channels, self.out, 3, padding=1, groups=self.channels, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class Norm(Op):
    def make(self) -> None:
        kinds: tuple[Callable[[], nn.Module], ...] = (
            lambda: nn.BatchNorm2d(self.channels),
            lambda: nn.GroupNorm(4, self.channels),
            lambda: nn.GroupNorm(1, self.channels),
            lambda: nn.InstanceNorm2d(self.channels, affine=True),
        )
        self.norm = kinds[self.number % 4]()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.norm(x)  # type: ignore[no-any-return]


class LayerNorm(Op):
    def make(self) -> None:
        self.norm = nn.LayerNorm(self.channels)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Activation(Op):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (F.relu, F.gelu, F.hardswish, torch.sigmoid, F.elu)[self.number % 5](x)


class Residual(Op):
    def make(self) -> None:
        self.match = nn.Conv2d(self.other, self.channels, 1) if self.other != self.channels else nn.Identity()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.match(y)  # type: ignore[no-any-return]


class Concat(Op):
    def make(self) -> None:
        self.out = self.channels + self.other if self.channels + self.other <= 48 else self.channels

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([y, x], 1) if self.out > self.channels else x * 0.5


class Gate(Op):
    def make(self) -> None:
        self.up = nn.Conv2d(self.channels, 2 * self.channels, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, 1)
        return a * torch.sigmoid(b)  # type: ignore[no-any-return]


class Halves(Op):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([b, a + b] if self.number % 2 else [b, a], 1)


class Reorder(Op):
    order: Tensor

    def make(self) -> None:
        generator = torch.Generator().manual_seed(self.number)
        self.register_buffer("order", torch.randperm(self.channels, generator=generator))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.number % 3 == 0:
            return x.flip(1)
        return x.roll(self.number % 5 + 1, 1) if self.number % 3 == 1 else x[:, self.order]


class ChannelShuffle(Op):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        n, c, h, w = x.shape
        groups = (2, 4)[self.number % 2]
        return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Pad(Op):
    def make(self) -> None:
        self.out = self.channels + 4 if self.channels < 40 else self.channels

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        left = self.number % 5
        return F.pad(x, (0, 0, 0, 0, left, 4 - left)) if self.out > self.channels else F.relu(x)


class Piece(Op):
    def make(self) -> None:
        self.out = self.channels - 4 if self.channels >= 12 else self.channels

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        start = self.number % 5
        return x[:, start : start + self.out] if self.out < self.channels else torch.tanh(x)


class SqueezeExcite(Op):
    def make(self) -> None:
        self.down, self.up = nn.Conv2d(self.channels, 4, 1), nn.Conv2d(4, self.channels, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class SpatialGate(Op):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * torch.sigmoid(x.mean(1, keepdim=True) if self.number % 2 else x.amax(1, keepdim=True))


class SoftmaxGate(Op):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * x.softmax(1)


class Attend(Op):
    def make(self) -> None:
        self.heads = (2, 4)[self.number % 2]
        self.qkv, self.proj = (
            nn.Linear(self.channels, 3 * self.channels),
            nn.Linear(self.channels, self.channels),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        b, c, h, w = x.shape
        t = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(t).reshape(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        t = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        return self.proj(t).transpose(1, 2).reshape(b, c, h, w)  # type: ignore[no-any-return]


class Bare(Op):
    def make(self) -> None:
        self.weight = nn.Parameter(torch.randn(self.channels, 12) / self.channels**0.5)
        self.scale = nn.Parameter(torch.rand(12, 1, 1))
        self.out = 12

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("bchw,co->bohw", x, self.weight) * self.scale


OPS: tuple[type[Op], ...] = (
    Conv, GroupedConv, Depthwise, Norm, LayerNorm, Activation, Residual, Concat, Gate, Halves, Reorder,
    ChannelShuffle, Pad, Piece, SqueezeExcite, SpatialGate, SoftmaxGate, Attend, Bare,
)  # fmt: skip
Step = tuple[type[Op], int, int]  # op, which earlier value it meets, its number


@dataclass(frozen=True)
class Program:
    """What a random network is made from."""

    steps: tuple[Step, ...]
    seed: int

    def __repr__(self) -> str:
        return f"{self.seed}: " + ", ".join(
            f"{op.__name__}({back}, {number})" for op, back, number in self.steps
        )


class RandomNetwork(nn.Module):
    """A convolution, the program, a mean over the image and a linear head."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        torch.manual_seed(program.seed)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        channels = [8]
        ops: list[Op] = []
        self.back: list[int] = []
        for op, back, number in program.steps:
            self.back.append(back % len(channels))
            ops.append(op(channels[-1], channels[self.back[-1]], number))
            channels.append(ops[-1].out)
        self.ops, self.head = nn.ModuleList(ops), nn.Linear(channels[-1], 5)
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        values = [F.relu(self.stem(x))]
        for op, back in zip(self.ops, self.back, strict=True):
            values.append(op(values[-1], values[back]))
        return self.head(values[-1].mean((2, 3)))  # type: ignore[no-any-return]


programs = st.builds(
    Program,
    st.lists(
        st.tuples(st.sampled_from(OPS), st.integers(0, 9), st.integers(0, 99)), min_size=1, max_size=8
    ).map(tuple),
    st.integers(0, 999),
)
