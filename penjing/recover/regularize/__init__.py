"""Sparse training: regularizers that push whole slots of coupled groups to zero before they are removed."""

from penjing.recover.regularize import group_lasso, group_norm, growing, keep_zeros, slimming, soft  # noqa: F401
from penjing.recover.regularize.base import Regularizer, make_regularizer, regularizer, regularizer_names

__all__ = ["Regularizer", "make_regularizer", "regularizer", "regularizer_names"]
