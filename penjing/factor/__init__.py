"""Layers of a low rank: two thin ones in the place of one, with ranks for a budget."""

from penjing.factor.api import FactorizeResult, LowRank, factorize, with_ranks
from penjing.factor.pair import Pair

__all__ = ["FactorizeResult", "LowRank", "Pair", "factorize", "with_ranks"]
