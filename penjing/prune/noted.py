"""Sizes that a module notes and its forward does not read: other methods do, as those that fuse a block's
branches into one layer before it ships (RepVGG, MobileOne, FastViT).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn

from penjing.prune.apply import of_one_kind, set_attributes
from penjing.prune.layers import standard
from penjing.prune.plan import AttributeEdit
from penjing.prune.trials import Trials

# what layers call a size, and what a module that holds them calls it
_SIDES = (
    (("in_channels", "in_features"), re.compile(r"in(put)?_?(ch|feat|dim|plane)|inp$")),
    (("out_channels", "out_features"), re.compile(r"out(put)?_?(ch|feat|dim|plane)|oup$")),
    (("groups",), re.compile(r"(num_?)?groups$")),
)


def noted(trials: Trials, edits: tuple[AttributeEdit, ...]) -> tuple[AttributeEdit, ...]:
    """The edits, and those of the numbers by which a module notes the sizes of the layers in it.

    A number says by its name which size it is; all layers inside that had this size there agree on the new
    one. A number that the forward reads is left alone: it works as it is.

    Args:
        trials: Of a pruned model that works with these edits; it is left with those that are given back.
        edits: What was edited.
    """
    known = {(edit.module, edit.name): edit for edit in edits}
    more = tuple(_of_layers(trials.model, known))
    unread = {edit for kind in trials.unread(of_one_kind(trials.model, more)) for edit in kind}
    found = tuple(edit for edit in more if edit in unread)
    set_attributes(trials.model, found)
    known.update(((edit.module, edit.name), edit) for edit in found)
    return tuple(known.values())


def _of_layers(model: nn.Module, edits: Mapping[tuple[str, str], AttributeEdit]) -> Iterator[AttributeEdit]:
    """Edits of numbers that are called and sized like those of all layers inside their module."""
    layers = [
        (f".{path}.", name, edit.old if edit else value, edit.new if edit else value)
        for path, module in model.named_modules()
        for names, _ in _SIDES
        for name, value in vars(module).items()
        if name in names and standard(module, name, value, {}) is not None
        for edit in (edits.get((path, name)),)
    ]
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            names = next((names for names, called in _SIDES if called.match(name)), ())
            if not names or type(value) is not int or standard(module, name, value, {}) is not None:
                continue
            edit = edits.get((path, name), AttributeEdit(path, name, value, value))
            within = f".{path}." if path else "."
            sizes = {
                new
                for at, kind, old, new in layers
                if kind in names and old == edit.old and at.startswith(within)
            }
            if len(sizes) == 1 and sizes != {edit.new}:
                yield replace(edit, new=sizes.pop())
