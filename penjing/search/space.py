"""What a study varies, and the recipe that each of its trials carries out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, Literal, Protocol, Self

from pydantic import Field, model_validator

from penjing.config import Config
from penjing.recipe.schema import Recipe

_RANGES = ("left", "lr")
"""Entries that hold two ends; the others hold choices."""


class Suggests(Protocol):
    """The part of an Optuna trial that a space uses."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of the choices."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number in between."""


class Space(Config):
    """The ranges that trials are drawn from. A single choice stays as it is.

    Attributes:
        by: What the size of a trial bounds.
        left: Smallest and largest share of it that may be left.
        criterion: Importance criteria.
        scope: How groups share the budget.
        branches: How many residual branches go whole before any width; empty keeps the recipe's.
        reconstruct: Whether layers are refitted before training, with the recipe's options if it has any.
        lr: Smallest and largest peak learning rate of the recovery.
        epochs: Epochs of the recovery; empty keeps the recipe's.
        quantize: Whether the result is brought to int8.
    """

    by: Literal["params", "macs", "bytes"] = "macs"
    left: tuple[float, float] = (0.1, 0.8)
    criterion: tuple[str, ...] = Field(default=("magnitude", "taylor"), min_length=1)
    scope: tuple[Literal["local", "global", "isomorphic", "sensitivity"], ...] = Field(
        default=("local", "global", "isomorphic"), min_length=1
    )
    branches: tuple[int, ...] = ()
    reconstruct: tuple[bool, ...] = Field(default=(False, True), min_length=1)
    lr: tuple[float, float] = (0.003, 0.05)
    epochs: tuple[int, ...] = ()
    quantize: tuple[bool, ...] = Field(default=(False, True), min_length=1)

    @model_validator(mode="after")
    def _ends_in_order(self) -> Self:
        for name in _RANGES:
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} goes from {low:g} to {high:g}; give [low, high], both above 0")
        if self.left[1] > 1:
            raise ValueError(f"left goes to {self.left[1]:g}; it is a share, up to 1")
        return self

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """The values of one trial."""
        return {
            name: trial.suggest_float(name, *given, log=True)
            if name in _RANGES
            else trial.suggest_categorical(name, given)
            for name, given in self._varied().items()
        }

    def corners(self) -> Iterator[dict[str, Any]]:
        """The values of every combination of choices, with ranges at their lower ends."""
        choices = {name: given[:1] if name in _RANGES else given for name, given in self._varied().items()}
        return (dict(zip(choices, values, strict=True)) for values in product(*choices.values()))

    def _varied(self) -> dict[str, Any]:
        """Ranges and choices of what a trial sets, in the order in which it asks for them."""
        names = ("left", "criterion", "scope", "reconstruct", "lr", "quantize", "branches", "epochs")
        return {name: given for name in names if (given := getattr(self, name))}

    def recipe(self, base: Recipe, values: dict[str, Any]) -> Recipe:
        """The base recipe with these values in their places."""
        plain = base.to_dict()
        plain["prune"] |= {
            "budget": {self.by: values["left"]},
            "ratio": None,
            "criterion": values["criterion"],
            "scope": values["scope"],
            "branches": values.get("branches", plain["prune"]["branches"]),
            "reconstruct": values["reconstruct"] and (plain["prune"]["reconstruct"] or True),
        }
        plain["recover"]["lr"] = values["lr"]
        if "epochs" in values:
            plain["recover"]["epochs"] = values["epochs"]
        if not values["quantize"]:
            plain["quantize"] = None
        elif plain["quantize"] is None:
            plain["quantize"] = {}
        plain |= {"search": None, "baselines": False, "article": None}
        return Recipe.parse(plain)
