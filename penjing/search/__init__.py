"""Finding what to remove: sensitivity, measured cost, and the choice between them."""

from __future__ import annotations

from penjing.search.knapsack import Choice, cheapest, fill
from penjing.search.latency_model import LatencyModel
from penjing.search.meter import Meter
from penjing.search.sensitivity import Sensitivity, sensitivity

__all__ = ["Choice", "LatencyModel", "Meter", "Sensitivity", "cheapest", "fill", "sensitivity"]
