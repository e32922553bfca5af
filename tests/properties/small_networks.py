"""Small networks, each with one structure that pruning has to understand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Case = tuple[Callable[[], nn.Module], tuple[Tensor, ...]]


def image(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(7)),)


class Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(12 * 2 * 2, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))  # type: ignore[no-any-return]


class Residual(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, width, 3, padding=1)
        self.down = nn.Conv2d(width, 16, 1, stride=2)
        self.conv3 = nn.Conv2d(width, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.conv2(F.relu(self.conv1(x))))
        x = F.relu(self.conv3(x) + self.down(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.head = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        return self.head(torch.cat(features, 1).mean((2, 3)))  # type: ignore[no-any-return]


class Glu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(6, 16), nn.LayerNorm(8)
        self.gate, self.down = nn.Linear(8, 20), nn.Linear(10, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.up(x), -1)
        a, b = self.gate(self.norm(x)).chunk(2, dim=-1)
        return self.head(x + self.down(F.silu(a) * b))  # type: ignore[no-any-return]


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.reduce, self.expand = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.conv(x))
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(x * gate).flatten(2).mean(-1)  # type: ignore[no-any-return]


class Shuffle(nn.Module):
    """ShuffleNet's unit: split, depthwise, concatenate, shuffle."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        half = width // 2
        self.stem = nn.Conv2d(3, width, 1)
        self.point1 = nn.Conv2d(half, half, 1)
        self.depth = nn.Conv2d(half, half, 3, padding=1, groups=half)
        self.point2 = nn.Conv2d(half, half, 1)
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        a, b = x.chunk(2, dim=1)
        x = torch.cat([a, F.relu(self.point2(self.depth(F.relu(self.point1(b)))))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x).mean((2, 3))  # type: ignore[no-any-return]


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.grouped = nn.Conv2d(12, 24, 3, padding=1, groups=3)
        self.norm = nn.GroupNorm(4, 24)
        self.depthwise = nn.Conv2d(24, 48, 3, padding=1, groups=24)
        self.up = nn.ConvTranspose2d(48, 8, 2, stride=2)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.grouped(F.relu(self.stem(x)))))
        return self.head(F.relu(self.up(self.depthwise(x)))).mean((2, 3))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Fused qkv, as in most vision transformers."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.scale = self.head_dim**-0.5
        self.norm = nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attention = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return x + self.proj((attention @ v).transpose(1, 2).reshape(b, n, -1))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Class token, position embedding, two blocks with layer scale."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, stride=4)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.pos = nn.Parameter(torch.randn(1, 5, dim))
        self.blocks = nn.ModuleList(Attention(dim) for _ in range(2))
        self.scales = nn.ParameterList(nn.Parameter(torch.rand(dim)) for _ in range(2))
        self.ffn = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 24), nn.GELU(), nn.Linear(24, dim))
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        for block, scale, ffn in zip(self.blocks, self.scales, self.ffn, strict=True):
            x = block(x)
            x = x + scale * ffn(x)
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]


class TorchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(6, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])  # type: ignore[no-any-return]


class GroupedQuery(nn.Module):
    """Grouped-query attention with an RMS norm and a SwiGLU, as Llama has them."""

    def __init__(self, dim: int = 24, heads: int = 6, kv_heads: int = 3) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.inp, self.norm = nn.Linear(5, dim), nn.RMSNorm(dim)
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.o = nn.Linear(dim, dim, bias=False)
        self.gate, self.up = nn.Linear(dim, 32, bias=False), nn.Linear(dim, 32, bias=False)
        self.down, self.head = nn.Linear(32, dim, bias=False), nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        b, n, _ = x.shape
        y = self.norm(x)
        q = self.q(y).view(b, n, self.heads, self.head_dim).transpose(1, 2)
        k = self.k(y).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(y).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2)
        repeats = self.heads // self.kv_heads
        k = k[:, :, None].expand(b, self.kv_heads, repeats, n, self.head_dim).reshape(b, self.heads, n, -1)
        v = v.repeat_interleave(repeats, dim=1)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(z.transpose(1, 2).reshape(b, n, -1))
        return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))  # type: ignore[no-any-return]


