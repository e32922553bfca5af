"""The processes that train together; most often there is one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, distributed, nn

from penjing.errors import RecoverError


class Processes:
    """Accelerate's view of them, and what all have to agree on.

    Attributes:
        device: Where this process computes.
        rank: Which one this is, from 0.
        world: How many there are.
    """

    def __init__(self) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs  # slow, and only training needs it

        # heads that no loss reaches, layers that a batch does not take: no look beforehand can rule them out
        partly = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[partly])
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that exchanges with the others.

        Raises:
            RecoverError: where one of them has ended; what it ended of is its own message.
        """
        try:
            yield
        except Exception as error:
            lost = next((one for one in (error, error.__cause__) if _is_lost_connection(one)), None)
            if self.world == 1 or lost is None:
                raise
            raise RecoverError(
                f"another of the {self.world} processes has ended ({str(lost).splitlines()[0]})",
                layer=f"process {self.rank}",
                remedy="Its own message says why; mend that and start all of them again",
            ) from error

    def of_the_first(self, measured: float) -> float:
        """What the first process measured, so that all decide alike."""
        if self.world == 1:
            return measured
        return self.sums(measured if self.rank == 0 else 0.0)[0]

    def mean(self, own: float) -> float:
        """The mean over all processes."""
        return own if self.world == 1 else self.sums(own)[0] / self.world

    def sums(self, *own: float) -> list[float]:
        """Sums over all processes, in float64."""
        mine = torch.tensor(own, dtype=torch.float64, device=self.device)
        return [float(total) for total in self.accelerator.reduce(mine, "sum")]

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the first one's buffers: each has its own samples' batch-norm statistics."""
        self._share(model.buffers())

    def share_tensors(self, model: nn.Module) -> None:
        """Give all processes the first one's parameters and buffers."""
        self._share(chain(model.parameters(), model.buffers()))

    @torch.no_grad()
    def _share(self, tensors: Iterable[Tensor]) -> None:
        from accelerate.utils import broadcast

        if self.world > 1:
            for tensor in tensors:
                tensor.copy_(broadcast(tensor.contiguous()))


def _is_lost_connection(error: BaseException | None) -> bool:
    """Whether this comes of an exchange; that of gloo has no class of its own."""
    exchange = isinstance(error, RuntimeError) and "gloo" in str(error)
    return exchange or isinstance(error, distributed.DistError)
