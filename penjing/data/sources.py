"""`open_data`: one door for every kind of data, named by a spec."""

from __future__ import annotations

import difflib
import inspect
import itertools
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from penjing.archives import check_unpacks
from penjing.batches import take_apart
from penjing.config import truth_for_number
from penjing.data.glyphs import glyphs
from penjing.data.images import FolderSplit, ParquetSplit, list_folder
from penjing.data.sizing import Sizing, is_whole
from penjing.data.split import (
    UNLABELLED,
    ArraySplit,
    DataBundle,
    Split,
    channel_statistics,
    numbered_classes,
    per_channel,
)
from penjing.errors import DataError
from penjing.files import check_permitted, from_home
from penjing.user_file import named_function, run_factory

T = TypeVar("T")
Parts = dict[str, Split]  # "train" always; "val" and "test" where the source has them


def open_data(spec: str | Path | DataBundle, **options: Any) -> DataBundle:
    """Open data by its spec.

    Args:
        spec: One of

            * ``"glyphs"``: the embedded set (options ``seed``, ``per_class``, ``num_classes``);
            * a folder with ``train/CLASS/*.png`` and, if there are, ``val/`` and ``test/``; or with
              ``CLASS/*.png``; or with ``*train*.parquet`` and, if there are, ``*val*`` and ``*test*``;
            * a ``.parquet`` file with ``image`` (struct of bytes and path) and ``label`` columns;
            * a ``.npz`` file with ``x_train``, ``y_train`` (and ``…_val``, ``…_test``), or ``x``, ``y``;
            * ``file.py:factory``: a function giving loaders ``(train, val)`` or ``(train, val, test)``, a
              dict of them, or a `DataBundle`. The options are its arguments. This runs the file.

            Images without labels: right in the folder, or files of nothing else (no ``label``, no ``y``).
        **options: For files: ``val_fraction`` (0.1) of the training samples, drawn class by class by ``seed``
            (0), serve as validation where the source has none — never the test set; ``image_size`` resizes,
            how is said by ``crop_fraction`` and ``interpolation`` (see `penjing.data.sizing.Sizing`);
            ``test`` and ``val`` name further files; ``mean`` and ``std`` replace the measured statistics;
            ``classes`` gives the class names.

    Raises:
        DataError: nothing there, empty, corrupt, of the wrong shape, labels in part or out of range, or an
            unknown option.
    """
    if isinstance(spec, DataBundle):
        return spec
    text = from_home(spec)
    if text == "glyphs":
        return _call(glyphs, text, options)
    path, _, factory = text.rpartition(":")
    if path.endswith(".py"):
        return _from_factory(Path(path), factory, options)
    return _open_files(Path(text), options)


@dataclass(frozen=True)
class _Options:
    """What may be said about any file; see `open_data`."""

    val_fraction: float = 0.1
    seed: int = 0
    classes: Sequence[str] | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        classes = self.classes
        named = not isinstance(classes, str) and isinstance(classes, Iterable)
        _demand("val_fraction", self.val_fraction, isinstance(self.val_fraction, numbers.Real), "a number")
        _demand("seed", self.seed, is_whole(self.seed) and self.seed >= 0, "a whole number, 0 or more")
        _demand("classes", classes, classes is None or named, "a list of names")

    def class_names(self) -> tuple[str, ...] | None:
        return tuple(str(name) for name in self.classes) if self.classes is not None else None


@dataclass(frozen=True)
class _ImageOptions(_Options):
    """What may be said about encoded images besides."""

    val: str | Path | None = None
    test: str | Path | None = None
    image_size: int | None = None
    crop_fraction: float | None = None
    interpolation: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sizing()
        for option, place in (("val", self.val), ("test", self.test)):
            _demand(option, place, isinstance(place, str | Path | None), "a path")

    def sizing(self) -> Sizing | None:
        """How images come to one size; None leaves them as they are."""
        given = {"crop_fraction": self.crop_fraction, "interpolation": self.interpolation}
        how: dict[str, Any] = {option: value for option, value in given.items() if value is not None}
        if self.image_size is not None:
            return Sizing(self.image_size, **how)
        for option, value in how.items():
            raise DataError(f"{option} is {value!r} and no size is given", remedy="Give image_size, too")
        return None

    def named(self) -> dict[str, Path]:
        """The further places that were named."""
        given = {"val": self.val, "test": self.test}
        return {part: Path(from_home(place)) for part, place in given.items() if place is not None}


