"""YAML as recipes and options are written: plain data, each key once, numbers as in YAML 1.2.

So ``1e-3`` is a number, ``010`` is ten, ``1:30`` and ``2026-11-30`` are text; YAML 1.1 makes text, eight,
ninety and a date of them.
"""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """The safe loader; it takes the last of two equal keys in silence, which YAML forbids, and makes data
    that holds itself of an anchor within what it names.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._open: list[str | None] = []

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent) and event.anchor in self._open:
            raise yaml.MarkedYAMLError(
                problem=f"*{event.anchor} stands within what it names", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def compose_sequence_node(self, anchor: Any) -> yaml.SequenceNode:
        self._open.append(anchor)
        node = super().compose_sequence_node(anchor)
        self._open.pop()
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        self._open.append(anchor)
        node = super().compose_mapping_node(anchor)
        self._open.pop()
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key is no text; put what begins with a brace or bracket in quotes, and fill "
                    "in templates before",
                    problem_mark=key.start_mark,
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands twice", problem_mark=key.start_mark)
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
_WHOLE, _DATE = "tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = {  # without YAML 1.1's octal numbers, its sixties and its dates
    first: [
        (tag, pattern) for tag, pattern in kinds if tag not in (_WHOLE, _DATE) and not pattern.match("1:30.5")
    ]
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
        yaml.YAMLError: for what is not YAML, a key that stands twice or is no text, an anchor within what it
            names, a value that its tag does not fit, or a tag that would run code.
    """
    try:
        return yaml.load(text, _Loader)
    except (ValueError, LookupError, AttributeError) as error:  # of constructors: `!!int x`, 5,000 digits
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error


def to_yaml(data: Any) -> str:
    """Text that `from_yaml` reads back as equal data, keys in their order."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text
