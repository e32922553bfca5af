"""Models named by a spec: a library's name, a Python file, a model file or an artifact folder.

=======================  ==========================================================================
``timm:NAME``            ``timm.create_model`` (random weights unless ``pretrained=True``)
``torchvision:NAME``     ``torchvision.models.get_model``
``penjing:NAME``         `penjing.models.build`
``transformers:FOLDER``  what ``save_pretrained`` has written (so is a folder with its ``config.json``)
``file.py:factory``      a function in your own file giving a module, or (module, example inputs)
``model.keras``          a Keras 3 file, run on the torch backend
``model.onnx``           an ONNX file of any framework, read into a trainable module
``model.pt2``            a ``torch.export`` archive (only when trusted: torch unpickles it)
a folder                 an artifact of penjing
=======================  ==========================================================================

A new kind of spec is one row of `PREFIXES` or `SUFFIXES`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penjing.errors import ArtifactError, PenjingError
from penjing.files import from_home
from penjing.models import hugging_face_door
from penjing.models.weights import load_weights, opened
from penjing.user_file import folder_importable, named_function, run_factory


@dataclass(frozen=True)
class LoadedModel:
    """A network and how to call it.

    Attributes:
        model: The network, in eval mode.
        example_inputs: Tensor, tuple or dict it takes (batch 2), or None when the source does not say.
        source: The spec it came from.
        kind: ``"timm"``, ``"torchvision"``, ``"penjing"``, ``"transformers"``, ``"file"``, ``"keras"``,
            ``"onnx"``, ``"pt2"``, ``"pickle"`` or ``"artifact"``.
        info: What else the source says, e.g. ``mean`` and ``std`` of its inputs, or an artifact's history.
        assumed: Shapes of example inputs whose sizes the source leaves free, by input.
    """

    model: nn.Module
    example_inputs: Any
    source: str
    kind: str
    info: Mapping[str, Any] = field(default_factory=dict)
    assumed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def normalize(self) -> dict[str, tuple[float, ...]] | None:
        """``mean`` and ``std`` of each channel that the source normalises images by; None if unsaid."""
        mean, std = (tuple(self.info.get(key) or ()) for key in ("mean", "std"))
        return {"mean": mean, "std": std} if mean and len(mean) == len(std) else None


def load_model(
    spec: str | Path, *, weights: Path | str | None = None, trust: bool = False, **options: Any
) -> LoadedModel:
    """Build or read the network that ``spec`` names.

    Args:
        spec: See the table above.
        weights: A ``.safetensors`` file to load strictly.
        trust: Accept files that run code when opened (``.pt``, ``.pth``, ``.pt2``). A ``file.py`` is your
            own code and always runs.
        **options: Passed to the library's constructor or the factory, e.g. ``num_classes``.

    Raises:
        ArtifactError: an unknown spec, a missing package or file, options or weights that do not fit.
    """
    spec = from_home(spec)
    loader = _loader(spec)
    loaded = loader(spec, trust, options)
    if weights is not None:
        load_weights(loaded.model, from_home(weights), trust=trust)
    return loaded


def files_of(spec: str | Path) -> tuple[Path, ...]:
    """The files that a spec, or a path of weights, is read from; none where it names code or a library.

    Raises:
        ArtifactError: for an ONNX file that is damaged.
    """
    path = Path(from_home(str(spec).removeprefix("transformers:")))
    beside: tuple[str, ...] = ()
    if hugging_face_door.is_saved(path):
        return hugging_face_door.files_of(path)
    if path.is_dir():
        from penjing.export.program import PROGRAM_FILE
        from penjing.export.program_tensors import CONSTANTS_FILE, STATE_FILE

        path, beside = path / PROGRAM_FILE, (STATE_FILE, CONSTANTS_FILE)
    elif path.suffix.lower() == ".onnx" and path.is_file():
        from penjing.models.external_data import external_files
        from penjing.models.onnx_read import load_proto

        beside = external_files(load_proto(path, weights=False))
    return tuple(file for file in (path, *(path.parent / name for name in beside)) if file.is_file())


_Loader = Callable[[str, bool, dict[str, Any]], LoadedModel]


def _loader(spec: str) -> _Loader:
    prefix, colon, _ = spec.partition(":")
    if colon and prefix in PREFIXES:
        return PREFIXES[prefix]
    if re.search(r"\.py(:|$)", spec):
        return _from_file
    path = Path(spec)
    if path.suffix.lower() in SUFFIXES:
        return SUFFIXES[path.suffix.lower()]
    if path.is_dir():
        return _transformers if hugging_face_door.is_saved(path) else _artifact
    known = ", ".join(
        [
            *(f"{name}:{'FOLDER' if name == 'transformers' else 'NAME'}" for name in PREFIXES),
            "file.py:factory",
            *SUFFIXES,
            "an artifact folder",
        ]
    )
    near = difflib.get_close_matches(prefix, PREFIXES, n=1) if colon else []
    hint = f"Did you mean {near[0]!r}? " if near else ""
    what = "does not exist" if path.suffix == "" and not colon and not path.exists() else "is no model spec"
    raise ArtifactError(
        f"{spec!r} {what}", remedy=f"{hint}Give one of: {known}".replace("? Give", "? Or give")
    )


def _name(spec: str) -> str:
    return spec.partition(":")[2]


def _timm(spec: str, trust: bool, options: dict[str, Any]) -> LoadedModel:
    timm = _package("timm", spec)
    name = _name(spec)
    if not timm.is_model(name.partition(".")[0]):
        raise _unknown(spec, name, timm.list_models())
    model = _built(spec, lambda: timm.create_model(name, **options))
    config = getattr(model, "pretrained_cfg", None) or {}
    shape = tuple(config.get("input_size") or (3, 224, 224))
    size = options.get("img_size")
    if size is not None:
        shape = (shape[0], *((size, size) if isinstance(size, int) else size))
    if "in_chans" in options:
        shape = (options["in_chans"], *shape[1:])
    info = {key: list(config[key]) for key in ("mean", "std") if config.get(key)}
    return LoadedModel(model.eval(), _noise(shape), spec, "timm", info)


# Input shapes of torchvision models that are not 3×224×224, by the start of their names.
_TORCHVISION_SHAPES = {
    "inception_v3": (3, 299, 299),
    "vit_h_14": (3, 224, 224),
    "swin3d": (3, 16, 224, 224),
    "mvit": (3, 16, 224, 224),
    "s3d": (3, 16, 224, 224),
    "r3d_18": (3, 16, 112, 112),
    "mc3_18": (3, 16, 112, 112),
    "r2plus1d_18": (3, 16, 112, 112),
}


def _torchvision(spec: str, trust: bool, options: dict[str, Any]) -> LoadedModel:
    models = _package("torchvision", spec).models
    name = _name(spec)
    if name not in models.list_models():
        raise _unknown(spec, name, models.list_models())
    taken = inspect.signature(models.get_model_builder(name)).parameters
    extra: dict[str, Any] = {"init_weights": True} if name in ("inception_v3", "googlenet") else {}
    if "weights_backbone" in taken:  # else they are downloaded: by default for detection and segmentation
        extra["weights_backbone"] = None
    model = _built(spec, lambda: models.get_model(name, **{"weights": None, **extra, **options}))
    shape = next(
        (shape for start, shape in _TORCHVISION_SHAPES.items() if name.startswith(start)), (3, 224, 224)
    )
    if "image_size" in options:
        shape = (3, options["image_size"], options["image_size"])
    info = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    noise = _noise(shape)
    inputs = (noise, noise.flip(0)) if name.startswith("raft") else noise  # flow is between two images
    return LoadedModel(model.eval(), inputs, spec, "torchvision", info)


def _penjing(spec: str, trust: bool, options: dict[str, Any]) -> LoadedModel:
    from penjing.models.zoo import build, names

    name = _name(spec)
    if name not in names():
        raise _unknown(spec, name, list(names()))
    options = {"num_classes": 10, **options}
    model = _built(spec, lambda: build(name, **options))
    size = options.get("image_size", 32)
    return LoadedModel(model.eval(), _noise((options.get("in_channels", 3), size, size)), spec, "penjing")


def _transformers(spec: str, trust: bool, options: dict[str, Any]) -> LoadedModel:
    _package("transformers", spec)
    folder = Path(from_home(spec.removeprefix("transformers:")))
    if not hugging_face_door.is_saved(folder):
        raise ArtifactError(
            f"{folder} is no folder with a config.json, and nothing is fetched",
            layer=spec,
            remedy="Save the network with save_pretrained(FOLDER) and give that folder",
        )
    model = _built(spec, lambda: hugging_face_door.read_folder(folder, options, trust=trust))
    info = hugging_face_door.image_statistics(folder)
    return LoadedModel(model, hugging_face_door.example_inputs_of(model), spec, "transformers", info)


def _from_file(spec: str, trust: bool, options: dict[str, Any]) -> LoadedModel:
    file, _, factory = spec.rpartition(":") if re.search(r"\.py:[^/\\]*$", spec) else (spec, "", "")
    if not factory:
        raise ArtifactError(
            f"{spec!r} does not say which function builds the model",
            remedy=f"Write {file}:NAME, e.g. {file}:build",
        )
    build = named_function(Path(file), factory, ArtifactError)
    made = run_factory(build, options, spec, ArtifactError)
    model, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ArtifactError(
            f"{factory} gave a {type(model).__name__}, not a torch.nn.Module",
            layer=spec,
            remedy="Return the module, or (module, example inputs)",
        )
    return LoadedModel(model.eval(), examples, spec, "file")


def _keras(spec: str, trust: bool, options: dict[str, Any]) -> LoadedModel:
    from penjing.models.keras_door import load_keras

    _no_options(spec, options)
    return load_keras(spec)


def _trusted(spec: str, trust: bool, what: str, remedy: str) -> None:
    if not Path(spec).is_file():
        raise ArtifactError(f"{spec} does not exist", layer=spec, remedy="Give an existing file")
    if not trust:
        raise ArtifactError(f"{spec} is {what}", layer=spec, remedy=remedy)


def _pt2(spec: str, trust: bool, options: dict[str, Any]) -> LoadedModel:
    from penjing.graph import GraphModel, trace
    from penjing.graph.inputs import as_examples

    _no_options(spec, options)
    _trusted(
        spec,
        trust,
        "a torch.export archive, and torch unpickles parts of it, which can run any code",
        "Give trust=True (--trust) if you made it yourself, or hand over a penjing artifact",
    )
    program = opened(lambda: torch.export.load(spec), Path(spec))
    example: Any = program.example_inputs
    examples = as_examples(*example) if example else ()
    model = program.module(check_guards=False)
    return LoadedModel(GraphModel(trace(_Plain(model), examples)), examples, spec, "pt2")


class _Plain(nn.Module):
    """An exported module under the names it had, free of export's refusal of train() and eval()."""

    _exported: Callable[..., Any]

    def __init__(self, exported: nn.Module) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = (
            exported._modules,
            exported._parameters,
            exported._buffers,
        )
        self._non_persistent_buffers_set = exported._non_persistent_buffers_set
        object.__setattr__(self, "_exported", exported)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._exported(*args, **kwargs)


