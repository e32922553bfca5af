"""The regularizers of one run, started on its first batch."""

from __future__ import annotations

from typing import Any

from torch import nn

from penjing.batches import Inputs
from penjing.recover.config import RecoverConfig
from penjing.recover.regularize import make_regularizer


class Sparse:
    """All regularizers of a run, each with its state.

    Args:
        config: Options of the run.
        model: The network in training.
        start: The network as it was given: what a resumed run takes its choices from, too.

    Attributes:
        aims_elsewhere: Whether one of them gives up accuracy for sparsity.
    """

    def __init__(self, config: RecoverConfig, model: nn.Module, start: nn.Module) -> None:
        self._all = [make_regularizer(term.name, term.options) for term in config.regularize]
        self._model, self._start = model, start
        self._states: list[Any] | None = None
        self.aims_elsewhere = any(one.aims_elsewhere for one in self._all)

    def gradient_(self, inputs: Inputs, done: float) -> None:
        """Add to the gradients; the first call looks at the network."""
        params = dict(self._model.named_parameters())
        if self._states is None:
            start = dict(self._start.named_parameters())
            self._states = [one.begin(self._model, inputs, start) for one in self._all]
        for one, state in zip(self._all, self._states, strict=True):
            one.gradient_(params, state, done)

    def step_(self, lr: float) -> None:
        """Change the weights after a step."""
        params = dict(self._model.named_parameters())
        for one, state in zip(self._all, self._states or (), strict=True):
            one.step_(params, state, lr)

    def epoch_(self, *models: nn.Module) -> None:
        """Change the weights of the network, and of its average, at the end of an epoch."""
        for model in models:
            params = dict(model.named_parameters())
            for one, state in zip(self._all, self._states or (), strict=True):
                one.epoch_(params, state)