def _demand(option: str, value: object, holds: bool, what: str) -> None:
    if not holds:
        raise DataError(f"{option} is {value!r}", remedy=f"Give {what}")


def _open_files(path: Path, options: Mapping[str, Any]) -> DataBundle:
    if path.is_dir():
        has_parquet = any(path.glob("*.parquet")) or any(path.glob("data/*.parquet"))
        opener = _open_parquet if has_parquet else _open_folder
        return opener(path, _call(_ImageOptions, str(path), options))
    if not path.exists():
        near = difflib.get_close_matches(str(path), ["glyphs"], n=1, cutoff=0.7)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise DataError(
            "there is no such file, folder or data set",
            layer=str(path),
            remedy=f"{hint}Give glyphs, an image folder, a .parquet or .npz file, or file.py:factory",
        )
    if path.suffix.lower() == ".parquet":
        return _open_parquet(path, _call(_ImageOptions, str(path), options))
    if path.suffix.lower() != ".npz":
        raise DataError(
            f"data cannot be read from a {path.suffix or 'suffixless'} file",
            layer=str(path),
            remedy="Give an image folder, a .parquet or .npz file, or file.py:factory",
        )
    return _open_npz(path, _call(_Options, str(path), options))


def _call(make: Callable[..., T], source: str, options: Mapping[str, Any]) -> T:
    known, wanted = list(inspect.signature(make).parameters), get_type_hints(make)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise DataError(
                f"there is no option {name!r}", layer=source, remedy=f"{hint}Known: {', '.join(known)}"
            )
        wrong = truth_for_number(wanted.get(name), options[name])
        _demand(name, options[name], wrong is None, "a number (YAML reads yes, no, on and off as truth)")
    return make(**options)


# --- image folder


def _open_folder(path: Path, options: _ImageOptions) -> DataBundle:
    aliases = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
    inside = {child.name.lower(): child for child in sorted(path.iterdir()) if child.is_dir()}
    found = {
        part: next((inside[name] for name in names if name in inside), None)
        for part, names in aliases.items()
    }
    if found["train"] is None:
        if found["val"] is not None or found["test"] is not None:
            raise DataError("there is no train folder", layer=str(path), remedy=f"Add {path / 'train'}")
        found = {"train": path, "val": None, "test": None}
    found |= options.named()
    names = options.class_names()
    parts: Parts = {}
    channels: int | None = None
    for part, folder in found.items():
        if folder is not None:
            files, labels, names = list_folder(folder, names)
            split = FolderSplit(files, labels, names, part, sizing=options.sizing(), channels=channels)
            channels = split.image_shape[2]
            parts[part] = split
    return _bundle(parts, str(path), options)


# --- Parquet


def _open_parquet(path: Path, options: _ImageOptions) -> DataBundle:
    files: dict[str, list[Path]] = {"train": [path]}
    if path.is_dir():
        every = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
        files = {
            part: [file for file in every if any(word in file.stem.lower() for word in words)]
            for part, words in (("train", ("train",)), ("val", ("val",)), ("test", ("test",)))
        }
        if not files["train"]:
            raise DataError(
                f"no Parquet file is named as training data ({', '.join(file.name for file in every)})",
                layer=str(path),
                remedy="Name it *train*.parquet, or give the file itself",
            )
        twice = sorted(set(files["train"]) & {*files["val"], *files["test"]})
        if twice:
            raise DataError(
                "it is named both as training data and as val or test",
                layer=str(twice[0]),
                remedy="Name each file for one part, or give the file itself",
            )
    files |= {part: [file] for part, file in options.named().items()}
    parts: Parts = {}
    names, channels = options.class_names(), None
    declared: set[tuple[str, ...]] = set()
    for part, paths in files.items():
        if paths:
            split = ParquetSplit.open(paths, names, part, sizing=options.sizing(), channels=channels)
            names, channels = split.classes, split.image_shape[2]
            declared |= split.declared
            parts[part] = split
    if len(declared) > 1 and options.classes is None:  # a label would mean one class here, another there
        raise DataError(
            f"its files name their classes differently ({' and '.join(map(str, sorted(declared)[:2]))})",
            layer=str(path),
            remedy="Write them with the same class names, or give classes",
        )
    return _bundle(parts, str(path), options)


