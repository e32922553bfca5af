"""Writes ``docs/guides/reference.md``: every option and every name it takes, from the docstrings of the code.

python docs/reference.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from penjing.config import Config
from penjing.export.base import formats
from penjing.prune.budget import Budget
from penjing.prune.criteria.base import all_criteria
from penjing.prune.reconstruct import ReconstructConfig
from penjing.quantize.observe import observers
from penjing.recipe.schema import (
    DataConfig,
    ExportConfig,
    MeasureConfig,
    ModelConfig,
    PruneConfig,
    QuantizeStage,
    Recipe,
    SearchConfig,
)
from penjing.recover.augment import Compose, named_augmentations
from penjing.recover.config import RecoverConfig
from penjing.recover.losses.base import loss
from penjing.recover.regularize.base import regularizer
from penjing.search.space import Space

PAGE = Path(__file__).parent / "guides" / "reference.md"

_HEAD = """# Reference

Written by `python docs/reference.py` from the docstrings. A recipe holds its entries as nested YAML, the
command line takes `key=value` (`--recover`, `--prune`, `--set`, `--space`), Python `pj.RecoverConfig(…)` and
the like.
"""
_OPTIONS: Mapping[str, type[Config]] = {
    "Recipe": Recipe,
    "`data`": DataConfig,
    "`model`": ModelConfig,
    "`prune`": PruneConfig,
    "`prune.budget`": Budget,
    "`prune.reconstruct`": ReconstructConfig,
    "`train`, `recover`, `article`, `prune.between`, `prune.sparse`, `quantize.qat`": RecoverConfig,
    "`quantize`": QuantizeStage,
    "`search`": SearchConfig,
    "`export`": ExportConfig,
    "`measure`": MeasureConfig,
    "`--space` of `penjing study`": Space,
}


def page() -> str:
    """The whole page."""
    parts = [_HEAD, "## Options\n"]
    for title, config in _OPTIONS.items():
        parts.append(f"### {title}\n\n{_table(('option', 'default', 'what'), _options(config))}")
    parts.append("## Names\n")
    named: dict[str, Mapping[str, object]] = {
        "Formats (`export.formats`, `--formats`)": formats(),
        "Criteria (`prune.criterion`, `--criterion`)": all_criteria(),
        "Losses (`recover.losses`)": loss.known(),
        "Regularizers (`recover.regularize`)": regularizer.known(),
        "Augmentations (`data.augment`, `--augment`)": named_augmentations(),
        "Observers (`quantize.observer`)": observers(),
    }
    for title, known in named.items():
        rows = [(f"`{name}`", _first_sentence(thing)) for name, thing in sorted(known.items())]
        parts.append(f"### {title}\n\n{_table(('name', 'what'), rows)}")
    return "\n".join(parts)


def _options(config: type[Config]) -> Iterator[tuple[str, ...]]:
    said = _attributes(config)
    for name, field in config.model_fields.items():
        default = "needed" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        yield f"`{name}`", default, said.get(name, "")


def _shown(value: object) -> str:
    """A default as a recipe writes it."""
    if isinstance(value, Config):
        return "its defaults"
    if isinstance(value, tuple):
        return f"`[{', '.join(_written(one) for one in value)}]`"
    return f"`{_written(value)}`"


def _written(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool | None) else str(value)


def _attributes(config: type[Config]) -> dict[str, str]:
    """What the docstrings of a config and its bases say of each attribute."""
    found: dict[str, str] = {}
    for kind in reversed(config.__mro__):
        _, _, text = (kind.__doc__ or "").partition("Attributes:")
        for names, words in re.findall(r"^        ([\w, ]+): (.*(?:\n {9,}.*)*)", text, re.MULTILINE):
            found |= {name.strip(): _flat(words) for name in names.split(",")}
    return found


def _first_sentence(thing: object) -> str:
    if isinstance(thing, Compose):
        return f"{', then '.join(type(part).__name__ for part in thing.parts)}."
    text = _flat((thing.__doc__ or "").strip().split("\n\n")[0])
    return text if text.endswith(".") else f"{text}."


def _flat(text: str) -> str:
    """One line of Markdown: double backticks and roles of the docstrings become single ones."""
    return re.sub(r"\s+", " ", text.replace("``", "`")).replace("|", "\\|").strip()


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]] | list[tuple[str, str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
