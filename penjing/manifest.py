"""The manifest of an artifact: what every file must be, and the refusal of files that run code."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from penjing.errors import ArtifactError, RunError
from penjing.files import check_folder, check_permitted, read_json, write_json
from penjing.plain_yaml import from_yaml

MANIFEST_FILE = "manifest.json"
FORMAT = "penjing-artifact"
VERSION = 1

_PACKAGES = ("penjing", "torch", "onnx", "onnxruntime", "tensorflow-cpu", "tensorflow", "keras")
_UNLISTED = (MANIFEST_FILE, "work", "log.jsonl")  # a run goes on with the last two, or deletes them
_PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"})
# Opcodes that may follow the protocol header of a pickle: frames, strings, numbers, containers, globals.
_PICKLE_OPCODES = b"\x95cK]}(XU\x8a\x8c)NGJM"


def write_manifest(
    folder: Path, stages: Sequence[Mapping[str, Any]], normalize: Mapping[str, Sequence[float]] | None
) -> None:
    """List every file of ``folder`` with size and SHA-256, the versions at work, the stages, and how inputs
    are normalised (``mean`` and ``std`` of each channel; None where that is not known)."""
    names = (path.name for path in folder.iterdir() if path.name not in _UNLISTED)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "versions": installed(_PACKAGES),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "stages": [dict(stage) for stage in stages],
        "normalize": None if normalize is None else {key: list(normalize[key]) for key in ("mean", "std")},
        "files": _entries(folder, names),
    }
    write_json(folder / MANIFEST_FILE, manifest)


def admit(folder: Path, names: Iterable[str]) -> None:
    """List files or folders that were written into an artifact on purpose, under their names in it.

    Of all others the manifest says what it said. Where there is no artifact, nothing is done.
    """
    try:
        manifest = read_manifest(folder)
    except ArtifactError:
        return
    names = tuple(names)
    others = {
        name: entry for name, entry in manifest["files"].items() if PurePosixPath(name).parts[0] not in names
    }
    files = dict(sorted((others | _entries(folder, names)).items()))
    write_json(folder / MANIFEST_FILE, {**manifest, "files": files})


def _entries(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of the files of these names, and in the folders of these names."""
    found = (path for name in names for path in (folder / name, *(folder / name).rglob("*")))
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(found)
        if path.is_file()
    }


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_inside(name: object) -> bool:
    """Whether ``name`` is a relative path that stays inside the folder."""
    if not isinstance(name, str) or not name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, checked.

    Raises:
        ArtifactError: when it is missing, damaged, or of a newer version.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        what = "does not exist" if not folder.exists() else f"is no artifact: it holds no {MANIFEST_FILE}"
        raise ArtifactError(f"{folder} {what}", remedy="Give a folder written by penjing")
    manifest = json_if_any(path)
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or type(manifest.get("version")) is not int
        or manifest["version"] < 1
    ):
        raise ArtifactError(
            f"{path} is not the manifest of an artifact", layer=MANIFEST_FILE, remedy="Copy it again"
        )
    if manifest["version"] > VERSION:
        raise ArtifactError(
            f"{folder} has version {manifest['version']}; this penjing reads up to {VERSION}",
            layer=MANIFEST_FILE,
            remedy="Install a newer penjing",
        )
    try:
        whole = (
            all(
                is_inside(name) and entry["bytes"] >= 0 and entry["sha256"]
                for name, entry in manifest["files"].items()
            )
            and isinstance(manifest["versions"], dict)
            and isinstance(manifest["created"], str)
            and all(isinstance(stage["stage"], str) for stage in manifest["stages"])
            and _is_normal(manifest.get("normalize"))
        )
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ArtifactError(f"{path} is damaged", layer=MANIFEST_FILE, remedy="Copy the folder again")
    return manifest


def check_replaceable(folder: Path) -> None:
    """Refuse a folder that holds more than an artifact: a new one would take its place as a whole.

    Raises:
        RunError: naming a file that no manifest lists, or what keeps the folder from being written.
    """
    check_folder(folder)
    paths = folder.rglob("*") if folder.is_dir() else ()
    names = (path.relative_to(folder).as_posix() for path in paths if not path.is_dir())
    first = next(names, None)
    if first is None:
        return
    try:
        listed = {MANIFEST_FILE, *read_manifest(folder)["files"]}
    except ArtifactError:
        listed = set()
    foreign = next((name for name in (first, *names) if name not in listed), None)
    if foreign is not None:
        raise RunError(
            f"{folder} holds other files, such as {foreign}", remedy="Choose a new or empty folder"
        )


def _is_normal(entry: Any) -> bool:
    """Whether this is a manifest's ``normalize``; older ones have none."""
    if entry is None:
        return True
    mean, std = entry["mean"], entry["std"]
    numbers = all(isinstance(value, (int, float)) and math.isfinite(value) for value in (*mean, *std))
    return len(mean) == len(std) and numbers and all(value > 0 for value in std)


def check_file(folder: Path, name: str, entry: Mapping[str, Any] | None) -> None:
    """Compare one file with its manifest entry.

    Raises:
        ArtifactError: when it is missing or different.
    """
    path = folder / name
    if entry is None or not path.is_file():
        raise ArtifactError(f"{path} is missing", layer=name, remedy="Copy the folder again, whole")
    if path.stat().st_size != entry["bytes"] or _sha256(path) != entry["sha256"]:
        raise ArtifactError(
            f"{path} is not the file that was written (size or SHA-256 differs from {MANIFEST_FILE})",
            layer=name,
            remedy="Copy the folder again; if it was changed on purpose, seal it with penjing.artifact.seal",
        )


def refuse_pickle(folder: Path, *, trust: bool) -> None:
    """Look at every file of ``folder``, listed or not.

    Raises:
        ArtifactError: for the first pickled one, unless ``trust``.
    """
    for path in sorted(folder.rglob("*")):
        if trust or not path.is_file():
            continue
        if path.suffix.lower() in _PICKLE_SUFFIXES or _is_pickle(path):
            raise ArtifactError(
                f"{path} is a pickled file, which can run any code when it is opened",
                layer=path.relative_to(folder).as_posix(),
                remedy="Remove it, or give trust=True (--trust) if you made it yourself",
            )


def _is_pickle(path: Path) -> bool:
    """Whether a file begins like a pickle of protocol 2 or later and ends with its STOP opcode."""
    with open(path, "rb") as file:
        head = file.read(3)
        if len(head) < 3 or head[0] != 0x80 or not 2 <= head[1] <= 5 or head[2] not in _PICKLE_OPCODES:
            return False
        file.seek(-1, 2)
        return file.read(1) == b"."


def json_if_any(path: Path) -> Any:
    """Content of a JSON file, or None when there is none."""
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        check_permitted(path, ArtifactError)
        raise ArtifactError(
            f"{path} is not readable JSON ({error})", layer=path.name, remedy="Copy it again"
        ) from error


def yaml_if_any(path: Path) -> Any:
    """Content of a YAML file, or None when there is none."""
    if not path.is_file():
        return None
    try:
        return from_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        check_permitted(path, ArtifactError)
        raise ArtifactError(
            f"{path} is not readable YAML ({error})", layer=path.name, remedy="Copy it again"
        ) from error
