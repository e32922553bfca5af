"""Forwards that go by sizes which values make: ``if boxes.numel() > 4000``, ``min(kept, 300)`` in detectors.

torch.export does not know such sizes. Following the example inputs' values it does, for these inputs: enough
to see how weights hang together, not to serve in the network's place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch._functorch.config

from penjing.errors import TraceError


def by_sizes(refused: TraceError) -> bool:
    """Whether torch.export refused a forward for a decision on a size, or a number, that it does not know."""
    errors: list[BaseException] = [refused]
    while (cause := errors[-1].__cause__ or errors[-1].__context__) is not None and cause not in errors:
        errors.append(cause)
    return any("data-dependent" in str(error) for error in errors[1:])


@contextmanager
def real_values() -> Iterator[None]:
    """Have the tracer carry the example inputs' values along, and decide by them."""
    with torch._functorch.config.patch(
        fake_tensor_propagate_real_tensors=True,
        generate_fake_kernels_from_real_mismatches=True,  # where torch's own rule gives another type
    ):
        yield
