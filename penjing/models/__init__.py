"""Networks by name, and models from files and specs."""

from __future__ import annotations

from penjing.models.zoo import build, names

__all__ = ["build", "names"]
