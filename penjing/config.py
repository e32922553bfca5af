"""The one base of every config: recipe file, stored record and Python object are the same thing."""

from __future__ import annotations

import difflib
from typing import Any, Self, get_args

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
                        f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(cls.model_fields)}"
                    )
                    raise ValueError(f"unknown key {key!r} in {cls.__name__}{hint}")
        return values

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and _takes(wanted, int, float) and not _takes(wanted, bool):
            raise ValueError(f"{str(value).lower()} is no number (YAML reads yes, no, on and off as truth)")
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
            raise RecipeError(cause, layer=where, remedy="Correct this entry and run again") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON/YAML-able data that `parse` turns back into an equal object."""
        return self.model_dump(mode="json")


def _takes(annotation: Any, *kinds: type) -> bool:
    return annotation in kinds or any(_takes(part, *kinds) for part in get_args(annotation))
