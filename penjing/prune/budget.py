"""How small, or how fast, the result has to be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from penjing.config import Config
from penjing.errors import BudgetError, PruneError

BOUNDS = ("params", "macs", "bytes", "latency")
"""What can be bounded; the rest of a budget says how latency is measured."""

Runtime = Literal["onnxruntime", "openvino", "litert"]
Precision = Literal["fp32", "int8"]
_LATENCY = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(x|ms|us|µs|s)\s*", re.IGNORECASE)
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


def in_words(name: str, amount: float) -> str:
    """An amount of what a budget bounds, with its unit: ``"2,348"`` (of counts), ``"0.0212 ms"``."""
    return f"{1e3 * amount:.4g} ms" if name == "latency" else f"{round(amount):,}"


def out_of_reach(least: Mapping[str, float], limits: Mapping[str, float]) -> BudgetError:
    """The error for limits under the least that can be left, both in absolute amounts."""
    over = {name: limit for name, limit in limits.items() if least[name] > limit}
    said = ", ".join(f"{name} {in_words(name, least[name])} > {in_words(name, over[name])}" for name in over)
    percent = any(1 < limit <= 100 for name, limit in over.items() if name != "latency")
    more = "Write a share as a fraction (0.5 is half; above 1 it is a count), or allow more"
    return BudgetError(
        f"the budget is out of reach: with everything removed that may go, {said}",
        remedy=f"{more if percent else 'Allow more'}, lower min_slots, or ignore fewer layers (inspect shows "
        "what is frozen)",
    )


class Budget(Config):
    """Upper bounds on the pruned model; every one that is given holds.

    A count up to 1.0 is a fraction of the original (``params=0.1``: a tenth of the parameters stay), a
    larger one is absolute (``params=10_000_000``). Latency is ``"0.5x"`` of the original's, a text with a
    unit (``"2ms"``), or a number of seconds.

    Attributes:
        params: Parameters kept at most.
        macs: Multiply-accumulates of one forward pass of one sample, at most.
        bytes: Bytes of all parameters and buffers, at most (``model.safetensors`` without its header).
        latency: Median seconds of one call of the exported file, at most; a share is one of the original's
            fp32 file.
        precision: ``"fp32"`` or ``"int8"``: the file whose latency is bounded. None is what is delivered:
            int8 in a recipe that quantizes (static ranges, ONNX Runtime), else fp32.
        batch: Samples in a call whose latency is bounded.
        threads: Threads of the runtime.
        runtime: The runtime whose latency is bounded.
    """

    params: float | None = Field(default=None, gt=0)
    macs: float | None = Field(default=None, gt=0)
    bytes: float | None = Field(default=None, gt=0)
    latency: float | str | None = None
    precision: Precision | None = None
    batch: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    runtime: Runtime = "onnxruntime"

    @field_validator("params", "macs", "bytes")
    @classmethod
    def _fraction_or_count(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError(f"{value} is neither a fraction (up to 1) nor a count")
        return value

    @field_validator("latency")
    @classmethod
    def _readable(cls, value: float | str | None) -> float | str | None:
        if value is not None:
            _parse_latency(value)
        return value

    @model_validator(mode="after")
    def _timed_where_it_runs(self) -> Budget:
        if self.precision == "int8" and self.runtime != "onnxruntime":
            raise ValueError(f"int8 files are timed in onnxruntime, not in {self.runtime}")
        return self

    @model_validator(mode="after")
    def _something(self) -> Budget:
        if not self.bounds:
            raise ValueError(f"give at least one of {', '.join(BOUNDS)}")
        return self

    @property
    def bounds(self) -> tuple[str, ...]:
        """Names of the bounds that are given."""
        return tuple(name for name in BOUNDS if getattr(self, name) is not None)

    @property
    def latency_is_share(self) -> bool:
        """Whether latency is bounded, and as a share of the original's."""
        return self.latency is not None and _parse_latency(self.latency)[1]

    def in_words(self, name: str) -> str:
        """A bound as it was given: ``"0.5x"``, ``"0.5 s"``, ``"2,000,000"``."""
        value = getattr(self, name)
        if isinstance(value, str):
            return value
        return f"{value:g} s" if name == "latency" else f"{value:g}" if value <= 1 else f"{value:,.0f}"

    def limits(self, original: Mapping[str, float]) -> dict[str, float]:
        """The bounds as absolute amounts (counts, bytes, seconds), given the original's by the same names."""
        out: dict[str, float] = {}
        for name, amount in original.items():
            value = getattr(self, name, None) if name in BOUNDS else None
            if value is None:
                continue
            if name == "latency":
                number, is_share = _parse_latency(value)
                out[name] = number * amount if is_share else number
            else:
                out[name] = int(value * amount) if value <= 1.0 else int(value)
        return out

    def share(self, original: Mapping[str, float]) -> float:
        """What is left of the original where the tightest bound is met; 1.0 if nothing has to go."""
        limits = self.limits(original)
        return min([1.0, *(limit / original[name] for name, limit in limits.items() if original[name])])

    def eased(self, original: Mapping[str, float], power: float) -> Budget:
        """Bounds between the original (``power`` 0) and these (1), on a logarithmic scale."""
        limits = self.limits(original)
        eased: dict[str, float | str] = {}
        for name, limit in limits.items():
            part = min(1.0, limit / original[name]) ** power if original[name] else 1.0
            eased[name] = f"{part:.6g}x" if name == "latency" else max(2, int(original[name] * part))
        return self.model_copy(update=eased)


def as_budget(given: Budget | Mapping[str, Any] | None) -> Budget | None:
    """A budget that may come as a mapping.

    Raises:
        RecipeError: for an entry that is unknown or wrong.
        PruneError: for anything else, such as a number: of what it is a share is not said.
    """
    if given is None or isinstance(given, Budget):
        return given
    if not isinstance(given, Mapping):
        raise PruneError(f"the budget is {given!r}", remedy="Say of what, as in Budget(params=0.5)")
    return Budget.parse(dict(given))


def _parse_latency(value: float | str) -> tuple[float, bool]:
    """The number, and whether it is a share of the original's latency (else it is seconds)."""
    if isinstance(value, str):
        found = _LATENCY.fullmatch(value)
        try:
            number = float(found.group(1) if found else value)
        except ValueError:
            number = float("nan")
        unit = found.group(2).lower() if found else ""
    else:
        number, unit = float(value), "s"
    if not 0 < number < float("inf"):
        raise ValueError(f"{value!r} is no latency; write '0.5x' (of the original), '2ms', or '0.002s'")
    if not unit:  # a share is what is meant more often than seconds, and half a second allows everything
        units = f"'{value}x' (of the original), '{value}ms' or '{value}s'"
        raise ValueError(f"the latency {value!r} has no unit; write {units}")
    if unit == "x":
        if number > 1:
            raise ValueError(f"{value!r} is slower than the original; give a share up to '1x'")
        return number, True
    return number * _SECONDS[unit], False
