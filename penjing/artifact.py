"""The artifact: a folder that any process can load without the code that defined the network.

========================  ==============================================================================
``model.safetensors``     the state, under the names of the original ``state_dict``
``program.json``          the traced network; ``constants.safetensors`` beside it if needed
``plan.json``             what was removed from the original, if anything
``recipe.yaml``           how it was made
``metrics.json``          what was measured
``manifest.json``         format version, versions used, the stages it went through, how images are
                          normalised, SHA-256 of every file
``model.keras``           a Keras network as Keras reads it
anything else             exported files and folders (``model.onnx``, ``saved_model/``, ``report.html`` …)
========================  ==============================================================================

It is written aside and renamed into place, holds no optimizer state and no pickle, and a file that differs
from what the manifest says is never used.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from torch import fx, nn

from penjing.errors import ArtifactError
from penjing.export.program import PROGRAM_FILE, load_program, read_program, save_program, told_damaged
from penjing.export.program_tensors import CONSTANTS_FILE, STATE_FILE
from penjing.files import atomic_dir, write_json
from penjing.graph import Graph, GraphModel, trace
from penjing.manifest import (
    MANIFEST_FILE,
    check_file,
    check_replaceable,
    is_inside,
    json_if_any,
    read_manifest,
    refuse_pickle,
    write_manifest,
    yaml_if_any,
)
from penjing.plain_yaml import to_yaml

PLAN_FILE = "plan.json"
RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.json"
KERAS_FILE = "model.keras"


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact: its path inside the folder (with ``/``), its size and its SHA-256 in hex."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """What an artifact says about itself, read and checked without building the network.

    Attributes:
        folder: Where it is.
        format_version: Version of the folder format.
        versions: Versions of the packages that wrote it.
        created: Time of writing, ISO 8601, UTC.
        stages: What it went through, oldest first, each with a ``"stage"`` and whatever that stage recorded.
        files: Every file with size and checksum.
        num_params: Parameters of the network, shared ones counted once.
        inputs: Name, dtype and shape (``"batch"`` for the free dimension) of each tensor input.
        mean, std: Of each channel: the network takes ``(image - mean) / std`` of images in [0, 1]. Empty
            where that is not known, or inputs are no images.
        plan, recipe, metrics: Contents of these files, or None.
    """

    folder: Path
    format_version: int
    versions: Mapping[str, str]
    created: str
    stages: tuple[Mapping[str, Any], ...]
    files: tuple[FileEntry, ...]
    num_params: int
    inputs: tuple[Mapping[str, Any], ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    plan: Mapping[str, Any] | None = field(default=None, repr=False)
    recipe: Mapping[str, Any] | None = field(default=None, repr=False)
    metrics: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def num_bytes(self) -> int:
        """Size of all files on disk."""
        return sum(file.num_bytes for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "folder": str(self.folder),
            "format_version": self.format_version,
            "versions": dict(self.versions),
            "created": self.created,
            "stages": [dict(stage) for stage in self.stages],
            "files": {file.path: {"bytes": file.num_bytes, "sha256": file.sha256} for file in self.files},
            "num_bytes": self.num_bytes,
            "num_params": self.num_params,
            "inputs": [dict(entry) for entry in self.inputs],
            "mean": list(self.mean),
            "std": list(self.std),
            "plan": self.plan,
            "recipe": self.recipe,
            "metrics": self.metrics,
        }


def save_artifact(
    folder: Path | str,
    model: nn.Module | Graph,
    *,
    example_inputs: Any = None,
    plan: Any = None,
    recipe: Any = None,
    metrics: Mapping[str, Any] | None = None,
    files: Mapping[str, Path | str] | Iterable[Path | str] = (),
    stages: Sequence[str | Mapping[str, Any]] = (),
    normalize: Mapping[str, Sequence[float]] | None = None,
) -> Artifact:
    """Write ``model`` and all that belongs to it as one folder, replacing an older one as a whole.

    A Keras network is in it as a native ``model.keras``, too.

    Args:
        folder: The folder to make.
        model: The network; traced unless it is a graph already.
        example_inputs: Tensor, tuple or dict the network takes; needed unless ``model`` is a graph already.
        plan: The pruning plan (its ``to_dict()`` or plain data).
        recipe: The recipe (a config or plain data).
        metrics: Measurements, plain data.
        files: Files or folders to copy beside, by their name inside the artifact, or under their own names.
        stages: What the network went through, oldest first: names, or mappings with a ``"stage"``.
        normalize: ``mean`` and ``std`` of each channel, where images in [0, 1] are normalised by them.

    Returns:
        The artifact as `read_artifact` gives it.

    Raises:
        TraceError: when the network cannot be traced.
        ExportError: when its graph holds what a program cannot store.
        ArtifactError: when a given file is missing, pickled, or has a reserved name.
        RunError: when the folder cannot be written, or holds other files than an artifact's.
    """
    from penjing.models.keras_door import KerasModule, save_keras  # which reads artifacts, too

    folder = Path(folder)
    check_replaceable(folder)
    program = _program(model, example_inputs)
    beside = _named_files(files)
    with atomic_dir(folder) as aside:
        save_program(program, aside)
        for name, source in beside.items():
            _copy(source, aside / name)
        if isinstance(model, KerasModule):
            save_keras(model, aside / KERAS_FILE)
        if plan is not None:
            write_json(aside / PLAN_FILE, _plain(plan))
        if recipe is not None:
            (aside / RECIPE_FILE).write_text(to_yaml(_plain(recipe)), encoding="utf-8")
        if metrics is not None:
            write_json(aside / METRICS_FILE, _plain(metrics))
        refuse_pickle(aside, trust=False)
        write_manifest(aside, _history(stages), normalize)
    return read_artifact(folder)


def seal(folder: Path | str, stages: Sequence[str | Mapping[str, Any]] | None = None) -> Artifact:
    """Bring the manifest of an artifact up to date after files were added to it or replaced on purpose.

    Args:
        folder: The artifact.
        stages: New history, or None to keep the old one.
    """
    folder = Path(folder)
    old = read_manifest(folder)
    kept = old["stages"] if stages is None else _history(stages)
    refuse_pickle(folder, trust=False)
    write_manifest(folder, kept, old.get("normalize"))
    return read_artifact(folder)


def load(folder: Path | str, *, trust: bool = False) -> GraphModel:
    """The network of an artifact, as a trainable module in eval mode, without its original code.

    Args:
        folder: The artifact.
        trust: Accept a folder that also holds pickled files (they are not read).

    Raises:
        ArtifactError: when it is missing, damaged, of a newer version, or holds pickled files.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    refuse_pickle(folder, trust=trust)
    for name in (PROGRAM_FILE, STATE_FILE, CONSTANTS_FILE):
        if name in manifest["files"] or name != CONSTANTS_FILE:
            check_file(folder, name, manifest["files"].get(name))
    return load_program(folder)


