"""Every failure a user can meet: one class per stage, each naming stage, layer, cause and remedy.

The command line prints exactly ``str(error)`` and exits with code 2; nothing half-written is left behind.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class PenjingError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        stage: Where it happened: of a class its own, of a folder that cannot be written that of the call.
        cause: What is wrong, quoting the user's own value.
        remedy: What to do about it, as an instruction.
        layer: The layer, parameter, op or file concerned, if any.
        completed: Names of the stages that had finished before, oldest first (filled in by the run).
    """

    stage: str = "penjing"

    def __init__(self, cause: str, *, remedy: str, layer: str | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy
        self.layer = layer
        self.completed: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" at {self.layer}" if self.layer else ""
        done = f" (done before: {', '.join(self.completed)})" if self.completed else ""
        return f"{self.stage}{where}: {self.cause}. {self.remedy}{done}"


class TraceError(PenjingError):
    """Raised when a model cannot be traced: wrong inputs, NaN weights, or a forward torch.export refuses."""

    stage = "trace"


class PruneError(PenjingError):
    """Raised when a plan cannot be made or applied: bad ratio, unknown name, plan of another model."""

    stage = "prune"


class BudgetError(PruneError):
    """Raised when a budget is out of reach with everything removed that may go."""


class FactorizeError(PenjingError):
    """Raised when no layer can be split into two, or ranks cannot meet the budget."""

    stage = "factorize"


class RecoverError(PenjingError):
    """Raised by training and recovery: non-finite loss, labels out of range, a teacher of another shape."""

    stage = "recover"


class DataError(PenjingError):
    """Raised when data cannot be read or does not fit: empty, wrong shape, NaN, labels out of range."""

    stage = "data"


class QuantizeError(PenjingError):
    """Raised when quantization cannot proceed: unusable calibration data, non-finite activations."""

    stage = "quantize"


class Int8LossError(QuantizeError):
    """Raised when no file with an int8 layer stays within the allowed loss."""


class ExportError(PenjingError):
    """Raised when a format cannot be written: missing extra, unsupported op, unwritable folder."""

    stage = "export"


class VerifyError(PenjingError):
    """Raised when a written file disagrees with the model it was made from."""

    stage = "verify"


class MeasureError(PenjingError):
    """Raised when something cannot be measured: no samples, a runtime that does not start."""

    stage = "measure"


class ArtifactError(PenjingError):
    """Raised when an artifact folder is missing, damaged, of a newer version, or wants to run code."""

    stage = "load"


class RecipeError(PenjingError):
    """Raised for a recipe or option that is unknown or out of range; suggests the nearest valid name."""

    stage = "recipe"


class RunError(PenjingError):
    """Raised when a run cannot start or go on: locked by another process, recipe changed, unwritable."""

    stage = "run"


class LockedError(RunError):
    """Raised when another process holds the run's folder."""


@contextmanager
def at_stage(name: str) -> Iterator[None]:
    """Tell a folder that cannot be written in here as this stage's: what writes it does not know whose it is.

    The innermost stage counts. Also a decorator.
    """
    try:
        yield
    except RunError as error:
        if error.stage == RunError.stage:
            error.stage = name
        raise


def no_room(error: BaseException) -> bool:
    """Whether a full disk (or quota, or limit of the process) is what went wrong."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
