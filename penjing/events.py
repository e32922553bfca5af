"""What stages tell the outside while they work. A stage never prints; it emits events to a listener."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """One thing that happened inside a stage.

    Attributes:
        stage: The stage, e.g. ``"recover"``.
        kind: ``"start"``, ``"progress"``, ``"metric"``, ``"note"``, ``"warning"``, ``"end"``, or ``"error"``:
            what is raised next, for the log (who shows the exception has no need of it).
        step: Steps finished so far, of ``total`` (both 0 when there is nothing to count).
        total: Steps in all.
        unit: What a step is: ``"batch"``, ``"layer"``, ``"file"``…
        metrics: Live values by name; units are in the name (``"loss"``, ``"val_accuracy"``, ``"seconds"``).
        message: A line for people, or "".
    """

    stage: str
    kind: str
    step: int = 0
    total: int = 0
    unit: str = "step"
    metrics: Mapping[str, float] = field(default_factory=dict)
    message: str = ""


Listener = Callable[[Event], None]


def warner(stage: str, listen: Listener) -> Callable[[str], None]:
    """A function that tells a warning of a stage to a listener."""
    return lambda message: listen(Event(stage, "warning", message=message))


def silent(event: Event) -> None:
    """The default listener: hears everything and says nothing."""
