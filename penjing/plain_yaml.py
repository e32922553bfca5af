"""YAML as recipes and options are written: plain data, each key once, and ``1e-3`` is a number."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """The safe loader; it takes the last of two equal keys in silence, which YAML forbids."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands twice", problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """The safe dumper; it quotes text that looks like a number of `_Loader`."""


for _either in (_Loader, _Dumper):
    _either.add_implicit_resolver(  # YAML 1.1 reads 1e-3 as text, for want of a point and a sign
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def from_yaml(text: str) -> Any:
    """Plain data of one document.

    Raises:
        yaml.YAMLError: for what is not YAML, a key that stands twice, or a tag that would run code.
    """
    return yaml.load(text, _Loader)


def to_yaml(data: Any) -> str:
    """Text that `from_yaml` reads back as equal data, keys in their order."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text
