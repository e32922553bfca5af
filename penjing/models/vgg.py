"""VGG-style networks (Simonyan & Zisserman 2015, arXiv:1409.1556) with batch norm and wide linear layers.

Where most parameters are in the linear layers, as here, a parameter costs little compute, and a network of
100 million trains on a CPU in minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from penjing.errors import RecipeError


class VGG(nn.Module):
    """Convolution stages, each halving the image, then linear layers.

    Args:
        num_classes: Size of the output ``(N, num_classes)``.
        in_channels: Channels of the input.
        image_size: Height and width of the input; at least ``2 ** len(widths)``.
        widths: Channels of each stage.
        convs: Convolutions in each stage, as many numbers as ``widths``.
        hidden: Features of each hidden linear layer.
        dropout: Probability, after each hidden linear layer.
        norm_hidden: Put batch norm after the hidden linear layers too; they then train faster.
    """

    def __init__(
        self,
        num_classes: int = 100,
        in_channels: int = 1,
        image_size: int = 32,
        *,
        widths: Sequence[int],
        convs: Sequence[int],
        hidden: Sequence[int],
        dropout: float,
        norm_hidden: bool,
    ) -> None:
        super().__init__()
        if len(convs) != len(widths):
            raise RecipeError(
                f"{len(convs)} numbers of convolutions for {len(widths)} stages",
                layer="convs",
                remedy="Give one number for each stage",
            )
        side = image_size >> len(widths)
        if side < 1:
            raise RecipeError(
                f"{len(widths)} stages halve an image of {image_size} pixels to nothing",
                layer="widths",
                remedy=f"Give at most {image_size.bit_length() - 1} stages",
            )
        features: list[nn.Module] = []
        channels = in_channels
        for width, repeats in zip(widths, convs, strict=True):
            for _ in range(repeats):
                features += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
            features.append(nn.MaxPool2d(2))
        classifier: list[nn.Module] = [nn.Flatten()]
        size = channels * side * side
        for width in hidden:
            classifier.append(nn.Linear(size, width, bias=not norm_hidden))
            if norm_hidden:
                classifier.append(nn.BatchNorm1d(width))
            classifier += [nn.ReLU(inplace=True), nn.Dropout(dropout)]
            size = width
        classifier.append(nn.Linear(size, num_classes))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(*classifier)
        _initialise(self, last=classifier[-1])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits ``(N, num_classes)``."""
        logits: Tensor = self.classifier(self.features(x_NCHW))
        return logits


def _initialise(model: nn.Module, last: nn.Module) -> None:
    # He et al. 2015 (arXiv:1502.01852) keeps the variance through ReLU; the last layer starts near zero.
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if module is last:
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


glyph_vgg = partial(
    VGG, widths=(32, 64, 128), convs=(1, 1, 2), hidden=(9216, 8800), dropout=0.5, norm_hidden=False
)
"""The demo's network: 101 million parameters for 32×32 grey images, 99% of them in the linear layers."""

vgg_small = partial(glyph_vgg, widths=(16, 32, 64), convs=(1, 1, 1), hidden=(128, 128), dropout=0.2)
"""The same family, small enough for tests: 0.2 million parameters."""
