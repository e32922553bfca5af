"""Slicing the traced graph: its tensors, and the sizes written into its ops."""

from penjing.prune.slicing.graph import slice_graph

__all__ = ["slice_graph"]
