"""Gradients of the loss with respect to the original's parameters, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from penjing.batches import IGNORED, ask, check_labels, labels_of, logits_of, take_apart
from penjing.errors import DataError, PruneError
from penjing.events import Event
from penjing.graph.inputs import bind_inputs
from penjing.graph.remembered import own_copies, put_back
from penjing.modes import eval_mode
from penjing.prune.criteria.base import Criterion, Material, as_real


@dataclass(frozen=True)
class GradientCriterion(Criterion):
    """A criterion made of the gradients of a loss.

    Attributes:
        ignore_index: The label of samples and positions that do not count in the default loss (255 in many
            segmentation sets).
    """

    needs_data: ClassVar[bool] = True
    adds_up: ClassVar[bool] = True

    ignore_index: int = IGNORED


def gradients(material: Material, ignored: int = IGNORED) -> Iterator[dict[str, Tensor]]:
    """One dict of gradients for every batch, by first parameter names and in real numbers; parameters the
    loss does not reach are missing.

    Args:
        material: The network and its data.
        ignored: The label of what does not count in the default loss.

    Raises:
        DataError: without a batch.
        PruneError: for a loss that is not finite.
    """
    model, generator = material.model, torch.Generator().manual_seed(material.seed)
    names = [n for n, p in material.graph.params.items() if p.is_floating_point() or p.is_complex()]
    count = 0
    with put_back(model), eval_mode(model):
        for count, batch in enumerate(material.batches, start=1):
            params = {n: material.graph.params[n].detach().requires_grad_() for n in names}
            inputs, target, _ = take_apart(batch, material.graph.input_names)
            args, kwargs = own_copies(bind_inputs(model, inputs))
            with torch.enable_grad():
                output = ask(
                    lambda _: functional_call(model, params, args, kwargs, tie_weights=True),  # noqa: B023
                    inputs,
                    "model",
                )
                value = (
                    material.loss(output, batch)
                    if material.loss is not None
                    else default_loss(output, target, generator, place=f"batch {count - 1}", ignored=ignored)
                )
                if not bool(torch.isfinite(value)):
                    raise PruneError(
                        f"the loss is {float(value.detach())} at batch {count - 1}",
                        remedy="Check the data and the weights for NaN and infinity",
                    )
                grads = torch.autograd.grad(value, list(params.values()), allow_unused=True)
            yield {n: as_real(g) for n, g in zip(names, grads, strict=True) if g is not None}
            material.listen(Event("prune", "progress", step=count, unit="batch", message="gradients"))
    if not count:
        raise DataError("no batches", remedy="Give at least one batch of training data")


def default_loss(
    output: Any, target: Any, generator: torch.Generator, *, place: str, ignored: int = IGNORED
) -> Tensor:
    """Cross-entropy for scores of classes — with labels drawn from the model's own prediction where there are
    none, which makes squared gradients the true Fisher information — and the mean of squares for anything
    else.

    Raises:
        DataError: for labels that are no classes; ``place`` says where they are.
    """
    tensors = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
    if not tensors:
        raise PruneError("the model gives no floating-point output", remedy="Pass loss=…")
    if tensors[0].ndim > 1:
        scores_NK = logits_of(tensors[0], target)
        if target is None and tensors[0].ndim == 2:
            target = torch.multinomial(scores_NK.detach().softmax(1), 1, generator=generator).squeeze(1)
        labels_N = labels_of(target, scores_NK)
        if labels_N is not None:
            check_labels(labels_N, scores_NK.shape[1], place, ignored)
            return F.cross_entropy(scores_NK, labels_N, ignore_index=ignored)
    return torch.stack([t.square().mean() for t in tensors]).sum()
