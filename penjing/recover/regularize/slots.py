"""The slots of coupled groups as numbers: their norms, and factors spread over their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from penjing.batches import Inputs, between
from penjing.errors import RecoverError


@dataclass(frozen=True)
class SlotGroup:
    """One group: what its slots own.

    Attributes:
        id: The group's name.
        size: Number of slots.
        members: ``(parameter, dim, slot of each position)``; positions of no slot have the number ``size``.
        weights_S: Number of weights of each slot, float64.
        readers: Which members are columns of convolutions and linear layers: with them zero, the network does
            not read the slot any more.
    """

    id: str
    size: int
    members: tuple[tuple[str, int, Tensor], ...]
    weights_S: Tensor
    readers: tuple[int, ...]

    @torch.no_grad()
    def norms(self, params: Mapping[str, Tensor]) -> Tensor:
        """Euclidean norm of all weights of each slot, ``[S]``."""
        total = torch.zeros(self.size + 1, dtype=torch.float64)
        for name, dim, slot_P in self.members:
            weight = params[name].detach()
            square_P = weight.double().square().movedim(dim, 0).reshape(len(slot_P), -1).sum(1)
            total.index_add_(0, slot_P, square_P.cpu())
        return total[: self.size].sqrt()

    def spread(self, factor_S: Tensor, params: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Each member's parameter with the factor of each of its weights (broadcastable).

        Args:
            factor_S: One number for each slot; weights of no slot get 1.
            params: Parameters by name.
        """
        padded = torch.cat([factor_S.double(), torch.ones(1, dtype=torch.float64)])
        pairs = []
        for name, dim, slot_P in self.members:
            weight = params[name]
            shape = [1] * weight.dim()
            shape[dim] = -1
            pairs.append((weight, padded[slot_P].reshape(shape).to(weight)))
        return pairs

    @torch.no_grad()
    def scale_(self, factor_S: Tensor, params: Mapping[str, Tensor], *, readers_only: bool = False) -> None:
        """Multiply weights by the factor of their slot.

        With ``readers_only`` only what reads the slots (everything, where no member is known to).
        """
        for index, (weight, factor) in enumerate(self.spread(factor_S, params)):
            if not readers_only or not self.readers or index in self.readers:
                weight.mul_(factor)

    @torch.no_grad()
    def decay_(self, factor_S: Tensor, params: Mapping[str, Tensor]) -> None:
        """Add the weights times the factor of their slot to the gradients."""
        for (weight, factor), (_, _, slot_P) in zip(self.spread(factor_S, params), self.members, strict=True):
            if weight.grad is not None:
                owned = (slot_P < self.size).to(weight).reshape(factor.shape)
                weight.grad.add_(weight * factor * owned)


def slot_groups(model: nn.Module, inputs: Inputs, ignore: Sequence[str] = ()) -> list[SlotGroup]:
    """The groups of a network's parameters.

    Args:
        model: The network.
        inputs: The inputs of a batch; two samples of it are used to trace.
        ignore: Glob patterns on parameter names; the axes of matching parameters stay out.

    Raises:
        RecoverError: when there is no group.
        TraceError: when the network cannot be traced.
    """
    # the traced-graph machinery loads only when it is used
    from penjing.graph import couple, trace
    from penjing.prune.places import find_places

    example: Any = between(inputs, 0, 2)
    graph = trace(model, example)
    places = find_places(graph)
    params = dict(model.named_parameters())
    found = []
    for group in couple(graph, ignore=ignore).groups:
        members: list[tuple[str, int, Tensor]] = []
        readers: list[int] = []
        weights = torch.zeros(group.size + 1, dtype=torch.float64)
        for member in group.members:
            if member.tensor not in params:
                continue
            size = params[member.tensor].shape[member.dim]
            slot_P = torch.full((size,), group.size, dtype=torch.int64)
            index = torch.as_tensor(member.index)
            slots, columns = (index >= 0).nonzero(as_tuple=True)
            slot_P[index[slots, columns]] = slots
            if member.tensor in places and member.dim == places[member.tensor].dims[1]:
                readers.append(len(members))
            members.append((member.tensor, member.dim, slot_P))
            each = float(params[member.tensor].numel() / size)
            weights.index_add_(0, slot_P, torch.full((size,), each, dtype=torch.float64))
        if members:
            found.append(SlotGroup(group.id, group.size, tuple(members), weights[:-1], tuple(readers)))
    if not found:
        raise RecoverError(
            "the network has no group of slots that could be removed",
            remedy="Run inspect to see what is frozen and why, or ignore fewer layers",
        )
    return found
