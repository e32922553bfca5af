"""The independent reference of what a correct pruning is.

The original graph is interpreted with the removed slots' parameters set to zero, and with statistics across
a pruned axis restricted to the kept slots. Nothing here slices a model or imports the code that does.
"""

from penjing.prune.masked.reference import masked_equivalence, masked_output

__all__ = ["masked_equivalence", "masked_output"]