class Window(nn.Module):
    """Window partition, cyclic shift and a relative position bias, as in Swin."""

    bias_index: Tensor

    def __init__(self, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.stem = nn.Conv2d(3, dim, 1)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.table = nn.Parameter(torch.randn(9, heads))
        self.register_buffer("bias_index", torch.arange(16).reshape(4, 4) % 9)
        self.head = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(x, (-1, -1), (1, 2)).view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(-1, 4, c)
        q, k, v = self.qkv(y).reshape(-1, 4, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.bias_index.view(-1)].view(4, 4, -1).permute(2, 0, 1)
        y = ((q @ k.transpose(-2, -1) + bias).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, c)
        y = self.proj(y).view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + torch.roll(y, (1, 1), (1, 2))
        return self.head(x.mean((1, 2)))  # type: ignore[no-any-return]


class Permuted(nn.Module):
    """Channels flipped, rolled and indexed: a peer removes the wrong ones here."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.d = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 5, 6, 4]))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))[:, [7, 6, 5, 4, 3, 2, 1, 0]]
        x = F.relu(self.b(x)).flip(1)
        x = F.relu(self.c(x[:, self.order].roll(3, 1)))
        return self.d(x).mean((2, 3))  # type: ignore[no-any-return]


class FlippedResidual(nn.Module):
    """A residual stream added to its own reverse: slots go in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.c(x + self.b(x).flip(1)).mean((2, 3))  # type: ignore[no-any-return]


class OptionA(nn.Module):
    """CIFAR ResNet's parameter-free shortcut: subsampled, with zero channels half before and half after."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv1, self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = F.relu(short + self.conv2(F.relu(self.conv1(x))))
        x = F.relu(x + self.conv3(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class PaddedShortcut(nn.Module):
    """A shortcut padded by a number that the class notes, as in BlazeFace."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 13, 3, padding=1), nn.Linear(13, 5)
        self.channel_pad = 13 - 8

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.conv(x) + F.pad(x, (0, 0, 0, 0, 0, self.channel_pad)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Sizes:
    """What a network and its parts share."""

    width: int = 12
    heads: int = 3
    hidden: int = 16
    classes: int = 16

    @property
    def head_size(self) -> int:
        return self.width // self.heads


class ConfiguredAttention(nn.Module):
    """Attention that reads its sizes from a configuration in the forward, as LitGPT does."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        self.config = config
        self.qkv, self.out = (
            nn.Linear(config.width, 3 * config.width),
            nn.Linear(config.width, config.width),
        )

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.config.heads, self.config.head_size)
        q, k, v = (t.view(shape).transpose(1, 2) for t in self.qkv(x).split(self.config.width, -1))
        x = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
        return self.out(x.transpose(1, 2).reshape(*shape[:2], self.config.width))  # type: ignore[no-any-return]


class Configured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = Sizes()
        width, hidden = self.config.width, self.config.hidden
        self.embed, self.a, self.b = (
            nn.Linear(5, width),
            ConfiguredAttention(self.config),
            ConfiguredAttention(self.config),
        )
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.head = nn.Linear(width, self.config.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.a(x)
        x = x + self.b(x)
        return self.head(x + self.down(F.gelu(self.up(x))))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.lstm = nn.LSTM(8, 12, num_layers=2, batch_first=True, bidirectional=True)
        self.mid, self.head = nn.Linear(24, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(self.embed(x))
        return self.head(F.relu(self.mid(y[:, -1])))  # type: ignore[no-any-return]


class Sequence1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(4, 10, 3, padding=1), nn.Conv1d(10, 8, 3, stride=2)
        self.norm, self.head = nn.InstanceNorm1d(10, affine=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.elu(self.norm(self.a(x))))).amax(-1))  # type: ignore[no-any-return]


class Volume3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(2, 6, 3, padding=1), nn.Conv3d(6, 8, 3, stride=2)
        self.norm, self.head = nn.BatchNorm3d(6), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.max_pool3d(F.relu(self.norm(self.a(x))), 2)))
        return self.head(x.mean((2, 3, 4)))  # type: ignore[no-any-return]


class Einsum(nn.Module):
    """Bare parameters and einsum only."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(6, 4, 5)), nn.Parameter(torch.randn(4, 5, 3))
        self.b1 = nn.Parameter(torch.randn(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(torch.einsum("bni,ihd->bnhd", x, self.w1) + self.b1)
        return torch.einsum("bnhd,hdo->bno", h, self.w2)


class HandNorm(nn.Module):
    """Layer norms written out, once in place: a mean is broadcast to every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.scale = nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        mean = x.mean(-1, keepdim=True)
        spread = (x - mean).pow(2).mean(-1, keepdim=True)
        x = x + F.gelu(self.mid(self.scale * (x - mean) * torch.rsqrt(spread + 1e-5)))
        x -= x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return self.head(x)  # type: ignore[no-any-return]


class WeightNorm(nn.Module):
    """Weights of direction and length, one along each dim and one over all; one by its spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        norm, spectral = nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm
        self.a = norm(nn.Conv1d(4, 16, 3, padding=2))
        self.b = norm(nn.Conv1d(16, 12, 3, groups=4), dim=1)
        self.c = norm(nn.Linear(12, 10), dim=None)  # type: ignore[arg-type]
        self.d, self.head = spectral(nn.Linear(10, 8)), norm(nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x)[..., :-2]))).mean(-1)
        return self.head(F.relu(self.d(F.relu(self.c(x)))))  # type: ignore[no-any-return]


class Cells(nn.Module):
    """Recurrent cells called step by step, first without a state, and a bilinear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.LSTMCell(5, 12), nn.GRUCell(12, 10), nn.RNNCell(10, 8)
        self.start, self.both = nn.Linear(5, 8), nn.Bilinear(8, 10, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        state, h, g = None, None, torch.tanh(self.start(x[:, 0]))
        for step in x.unbind(1):
            state = self.first(step, state)
            h = self.second(state[0], h)
            g = self.third(h, g)
        return self.head(F.relu(self.both(g, h)))  # type: ignore[no-any-return]


class GraphAttention(nn.Module):
    """Neighbours weighed by learned scores (Veličković 2018), with the neighbourhood as an input."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.head = nn.Linear(5, 24, bias=False), nn.Linear(24, 4)
        self.left, self.right = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        v = self.value(x).unflatten(-1, (3, 8))
        scores = (v * self.left).sum(-1).unsqueeze(2) + (v * self.right).sum(-1).unsqueeze(1)
        scores = F.leaky_relu(scores, 0.2).masked_fill((near < 0).unsqueeze(-1), -1e9)
        return self.head(F.elu(torch.einsum("bijh,bjhd->bihd", scores.softmax(2), v).flatten(2)))  # type: ignore[no-any-return]


class Modulated(nn.Module):
    """StyleGAN2's convolution: weights scaled by a style for every sample, the samples as groups."""

    def __init__(self) -> None:
        super().__init__()
        self.style, self.scale = nn.Linear(8, 16), nn.Linear(16, 12)
        self.start, self.weight = (nn.Parameter(torch.randn(*s)) for s in ((1, 12, 4, 4), (10, 12, 3, 3)))
        self.head = nn.Conv2d(10, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        n = z.shape[0]
        weight = self.weight * (1 + self.scale(F.leaky_relu(self.style(z), 0.2))).view(n, 1, -1, 1, 1)
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        x = self.start.repeat(n, 1, 1, 1).view(1, -1, 4, 4)
        x = F.conv2d(x, weight.flatten(0, 1), padding=1, groups=n).view(n, -1, 4, 4)
        return self.head(F.leaky_relu(x, 0.2))  # type: ignore[no-any-return]


class Correlated(nn.Module):
    """A Siamese tracker: one image's features are the other's kernels, channel by channel of every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 3, 1)

    def forward(self, template: Tensor, image: Tensor) -> Tensor:
        kernel, x = self.features(template), self.features(image)
        n, c, h, w = x.shape
        x = F.conv2d(x.view(1, n * c, h, w), kernel.reshape(n * c, 1, 3, 3), padding=1, groups=n * c)
        return self.head(x.view(n, c, h, w))  # type: ignore[no-any-return]


class Sampled(nn.Module):
    """Deformable DETR's attention: every head samples its values at places of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.places = nn.Conv2d(3, 16, 1), nn.Linear(6, 4 * 5 * 2)
        self.weights, self.head = nn.Linear(6, 4 * 5), nn.Linear(16, 3)

    def forward(self, x: Tensor, queries: Tensor) -> Tensor:
        n, q = queries.shape[:2]
        value = self.value(x).unflatten(1, (4, 4)).flatten(0, 1)
        places = self.places(queries).tanh().view(n, q, 4, 5, 2).transpose(1, 2).flatten(0, 1)
        weights = self.weights(queries).view(n, q, 4, 5).softmax(-1).transpose(1, 2).reshape(n * 4, 1, q, 5)
        found = F.grid_sample(value, places, align_corners=False) * weights
        return self.head(found.sum(-1).view(n, 16, q).transpose(1, 2))  # type: ignore[no-any-return]


class Clips(nn.Module):
    """The batch holds clips of four frames, one after the other; channels are shifted along them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        frames, c, h, w = x.shape
        clips = x.view(frames // 4, 4, c, h, w)
        part = c // 4
        shifted = torch.cat([clips[:, :, :part].roll(1, 1), clips[:, :, part:]], 2).view(frames, c, h, w)
        x = x + F.relu(self.norm(self.conv(shifted)))
        return self.head(x.mean((2, 3))).view(-1, 4, 5).mean(1)  # type: ignore[no-any-return]


class Frames(nn.Module):
    """Each sample is a clip; its frames are folded into the batch for the convolutions, and weighed after."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU()
        )
        self.lin, self.weigh, self.head = nn.Linear(12, 8), nn.Linear(8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        y = self.features(x.flatten(0, 1)).mean((2, 3)).view(n, t, -1)
        y = self.lin(y).tanh()
        return self.head((self.weigh(y).softmax(1) * y).sum(1))  # type: ignore[no-any-return]


class Messages(nn.Module):
    """Message passing over edges: summed and maximised at their ends; some nodes are written over."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.message, self.update = nn.Linear(5, 16), nn.Linear(32, 20), nn.Linear(56, 12)
        self.hidden, self.head = nn.Parameter(torch.randn(16)), nn.Linear(12, 3)

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        edges = (near * 2).round().long().clamp(-2, 2) + torch.arange(len(x)).unsqueeze(1)
        to, source = torch.arange(len(x)).repeat_interleave(near.shape[1]), edges.flatten() % len(x)
        h = self.start(x)
        h[x[:, 0] > 0.5] = self.hidden
        h = F.relu(h)
        found = F.relu(self.message(torch.cat([h[source], h[to]], -1)))
        total = torch.zeros(len(x), 20).index_add_(0, to, found)
        largest = torch.zeros(len(x), 20).scatter_reduce(0, to.unsqueeze(1).expand_as(found), found, "amax")
        return self.head(F.relu(self.update(torch.cat([h, total, largest], -1))))  # type: ignore[no-any-return]


class Tied(nn.Module):
    """The output layer shares the embedding's weight; its vocabulary is the output, its width is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.up, self.down, self.norm = nn.Linear(8, 20), nn.Linear(20, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(self.norm(x + self.down(F.gelu(self.up(x)))))  # type: ignore[no-any-return]


class Reused(nn.Module):
    """One layer called twice, and a parameter that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.shared, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.unused = nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inp(x))
        return self.head(self.shared(F.relu(self.shared(x))))  # type: ignore[no-any-return]


class Distances(nn.Module):
    """Embeddings of two images and what lies between them and some prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.embed = nn.Conv2d(3, 8, 3), nn.Linear(8, 12)
        self.prototypes = nn.Parameter(torch.randn(4, 12))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = (self.embed(F.relu(self.conv(image)).mean((2, 3))) for image in (x, y))
        apart = F.pairwise_distance(a, b, eps=1e-2, keepdim=True)
        return torch.hstack(
            [apart, torch.linalg.norm(a, dim=1, keepdim=True), torch.cdist(b, self.prototypes)]
        )


class Contractions(nn.Module):
    """Products that are not written as ``@``, and stacks that are not written as ``cat``."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(5, 12)
        self.weights = nn.ParameterList(torch.randn(*shape) for shape in ((20, 10), (10, 9), (6, 9), (6, 4)))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third, last = self.weights
        h = torch.linalg.multi_dot([torch.hstack([self.a(x), self.b(x).absolute()]), first, second])
        h = torch.special.softmax(torch.inner(h, third), -1)
        return torch.tensordot(h, last, dims=([1], [0]))  # type: ignore[no-any-return]


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(10, 8, mode="mean")
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.relu(self.bag(ids)))  # type: ignore[no-any-return]


class SpectralConv(nn.Module):
    """A layer that acts on frequencies (Li et al. 2021, "Fourier neural operator"): complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.skip, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)
        self.weight = nn.Parameter(torch.randn(8, 8, 4, 3, dtype=torch.cfloat) / 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        modes = torch.fft.rfft2(x)
        kept = torch.einsum("bihw,iohw->bohw", modes[..., :4, :3], self.weight)
        x = F.gelu(self.skip(x) + torch.fft.irfft2(kept, s=x.shape[-2:]))
        return self.head(x)  # type: ignore[no-any-return]


class TwoInputs(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(4, 8), nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        z = torch.tanh(self.a(x)) * torch.sigmoid(self.b(y))
        return {"first": self.c(z), "second": self.d(z)}


class Standardised(nn.Module):
    """Weights standardised in the forward, as in big-transfer ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(4, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        w = self.b.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-4).sqrt()
        x = F.relu(F.conv2d(x, w, self.b.bias, padding=1))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Split(nn.Module):
    """Uneven pieces of one projection, used differently."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(5, 18)
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        p, q, r = self.inp(x).split([6, 8, 4], dim=-1)
        y = F.relu(self.a(p) + self.b(F.relu(q)))
        return self.head(torch.cat([y, r], -1))  # type: ignore[no-any-return]


class MeanOverChannels(nn.Module):
    """A spatial gate from the mean and the maximum over channels, as in CBAM."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.head = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(2, 1, 3, padding=1),
            nn.Linear(8, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.a(x))
        gate = self.gate(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))
        return self.head((x * torch.sigmoid(gate)).mean((2, 3)))  # type: ignore[no-any-return]


def tokens(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(3)),)


NETWORKS: dict[str, Case] = {
    "vgg": (Vgg, image(2, 3, 8, 8)),
    "residual": (Residual, image(2, 3, 8, 8)),
    "dense": (Dense, image(2, 3, 6, 6)),
    "glu": (Glu, image(2, 4, 6)),
    "squeeze_excite": (SqueezeExcite, image(2, 3, 6, 6)),
    "shuffle": (Shuffle, image(2, 3, 6, 6)),
    "grouped": (Grouped, image(2, 3, 6, 6)),
    "transformer": (Transformer, image(2, 3, 8, 8)),
    "torch_attention": (TorchAttention, image(2, 5, 6)),
    "grouped_query": (GroupedQuery, image(2, 4, 5)),
    "window": (Window, image(2, 3, 4, 4)),
    "permuted": (Permuted, image(2, 3, 6, 6)),
    "flipped_residual": (FlippedResidual, image(2, 3, 6, 6)),
    "option_a": (OptionA, image(2, 3, 8, 8)),
    "padded_shortcut": (PaddedShortcut, image(2, 3, 6, 6)),
    "configured": (Configured, image(2, 4, 5)),
    "recurrent": (Recurrent, image(2, 4, 5)),
    "sequence_1d": (Sequence1d, image(2, 4, 12)),
    "volume_3d": (Volume3d, image(2, 2, 8, 8, 8)),
    "einsum": (Einsum, image(2, 4, 6)),
    "hand_norm": (HandNorm, image(4, 6)),
    "weight_norm": (WeightNorm, image(3, 4, 9)),
    "cells": (Cells, image(3, 4, 5)),
    "modulated": (Modulated, image(3, 8)),
    "correlated": (Correlated, image(2, 3, 3, 3) + image(2, 3, 6, 6)),
    "sampled": (Sampled, (*image(2, 3, 6, 6), *image(2, 7, 6))),
    "clips": (Clips, image(8, 3, 6, 6)),
    "frames": (Frames, image(2, 4, 3, 6, 6)),
    "messages": (Messages, (*image(7, 5), *image(7, 3))),
    "graph_attention": (GraphAttention, (*image(2, 7, 5), *image(2, 7, 7))),
    "tied": (Tied, tokens(2, 6)),
    "reused": (Reused, image(2, 5)),
    "distances": (Distances, image(2, 3, 6, 6) + image(2, 3, 6, 6)),
    "contractions": (Contractions, image(3, 5)),
    "bags": (Bags, tokens(2, 6)),
    "spectral": (SpectralConv, image(2, 3, 6, 6)),
    "two_inputs": (TwoInputs, image(2, 4) + image(2, 6)),
    "standardised": (Standardised, image(2, 3, 6, 6)),
    "split": (Split, image(2, 5)),
    "mean_over_channels": (MeanOverChannels, image(2, 3, 6, 6)),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network with random weights and running statistics, and its inputs."""
    factory, inputs = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = factory()
        randomise(model)
    return model, inputs


def randomise(model: nn.Module) -> None:
    """Move norms away from identity, so that a wrong slice shows."""
    with torch.no_grad():
        for module in model.modules():
            statistics: Any = getattr(module, "running_mean", None)
            if isinstance(statistics, Tensor):
                statistics.normal_()
                variances = module.running_var
                assert isinstance(variances, Tensor)
                variances.uniform_(0.5, 2.0)
            if type(module).__name__.endswith(("Norm", "Norm1d", "Norm2d", "Norm3d")):
                for param in module.parameters(recurse=False):
                    param.add_(0.3 * torch.randn_like(param))
