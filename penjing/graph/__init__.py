"""The graph front end: trace a network, solve its axes, list what can be pruned."""

from penjing.graph.axes import Axis, Leaf, Product, Reason, Sum, View, count, is_kept_whole, leaves, positions
from penjing.graph.groups import Coupling, Frozen, Group, Member, couple
from penjing.graph.model import GraphModel
from penjing.graph.trace import Graph, trace

__all__ = [
    "Axis",
    "Coupling",
    "Frozen",
    "Graph",
    "GraphModel",
    "Group",
    "Leaf",
    "Member",
    "Product",
    "Reason",
    "Sum",
    "View",
    "count",
    "couple",
    "is_kept_whole",
    "leaves",
    "positions",
    "trace",
]
