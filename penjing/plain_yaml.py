"""YAML as recipes and options are written: plain data, each key once, numbers as in YAML 1.2.

So ``1e-3`` is a number, ``010`` is ten and ``1:30`` is text; YAML 1.1 makes text, eight and ninety of them.
"""

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
_WHOLE = "tag:yaml.org,2002:int"
_Loader.yaml_implicit_resolvers = {  # without YAML 1.1's octal numbers and its sixties
    first: [(tag, pattern) for tag, pattern in kinds if tag != _WHOLE and not pattern.match("1:30.5")]
    for first, kinds in _Loader.yaml_implicit_resolvers.items()
}
for _either in (_Loader, _Dumper):
    _either.add_implicit_resolver(
        _WHOLE,
        re.compile(r"[-+]?(0b[01][01_]*|0o[0-7][0-7_]*|0x[0-9a-fA-F][0-9a-fA-F_]*|\d[\d_]*)$"),
        list("-+0123456789"),
    )
    _either.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(
            r"[-+]?(((\d[\d_]*)?\.\d[\d_]*|\d[\d_]*\.)([eE][-+]?\d+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
        ),
        list("-+.0123456789"),
    )


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text) if text.lstrip("-+").isdigit() else int(text, 0)


_Loader.add_constructor(_WHOLE, _whole)


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
