"""The processes that train together; most often there is one."""

from __future__ import annotations

import torch
from torch import nn


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

    @torch.no_grad()
    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the first one's buffers: each has its own samples' batch-norm statistics."""
        from accelerate.utils import broadcast

        if self.world > 1:
            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer.contiguous()))
