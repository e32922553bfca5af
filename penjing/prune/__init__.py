"""Structural pruning: criteria, allocation, the plan and its application, and the masked reference."""

from penjing.prune.allocate import allocate
from penjing.prune.api import prune
from penjing.prune.apply import apply, apply_
from penjing.prune.budget import Budget
from penjing.prune.cost import Cost
from penjing.prune.criteria import Criterion, Material, all_criteria, make_criterion
from penjing.prune.masked import masked_equivalence, masked_output
from penjing.prune.plan import AttributeEdit, GroupEdit, Plan
from penjing.prune.remove import prune_slots
from penjing.prune.result import PruneResult
from penjing.prune.schedule import schedule
from penjing.prune.sparsity import SparsityResult, sparsify

__all__ = [
    "AttributeEdit",
    "Budget",
    "Cost",
    "Criterion",
    "GroupEdit",
    "Material",
    "Plan",
    "PruneResult",
    "SparsityResult",
    "allocate",
    "apply",
    "apply_",
    "all_criteria",
    "make_criterion",
    "masked_equivalence",
    "masked_output",
    "prune",
    "prune_slots",
    "schedule",
    "sparsify",
]