def _onnx(spec: str, trust: bool, options: dict[str, Any]) -> LoadedModel:
    from penjing.models.onnx_door import load_onnx

    return load_onnx(spec, options)


def _pickled(spec: str, trust: bool, options: dict[str, Any]) -> LoadedModel:
    _no_options(spec, options)
    _trusted(
        spec,
        trust,
        "a pickled model, which can run any code when it is opened",
        "Give file.py:factory with --weights x.safetensors, or trust=True (--trust)",
    )
    if _is_torchscript(spec):
        raise ArtifactError(
            "it is TorchScript, which cannot be traced",
            layer=spec,
            remedy="Give the Python module: file.py:factory with --weights x.safetensors",
        )
    with folder_importable(Path(spec).parent):  # classes beside the file are found, as a script finds them
        model = opened(lambda: torch.load(spec, map_location="cpu", weights_only=False), Path(spec))
    if not isinstance(model, nn.Module):
        raise ArtifactError(
            f"{spec} holds a {type(model).__name__}, not a module",
            layer=spec,
            remedy="Give file.py:factory as the model and this file as its weights",
        )
    return LoadedModel(model.eval(), None, spec, "pickle")


def _is_torchscript(spec: str) -> bool:
    if not zipfile.is_zipfile(spec):
        return False
    with zipfile.ZipFile(spec) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _artifact(spec: str, trust: bool, options: dict[str, Any]) -> LoadedModel:
    from penjing.artifact import load, read_artifact
    from penjing.export.program import example_inputs_of, read_program

    _no_options(spec, options)
    info = read_artifact(spec, trust=trust).to_dict()
    examples = example_inputs_of(read_program(Path(spec)))
    return LoadedModel(load(spec, trust=trust), examples, spec, "artifact", info)


