"""How small the result has to be."""

from __future__ import annotations

from pydantic import Field, model_validator

from penjing.config import Config


class Budget(Config):
    """Upper bounds on the pruned model; every one that is given holds.

    A value up to 1.0 is a fraction of the original (``params=0.1``: a tenth of the parameters stay), a
    larger one an
    absolute count (``params=10_000_000``).

    Attributes:
        params: Parameters kept at most.
        macs: Multiply-accumulates of one forward pass of the example inputs, at most.
    """

    params: float | None = Field(default=None, gt=0)
    macs: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _something(self) -> Budget:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)}")
        return self

    def limits(self, original: dict[str, int]) -> dict[str, int]:
        """The bounds as absolute counts, given the original's counts by the same names."""
        out = {}
        for name, count in original.items():
            value = getattr(self, name, None)
            if value is not None:
                out[name] = int(value * count) if value <= 1.0 else int(value)
        return out
