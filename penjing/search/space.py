"""What a study varies, and the recipe that each of its trials carries out."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import Field

from penjing.config import Config
from penjing.recipe.schema import Recipe


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
        branches: How many residual branches go whole before any width.
        reconstruct: Whether layers are refitted before training.
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
    branches: tuple[int, ...] = Field(default=(0,), min_length=1)
    reconstruct: tuple[bool, ...] = Field(default=(False, True), min_length=1)
    lr: tuple[float, float] = (0.003, 0.05)
    epochs: tuple[int, ...] = ()
    quantize: tuple[bool, ...] = Field(default=(False, True), min_length=1)

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """The values of one trial."""
        values: dict[str, Any] = {
            "left": _between(trial, "left", self.left),
            "criterion": trial.suggest_categorical("criterion", self.criterion),
            "scope": trial.suggest_categorical("scope", self.scope),
            "branches": trial.suggest_categorical("branches", self.branches),
            "reconstruct": trial.suggest_categorical("reconstruct", self.reconstruct),
            "lr": _between(trial, "lr", self.lr),
            "quantize": trial.suggest_categorical("quantize", self.quantize),
        }
        if self.epochs:
            values["epochs"] = trial.suggest_categorical("epochs", self.epochs)
        return values

    def recipe(self, base: Recipe, values: dict[str, Any]) -> Recipe:
        """The base recipe with these values in their places."""
        plain = base.to_dict()
        plain["prune"] |= {
            "budget": {self.by: values["left"]},
            "ratio": None,
            "criterion": values["criterion"],
            "scope": values["scope"],
            "branches": values["branches"],
            "reconstruct": values["reconstruct"],
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


def _between(trial: Suggests, name: str, ends: tuple[float, float]) -> float:
    return trial.suggest_float(name, *ends, log=True)
