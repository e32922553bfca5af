"""What the verbs share: options, parsing of ``key=value``, opening models and data, printing results."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from penjing.errors import RecipeError
from penjing.plain_yaml import from_yaml

if TYPE_CHECKING:
    from penjing.models.spec import LoadedModel
    from penjing.recipe.feed import Feed

Model = Annotated[
    str,
    typer.Argument(
        help="timm:NAME, torchvision:NAME, penjing:NAME, file.py:factory, model.keras, model.onnx, "
        "a folder of transformers' save_pretrained, or an artifact folder."
    ),
]
Weights = Annotated[str | None, typer.Option(help="A .safetensors file with trained weights.")]
ModelOption = Annotated[list[str] | None, typer.Option("--option", help="key=value for the model's factory.")]
Data = Annotated[
    str | None, typer.Option(help="glyphs, an image folder, a .parquet or .npz file, or file.py:factory.")
]
NeededData = Annotated[
    str, typer.Option("--data", help="glyphs, an image folder, .parquet, .npz or file.py:factory.")
]
DataOption = Annotated[list[str] | None, typer.Option(help="key=value for the data source.")]
BatchSize = Annotated[int, typer.Option(help="Samples in a batch.")]
Normalize = Annotated[
    str,
    typer.Option(
        help="How images are fed: unit ([0, 1]), mean_std (of the training images, or --data-option mean=[…] "
        "std=[…]), model (as timm, torchvision or an artifact say), or auto: the first of mean_std where "
        "given, model, unit that there is."
    ),
]
Trust = Annotated[bool, typer.Option("--trust", help="Allow a model file to run code when it is opened.")]
Metric = Annotated[
    str | None,
    typer.Option(help="What quality is, instead of accuracy: file.py:function of outputs and targets."),
]
Seed = Annotated[int, typer.Option(help="Seeds everything that draws.", min=0)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")]
FORMATS = (
    "Formats, with commas: onnx, saved_model, program, openvino, litert, litert_fp16, litert_dynamic, or in "
    "int8 onnx_int8, saved_model_int8, litert_int8."
)
Formats = Annotated[str, typer.Option(help=FORMATS)]
DynamicAxes = Annotated[
    list[str] | None,
    typer.Option(
        "--dynamic-axis",
        help="A size beside the batch that callers choose: input_ids:1=sequence, *:2=height; again for more.",
    ),
]
Budget = Annotated[
    list[str] | None,
    typer.Option(help="What may be left: params=0.1 (a fraction), macs=50000000 (a count), latency=0.5x."),
]


def pairs(given: Sequence[str] | None, what: str) -> dict[str, Any]:
    """``["a=1", "b=[2,3]"]`` → ``{"a": 1, "b": [2, 3]}``; each value is YAML.

    Raises:
        RecipeError: for an entry without "=", or a value that is not YAML.
    """
    found: dict[str, Any] = {}
    for entry in given or ():
        key, equals, value = entry.partition("=")
        if not equals or not key.strip():
            raise RecipeError(
                f"{entry!r} is not key=value", layer=what, remedy=f"Write it as {what} key=value"
            )
        try:
            found[key.strip()] = from_yaml(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"{value!r} is not a value", layer=what, remedy="Quote it") from error
    return found


def names(given: str) -> tuple[str, ...]:
    """``"onnx, saved_model"`` → ``("onnx", "saved_model")``."""
    return tuple(name.strip() for name in given.split(",") if name.strip())


def in_points(max_drop: str, *, relative: bool = True) -> str:
    """An allowed loss as it is typed, with its unit: ``"0.5"`` is in points, ``"1%"`` says what it is.

    Raises:
        RecipeError: for what is neither, or not from 0 to 100; its remedy names the second form where the
            verb takes it (``relative``).
    """
    given = max_drop.strip()
    unit = next((unit for unit in ("%", "pt") if given.endswith(unit)), "")
    try:
        value = float(given.removesuffix(unit))
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 100:
        why = (
            ": what may be lost is not negative"
            if value < 0
            else ": more than there is"
            if value > 100
            else ""
        )
        forms = "0.5 (points) or 1% (of the original's value)" if relative else "0.5 (half a point)"
        nothing = "; 0 allows no loss" if value < 0 else ""
        raise RecipeError(
            f"{max_drop!r} is no allowed loss{why}",
            layer="--max-drop",
            remedy=f"Write {forms}, up to 100{nothing}",
        )
    return given if unit else f"{given}pt"


def budget_of(given: Sequence[str] | None) -> dict[str, Any] | None:
    """The bounds of ``--budget``, or None; a latency stays a text, with the unit that it needs.

    Raises:
        RecipeError: for a value that is not a number.
    """
    split = [part for entry in given or () for part in entry.split(",") if part.strip()]
    found = pairs(split, "--budget")
    for key, value in found.items():
        if key == "latency":
            found[key] = str(value)  # its unit is asked for as after --latency
            continue
        if key in ("runtime", "precision") and isinstance(value, str):
            continue
        try:
            found[key] = float(value)
        except (TypeError, ValueError):
            raise RecipeError(
                f"{key}={value!r} is not a number",
                layer="--budget",
                remedy="Give a fraction (0.5) or a count; only a latency may be 0.5x or 3ms",
            ) from None
    return found or None


def load(
    spec: str, *, weights: str | None, options: Sequence[str] | None, trust: bool, seed: int = 0
) -> LoadedModel:
    """The model of a spec, with its example inputs; what a factory draws for it follows from the seed."""
    from penjing.models.spec import load_model
    from penjing.recover.chance import private_globals, seed_globals

    with private_globals():
        seed_globals(seed)
        return load_model(spec, weights=weights, trust=trust, **pairs(options, "--option"))


def history(spec: str) -> list[dict[str, Any]]:
    """The stages an artifact went through, oldest first, as its manifest says; none of any other model."""
    from penjing.manifest import MANIFEST_FILE, read_manifest

    folder = Path(spec)
    return list(read_manifest(folder)["stages"]) if (folder / MANIFEST_FILE).is_file() else []


def opened(
    spec: str, *, weights: str | None, options: Sequence[str] | None, trust: bool, seed: int = 0
) -> tuple[Any, LoadedModel | None]:
    """What `export` and `quantize` take, and the loaded model it is of: an ONNX file stays a path.

    Raises:
        RecipeError: for weights or options of such a file, which is taken as it is.
    """
    if Path(spec).suffix.lower() == ".onnx":
        for given, name in ((weights, "--weights"), (options, "--option")):
            if given:
                raise RecipeError(
                    "an ONNX file is taken as it is, with its own weights and sizes",
                    layer=name,
                    remedy="Leave it out",
                )
        return Path(spec), None
    loaded = load(spec, weights=weights, options=options, trust=trust, seed=seed)
    return loaded.model, loaded


def feed_of(
    spec: str,
    options: Sequence[str] | None,
    *,
    model: LoadedModel | None,
    source: Any = None,
    batch_size: int,
    normalize: str,
    seed: int,
    samples: int | None = None,
) -> Feed:
    """The data of a spec as batches in the layout of the model, or of the ONNX file that is the ``source``,
    normalised as it is used to; so many samples of it for statistics, or as many as are usual.
    """
    from penjing.data import open_data
    from penjing.graph.inputs import required_inputs
    from penjing.recipe.feed import Feed, layout_of
    from penjing.recipe.schema import DataConfig

    config = DataConfig.parse(
        {
            "spec": spec,
            "options": pairs(options, "--data-option"),
            "batch_size": batch_size,
            "normalize": normalize,
            **({} if samples is None else {"calibration": samples}),
        }
    )
    bundle = open_data(spec, **config.options)
    declared = _declared(source) if model is None else model.example_inputs
    return Feed(
        config,
        bundle,
        layout=layout_of(declared, bundle),
        seed=seed,
        source=None if model is None else model.normalize,
        names=tuple(declared or ()) if model is None else required_inputs(model.model),
    )


def _declared(file: Path | None) -> Any:
    """Inputs of the shapes and types that an ONNX file declares."""
    if file is None:
        return None
    import torch

    from penjing.export.onnx_examples import example_feeds
    from penjing.models.onnx_read import load_proto

    return {
        name: torch.from_numpy(array)
        for name, array in example_feeds(load_proto(file, weights=False)).items()
    }


def examples(loaded: LoadedModel, feed: Feed | None = None, *, takes_data: bool = True) -> Any:
    """Example inputs: the model's own, else the first samples of the data. Where the model leaves sizes free,
    the data comes first, and what is assumed without it is said on standard error.

    Args:
        loaded: The model.
        feed: The data, where there is some.
        takes_data: Whether the verb has ``--data``.

    Raises:
        RecipeError: where there are neither.
    """
    if feed is not None and (loaded.example_inputs is None or loaded.assumed):
        return feed.examples()
    for name, shape in loaded.assumed.items():
        sizes = ",".join(map(str, shape))
        print(
            f"penjing: {loaded.source} leaves sizes of {name} free; an example {'×'.join(map(str, shape))} "
            f"is taken. Others: --option '{name}.shape=[{sizes}]'",
            file=sys.stderr,
        )
    if loaded.example_inputs is not None:
        return loaded.example_inputs
    both = "return model, torch.randn(2, 3, 32, 32)"
    raise RecipeError(
        "the model comes without example inputs",
        layer=loaded.source,
        remedy=("Give --data, whose first samples are taken, or: " if takes_data else "")
        + (
            f"Let the factory return both: {both}"
            if loaded.kind == "file"
            else f"Write a function that loads it and ends with {both}; give that as the model: "
            "file.py:function"
        ),
    )


def emit(result: Any, text: Any, as_json: bool) -> None:
    """Print a result on standard output: as JSON, or as text or a `rich` renderable."""
    if as_json:
        unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")  # elsewhere JSON has escapes
        json.dump(jsonable(result), sys.stdout, indent=2, ensure_ascii=not unicode, allow_nan=False)
        sys.stdout.write("\n")
        return
    from rich.console import Console

    narrow = sys.stdout.isatty()  # nobody could widen a file in which a table was cut off
    Console(highlight=False, markup=False, soft_wrap=not narrow, width=None if narrow else 10_000).print(text)


def jsonable(value: Any) -> Any:
    """Plain JSON of a result: paths as text, what is not finite as null."""
    if hasattr(value, "to_dict"):
        return jsonable(value.to_dict())
    if isinstance(value, dict):
        return {str(key): jsonable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
