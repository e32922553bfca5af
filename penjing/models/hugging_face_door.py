"""A folder as ``save_pretrained`` of the transformers library writes it → its class, weights and inputs.

Nothing is fetched: what is not in the folder is an error. A pruned network's folder holds its ``plan.json``,
too, beside the configuration of its original, which says nothing of single layers.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penjing.errors import ArtifactError
from penjing.export.program_tensors import read_safetensors
from penjing.files import read_json
from penjing.models.weights import load_state

_CONFIG, _PREPROCESSOR, _PLAN = "config.json", "preprocessor_config.json", "plan.json"
_WORDS = 16
"""Length of example sentences."""


def is_saved(folder: Path) -> bool:
    """Whether a folder is one of ``save_pretrained``."""
    return (folder / _CONFIG).is_file()


def files_of(folder: Path) -> tuple[Path, ...]:
    """The files that such a folder's network is read from."""
    found = (folder.glob(pattern) for pattern in ("*.json", "*.safetensors", "*.bin", "*.py"))
    return tuple(sorted(path for each in found for path in each))


def read_folder(folder: Path, options: Mapping[str, Any], *, trust: bool) -> nn.Module:
    """The network, of the class that the folder's configuration names, in eval mode.

    Args:
        folder: Holds ``config.json`` and safetensors weights; of a pruned network ``plan.json`` besides.
        options: Take the place of entries of the configuration, e.g. ``attn_implementation``.
        trust: Also run the code that the folder brings, and read pickled weights.

    Raises:
        ArtifactError: no such folder, a class that the library has not, or weights that are missing,
            pickled or of another shape.
    """
    library = importlib.import_module("transformers")
    config = _read_json(folder / _CONFIG, "Give a folder that save_pretrained has written")
    kinds = config.get("architectures")
    if not kinds:
        raise ArtifactError(
            "it does not name the network's class",
            layer=str(folder / _CONFIG),
            remedy='Write it in: "architectures": ["BertForSequenceClassification"], say',
        )
    is_own = bool(config.get("auto_map"))
    kind = getattr(library, kinds[0], None) or (library.AutoModel if is_own and trust else None)
    if kind is None:
        raise ArtifactError(
            f"transformers {library.__version__} has no class {kinds[0]!r}",
            layer=str(folder / _CONFIG),
            remedy="Give trust=True (--trust) to run the folder's own code"
            if is_own
            else "Install the release of transformers that has it, or give file.py:factory",
        )
    if not trust and not any(folder.glob("*.safetensors")):
        raise ArtifactError(
            "it holds no safetensors, and other weights are pickled: they can run any code when opened",
            layer=str(folder),
            remedy="Save it again with safe_serialization, or give trust=True (--trust)",
        )
    with _silent(library):
        if (folder / _PLAN).is_file():
            return _pruned(library, kind, folder, options, trust=trust)
        model, loaded = kind.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=trust,
            output_loading_info=True,
            dtype=torch.float32,
            **options,
        )
    if missing := sorted(loaded["missing_keys"]):  # the library draws them at random and goes on
        raise ArtifactError(
            f"the weights lack {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
            layer=str(folder),
            remedy="Save the whole trained network, or give its class in file.py:factory",
        )
    network: nn.Module = model.eval()
    return network


def _pruned(library: Any, kind: Any, folder: Path, options: Mapping[str, Any], *, trust: bool) -> nn.Module:
    """The original of the configuration, made smaller by the plan, with the folder's weights."""
    from penjing.prune import Plan, apply

    config = library.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trust, **options
    )
    build = getattr(kind, "_from_config", None) or kind.from_config  # of a class; of AutoModel
    whole = build(config, dtype=torch.float32).eval()
    inputs = example_inputs_of(whole)
    if inputs is None:
        raise ArtifactError(
            "a pruned network is built again by its plan, and nothing says what this one takes",
            layer=str(folder / _PLAN),
            remedy="Apply the plan in file.py:factory, which returns the model and example inputs",
        )
    small = apply(whole, Plan.load(folder / _PLAN), inputs).model
    state = {
        name: t for file in sorted(folder.glob("*.safetensors")) for name, t in read_safetensors(file).items()
    }
    load_state(small, state, folder)
    return small.eval()


@contextmanager
def _silent(library: Any) -> Iterator[None]:
    """Without the library's own lines and bars."""
    quiet = library.utils.logging
    level, had_bar = quiet.get_verbosity(), quiet.is_progress_bar_enabled()
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    try:
        yield
    finally:
        quiet.set_verbosity(level)
        if had_bar:
            quiet.enable_progress_bar()


def example_inputs_of(model: Any) -> Any:
    """Two samples of noise where text or images alone are asked for; None where it takes anything else."""
    modalities, config = model.input_modalities, model.config
    kinds = {modalities} if isinstance(modalities, str) else set(modalities)
    draws = torch.Generator().manual_seed(0)
    if kinds == {"text"}:
        words = torch.randint(config.get_text_config().vocab_size, (2, _WORDS), generator=draws)
        decoded = {"decoder_input_ids": words} if getattr(config, "is_encoder_decoder", False) else {}
        return {"input_ids": words, "attention_mask": torch.ones_like(words), **decoded}
    size = getattr(config, "image_size", None)
    if kinds == {"image"} and size is not None:
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        return torch.randn(2, getattr(config, "num_channels", 3), *sides, generator=draws)
    return None


def image_statistics(folder: Path) -> dict[str, list[float]]:
    """``mean`` and ``std`` by which the folder says that images are normalised; empty where it does not."""
    if not (folder / _PREPROCESSOR).is_file():
        return {}
    said = _read_json(folder / _PREPROCESSOR, "Correct or remove it")
    given = {key: said.get(f"image_{key}") for key in ("mean", "std")}
    is_used = said.get("do_normalize", True) and all(isinstance(one, list) for one in given.values())
    return {key: [float(value) for value in one] for key, one in given.items() if one} if is_used else {}


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        found = read_json(path)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror})", layer=str(path.parent), remedy=remedy
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error})", layer=str(path.parent), remedy=remedy) from error
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} holds no mapping", layer=str(path.parent), remedy=remedy)
    return found
