"""Train and eval mode, and what lies between, put back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode for a while; afterwards every module has its own flag again."""
    with _own_flags(model):
        model.eval()
        yield


@contextmanager
def train_mode(model: nn.Module) -> Iterator[None]:
    """The model in training mode for a while; afterwards every module has its own flag again."""
    with _own_flags(model):
        model.train()
        yield


@contextmanager
def training_form(model: nn.Module) -> Iterator[None]:
    """A forward that goes the way of training mode for a while, for networks that return something else
    there: detectors give raw maps in training and decode them in use.

    Layers of torch and those made from them stay in eval mode: batch norms use their statistics, and nothing
    is dropped.
    """
    with _own_flags(model):
        for module in model.modules():
            of_torch = type(module).__module__.startswith("torch.nn.")
            module.training = not (of_torch or isinstance(module, (_NormBase, _DropoutNd)))
        yield


@contextmanager
def _own_flags(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
