"""The one base of every config: recipe file, stored record and Python object are the same thing."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator

from penjing.errors import RecipeError


class Config(BaseModel):
    """A frozen, validated set of options for one method. Unknown keys are errors with a suggestion."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                    hint = (
                        f" (did you mean {near[0]!r}?)" if near else f"; known: {', '.join(cls.model_fields)}"
                    )
                    raise ValueError(f"unknown key {key!r} in {cls.__name__}{hint}")
        return values

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        refuse_truth(cls.model_fields[info.field_name or ""].annotation, value)
        return value

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Validate plain data (a YAML mapping).

        Raises:
            RecipeError: naming the key, what is wrong with it and what is allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or cls.__name__
            cause = first["msg"].removeprefix("Value error, ")
            if first["type"] == "tuple_type":
                cause = f"Input should be a list, such as [{first['input']}]"
            elif first["type"] == "string_type":
                cause = f"{_in_yaml(first['input'])} is no text; put it in quotes where it is meant as such"
            elif first["type"] in ("float_parsing", "int_parsing"):
                kind = "number" if first["type"] == "float_parsing" else "whole number"
                cause = f"{_in_yaml(first['input'])} is no {kind}{_as_share(first['input'])}"
            elif first["type"] in ("model_type", "dict_type"):
                cause = (
                    f"{_in_yaml(first['input'])} is no mapping of options ({{}} takes all defaults; null, "
                )
                cause += "where it may be left out, leaves it out)"
            elif isinstance(first["input"], int | float):
                cause = f"{cause}, and is {_in_yaml(first['input'])}"
            raise RecipeError(cause, layer=where, remedy="Correct this entry and run again") from error

    @classmethod
    def of(cls, given: Self | Mapping[str, Any] | None) -> Self:
        """The config itself, the one that plain data describes, or the defaults for None.

        Raises:
            RecipeError: as `parse`; for anything else, too.
        """
        if isinstance(given, cls):
            return given
        if given is not None and not isinstance(given, Mapping):
            raise RecipeError(
                f"it is {given!r}",
                layer=cls.__name__,
                remedy=f"Give a {cls.__name__}, or a dict of its options",
            )
        return cls.parse(dict(given or {}))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON/YAML-able data that `parse` turns back into an equal object."""
        return self.model_dump(mode="json")


def _in_yaml(value: Any) -> str:
    """A value as a recipe says it, so far as that is one word."""
    if isinstance(value, bool):
        return f"{str(value).lower()} (YAML reads yes, no, on and off as truth)"
    return repr(value) if isinstance(value, str) else str(value)


def _as_share(value: Any) -> str:
    """What a percentage is called here; "" for other text."""
    try:
        percent = float(str(value).strip().removesuffix("%")) if str(value).strip().endswith("%") else None
    except ValueError:
        return ""
    return "" if percent is None else f"; as a share it is {percent / 100:g}"


def refuse_truth(wanted: Any, value: Any) -> None:
    """Raise a ValueError for a boolean where the annotation asks for a number."""
    wrong = truth_for_number(wanted, value)
    if wrong is not None:
        raise ValueError(f"{wrong} is no number (YAML reads yes, no, on and off as truth)")


def truth_for_number(wanted: Any, value: Any) -> str | None:
    """The first boolean in a value, with its keys, where the annotation asks for a number, or None."""
    path, found = next(_truths(wanted, value), ((), None))
    return None if found is None else ": ".join((*path, str(found).lower()))


def _truths(wanted: Any, value: Any, *path: str) -> Iterator[tuple[tuple[str, ...], bool]]:
    parts, origin = get_args(wanted), get_origin(wanted)
    if isinstance(value, bool):
        if _takes(wanted, int, float) and not _takes(wanted, bool):
            yield path, value
    elif not isinstance(origin, type) or not issubclass(origin, (Mapping, Sequence)):
        for part in parts:  # of a union, or what is annotated
            yield from _truths(part, value, *path)
    elif isinstance(value, Mapping) and issubclass(origin, Mapping):
        for key, entry in value.items():
            yield from _truths(parts[-1], entry, *path, str(key))
    elif isinstance(value, (list, tuple)) and issubclass(origin, Sequence):
        kinds = [part for part in parts if part is not ...]
        for index, entry in enumerate(value):
            yield from _truths(kinds[min(index, len(kinds) - 1)], entry, *path, str(index))


def _takes(annotation: Any, *kinds: type) -> bool:
    return annotation in kinds or any(_takes(part, *kinds) for part in get_args(annotation))
