"""The rows that a layer reads, batch by batch: what its second moments are made of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from penjing.prune.moments import EXACT_FEATURES, Moments, thin_out
from penjing.prune.places import Place
from penjing.prune.walk import Walk


def input_rows(
    walk: Walk, place: Place, samples: int, max_rows: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Input rows ``[groups, rows, features]`` of a layer, one tensor for each of its calls and batches.

    Args:
        walk: Has computed what the layer reads.
        place: The layer.
        samples: Samples in all batches together.
        max_rows: Most rows (samples × positions) in all; positions are taken by chance.
        generator: Draws them.
    """
    for call in place.calls:
        for index, x in enumerate(walk.values(call.source)):
            positions = None
            if place.patches.kernel:
                total = place.patches.num_positions(walk.evaluate(call.node, index)[:1])
                wanted = max(max_rows // (samples * len(place.calls)), 1)
                positions = thin_out(total, wanted, generator)
            yield place.patches.inputs(x, positions)


def input_moments(rows: Iterator[Tensor], groups: int, features: int) -> Moments:
    """Second moments of input rows alone."""
    moments = Moments(groups, features, 0, exact=features <= EXACT_FEATURES)
    for x_GRF in rows:
        moments.add(x_GRF, x_GRF[:, :, :0])
    return moments
