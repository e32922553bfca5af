"""What decides which slots go. One small class a file; `make_criterion` finds them by name."""

from penjing.prune.criteria.base import (
    Criterion,
    Material,
    MemberCriterion,
    Scores,
    all_criteria,
    criterion,
    make_criterion,
    slot_sums,
)

__all__ = [
    "Criterion",
    "Material",
    "MemberCriterion",
    "Scores",
    "all_criteria",
    "criterion",
    "make_criterion",
    "slot_sums",
]