def read_artifact(folder: Path | str, *, trust: bool = False) -> Artifact:
    """Read and check what an artifact says about itself; every file is compared with its checksum.

    Raises:
        ArtifactError: as `load`.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    refuse_pickle(folder, trust=trust)
    for name, entry in manifest["files"].items():
        check_file(folder, name, entry)
    with told_damaged(folder):
        num_params, inputs = _in_short(read_program(folder))
    normal = manifest.get("normalize") or {"mean": (), "std": ()}
    return Artifact(
        folder=folder,
        format_version=manifest["version"],
        versions=manifest["versions"],
        created=manifest["created"],
        stages=tuple(manifest["stages"]),
        files=tuple(
            FileEntry(name, entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()
        ),
        num_params=num_params,
        inputs=inputs,
        mean=tuple(normal["mean"]),
        std=tuple(normal["std"]),
        plan=json_if_any(folder / PLAN_FILE),
        recipe=yaml_if_any(folder / RECIPE_FILE),
        metrics=json_if_any(folder / METRICS_FILE),
    )


def _history(stages: Sequence[str | Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"stage": stage} if isinstance(stage, str) else dict(stage) for stage in stages]


def _program(model: nn.Module | Graph, example_inputs: Any) -> Graph | GraphModel | fx.GraphModule:
    if isinstance(model, (Graph, GraphModel, fx.GraphModule)):
        return model
    if example_inputs is None:
        raise ArtifactError(
            f"{type(model).__name__} must be traced to be stored, and no example_inputs were given",
            remedy="Pass example_inputs: one tensor, tuple or dict that the network takes",
        )
    return trace(model, example_inputs)


def _named_files(files: Mapping[str, Path | str] | Iterable[Path | str]) -> dict[str, Path]:
    pairs = files.items() if isinstance(files, Mapping) else ((Path(file).name, file) for file in files)
    named = {}
    for name, source in pairs:
        if not is_inside(name) or PurePosixPath(name).parts[0] in _RESERVED:
            raise ArtifactError(
                f"{name!r} cannot be the name of a file inside an artifact", remedy="Choose another name"
            )
        if not Path(source).exists():
            raise ArtifactError(
                f"{source} does not exist", layer=name, remedy="Export it before saving the artifact"
            )
        named[name] = Path(source)
    return named


_RESERVED = {STATE_FILE, CONSTANTS_FILE, PROGRAM_FILE, PLAN_FILE, RECIPE_FILE, METRICS_FILE, MANIFEST_FILE}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def _plain(data: Any) -> Any:
    return data.to_dict() if hasattr(data, "to_dict") else data


def _in_short(program: Mapping[str, Any]) -> tuple[int, tuple[dict[str, Any], ...]]:
    """The number of parameters, and what is said of the inputs."""
    num_params = sum(
        math.prod(entry["shape"])
        for entry in program["tensors"]
        if entry["kind"] == "parameter" and "same_as" not in entry
    )
    inputs = tuple(
        {"name": node["name"], **node.get("example", {})}
        for node in program["graph"]["nodes"]
        if node["op"] == "placeholder"
    )
    return num_params, inputs