# --- npz

_NPZ_KEYS = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels"), ("x", "y"), ("images", "labels")),
    "val": (("x_val", "y_val"), ("x_valid", "y_valid"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}


def _open_npz(path: Path, options: _Options) -> DataBundle:
    check_unpacks(path, DataError)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            held = {name: np.asarray(arrays[name]) for name in arrays.files}
    except Exception as error:  # a damaged file raises errors of zlib, zipfile and the tokenizer besides
        check_permitted(path, DataError)
        raise DataError(
            f"it cannot be read ({error})",
            layer=str(path),
            remedy="Save plain numeric arrays with numpy.savez (object arrays need pickle: never loaded)",
        ) from error
    names = list(itertools.chain(*_NPZ_KEYS.values()))
    if held.keys() <= {x for x, _ in names}:  # beside other arrays labels may only have another name
        held |= {y: np.full(len(held[x]), UNLABELLED) for x, y in names if x in held}
    pairs = {
        part: next(((held[x], held[y]) for x, y in keys if x in held and y in held), None)
        for part, keys in _NPZ_KEYS.items()
    }
    if pairs["train"] is None:
        raise DataError(
            f"it holds {', '.join(held) or 'nothing'}",
            layer=str(path),
            remedy="Save x_train and y_train, or x and y",
        )
    arrays_of = {
        part: (_as_uint8(pair[0], f"{path}:{part}"), _as_labels(pair[1], f"{path}:{part}"))
        for part, pair in pairs.items()
        if pair is not None
    }
    classes = options.class_names()
    if classes is None and "classes" in held:
        classes = tuple(held["classes"].astype(str).ravel().tolist())
    if classes is None:
        classes = numbered_classes(np.concatenate([labels for _, labels in arrays_of.values()]), str(path))
    parts: Parts = {
        part: ArraySplit(images, labels, classes, part) for part, (images, labels) in arrays_of.items()
    }
    return _bundle(parts, str(path), options)


_OTHER_DATA = (
    "Tables, text and the like come from file.py:factory, a function that returns (train, val) batches"
)


def _as_uint8(images: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """uint8 as it is; floats in [0, 1] scaled; channels-first images turned to channels-last."""
    if images.ndim not in (3, 4):
        raise DataError(f"inputs of shape {images.shape} are no images", layer=where, remedy=_OTHER_DATA)
    if images.ndim == 4 and images.shape[1] in (1, 3, 4) and images.shape[3] not in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind == "f":
        if not np.isfinite(images).all():
            raise DataError(
                "images hold NaN or infinity", layer=where, remedy="Remove or repair those images"
            )
        if images.size and (images.min() < 0 or images.max() > 1):
            raise DataError(
                f"float images span {images.min():.3g}…{images.max():.3g}",
                layer=where,
                remedy="Give uint8 images, or floats in [0, 1]; normalisation is done when loading",
            )
        scaled: NDArray[np.uint8] = np.rint(images * 255).astype(np.uint8)
        return scaled
    raise DataError(
        f"images are {images.dtype}", layer=where, remedy="Give uint8 images, or floats in [0, 1]"
    )


def _as_labels(labels: NDArray[Any], where: str) -> NDArray[np.int64]:
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"labels are {labels.dtype} of shape {labels.shape}",
            layer=where,
            remedy="Give integer class labels of shape (N,)",
        )
    return labels.astype(np.int64)


# --- the user's own loaders


def _from_factory(path: Path, name: str, options: Mapping[str, Any]) -> DataBundle:
    source = f"{path}:{name}"
    factory = named_function(path, name, DataError)
    given = run_factory(factory, options, source, DataError)
    if isinstance(given, DataBundle):
        return given
    if not isinstance(given, (Mapping, tuple, list)):
        raise DataError(
            f"it gives {type(given).__name__!r}",
            layer=source,
            remedy="Return (train, val) or (train, val, test)",
        )
    parts = (
        dict(given)
        if isinstance(given, Mapping)
        else dict(zip(("train", "val", "test"), given, strict=False))
    )
    for part in ("train", "val"):
        if parts.get(part) is None:
            raise DataError(
                f"it gives no {part} loader", layer=source, remedy="Return (train, val) or (train, val, test)"
            )
    for part, loader in parts.items():
        if isinstance(loader, Iterator) or not hasattr(loader, "__iter__"):
            raise DataError(
                f"its {part} loader is a {type(loader).__name__}, which cannot be iterated again",
                layer=source,
                remedy="Return a DataLoader, a list of batches or any object whose __iter__ starts anew",
            )
    train = parts["train"]
    if isinstance(train, Split):
        mean, std = channel_statistics(train)
        height, width, channels = train.image_shape
        return DataBundle(
            train,
            parts["val"],
            parts.get("test"),
            train.classes,
            mean,
            std,
            (channels, height, width),
            source,
        )
    return DataBundle(
        train=train,
        val=parts["val"],
        test=parts.get("test"),
        classes=tuple(str(name) for name in parts.get("classes", ())),
        mean=(),
        std=(),
        image_shape=_first_shape(train, source),
        source=source,
    )


def _first_shape(loader: Any, source: str) -> tuple[int, ...]:
    first = next(iter(loader), None)
    if first is None:
        raise DataError("its train loader is empty", layer=source, remedy="Give a loader with batches")
    inputs = take_apart(first)[0]
    shapes = (getattr(leaf, "shape", ()) for leaf in pytree.tree_leaves(inputs))
    return tuple(int(size) for size in next((shape for shape in shapes if len(shape) > 0), ())[1:])


# --- what all files share


def _bundle(parts: Parts, source: str, options: _Options) -> DataBundle:
    train, val = parts["train"], parts.get("val")
    if val is None:
        train, val = hold_out(train, options.val_fraction, options.seed)
    for part in (val, parts.get("test")):
        if part is not None and part.image_shape != train.image_shape:
            raise DataError(
                f"{part.name} images are {part.image_shape} and training images {train.image_shape}",
                layer=source,
                remedy="Give images of one size, or image_size to resize them",
            )
    height, width, channels = train.image_shape
    mean, std = options.mean, options.std
    measured = channel_statistics(train) if mean is None or std is None else ((), ())
    means = measured[0] if mean is None else per_channel(mean, channels, "mean")
    if max(means) > 1:
        raise DataError(
            f"mean is {mean}, and images are in [0, 1]", layer=source, remedy="Divide mean and std by 255"
        )
    return DataBundle(
        train=train,
        val=val,
        test=parts.get("test"),
        classes=train.classes,
        mean=means,
        std=measured[1] if std is None else per_channel(std, channels, "std"),
        image_shape=(channels, height, width),
        source=source,
    )


def hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Split off a validation part, class by class (at least one sample of a class that has two).

    Raises:
        DataError: for a fraction outside (0, 1) or too few samples.
    """
    if not 0 < fraction < 1:
        raise DataError(f"val_fraction is {fraction}", remedy="Give a fraction between 0 and 1")
    rng = np.random.default_rng((seed, len(split)))
    chosen = np.zeros(len(split), dtype=bool)
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen[rng.permutation(members)[:count]] = True
    if not chosen.any():
        raise DataError(
            "no class has two samples, so none can be spared for validation",
            layer=split.name,
            remedy="Give a validation set",
        )
    return split.subset(np.flatnonzero(~chosen), "train"), split.subset(np.flatnonzero(chosen), "val")