PREFIXES: dict[str, _Loader] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "penjing": _penjing,
    "transformers": _transformers,
}
SUFFIXES: dict[str, _Loader] = {
    ".keras": _keras,
    ".pt2": _pt2,
    ".onnx": _onnx,
    ".pt": _pickled,
    ".pth": _pickled,
}


def _noise(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))


def _package(name: str, spec: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ArtifactError(f"{name} is not installed", layer=spec, remedy=f"pip install {name}") from error


def _built(spec: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except PenjingError:
        raise
    except Exception as error:  # the library's own code, with a user's options
        remedy = "Give the options that this model takes"
        if isinstance(error, OSError):  # weights are asked for that cannot be fetched
            remedy = "Give its weights as a file (--weights), or an option that asks for none"
        raise ArtifactError(
            f"building it fails ({type(error).__name__}: {error})", layer=spec, remedy=remedy
        ) from error


def _unknown(spec: str, name: str, known: list[str]) -> ArtifactError:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"Nearest: {', '.join(near)}" if near else f"Known: {', '.join(known[:10])}"
    return ArtifactError(f"there is no {name!r}", layer=spec, remedy=hint)


def _no_options(spec: str, options: Mapping[str, Any]) -> None:
    if options:
        raise ArtifactError(
            f"a model read from a file takes no options, got {', '.join(options)}",
            layer=spec,
            remedy="Leave them out",
        )
