"""Networks built by name: one table row for each."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from penjing.errors import RecipeError

# name → "module:function"; the function takes num_classes, in_channels, image_size and its own options.
_ZOO = {
    "glyph_vgg": "penjing.models.vgg:glyph_vgg",
    "vgg_small": "penjing.models.vgg:vgg_small",
    "mlp": "penjing.models.mlp:mlp",
    "resnet20": "penjing.models.resnet_cifar:resnet20",
    "resnet56": "penjing.models.resnet_cifar:resnet56",
}
_SHAPE = ("num_classes", "in_channels", "image_size")


def names() -> tuple[str, ...]:
    """Names that `build` knows."""
    return tuple(_ZOO)


def build(
    name: str, num_classes: int, in_channels: int = 3, image_size: int = 32, seed: int = 0, **options: Any
) -> nn.Module:
    """Build a network with random weights.

    Args:
        name: One of `names`.
        num_classes: Size of the output ``(N, num_classes)``.
        in_channels: Channels of the input ``(N, in_channels, image_size, image_size)``.
        image_size: Height and width of the input.
        seed: Draws the weights; the global random state is left as it was.
        **options: The network's own options, e.g. ``widths``.

    Raises:
        RecipeError: for an unknown name or option (with the nearest valid one) or a size that does not fit.
    """
    if name not in _ZOO:
        raise RecipeError(f"there is no network {name!r}", remedy=_suggest(name, names()))
    for what, value in zip(_SHAPE, (num_classes, in_channels, image_size), strict=True):
        if value < 1:
            raise RecipeError(f"{what} is {value}", layer=name, remedy=f"Give a positive {what}")
    module, function = _ZOO[name].split(":")
    make: Callable[..., nn.Module] = getattr(import_module(module), function)
    known = tuple(key for key in inspect.signature(make).parameters if key not in _SHAPE)
    for option in options:
        if option not in known:
            raise RecipeError(f"{name} has no option {option!r}", layer=name, remedy=_suggest(option, known))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(num_classes=num_classes, in_channels=in_channels, image_size=image_size, **options)


def _suggest(given: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(given, known, n=1)
    listed = f"Known: {', '.join(known)}" if known else "It takes none"
    return f"Did you mean {near[0]!r}? {listed}" if near else listed
