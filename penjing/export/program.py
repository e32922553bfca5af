"""The program format: a traced network as JSON and safetensors, run again without the class that defined it.

``program.json`` holds the ATen graph (operator names, arguments, signature) and the list of tensors;
``model.safetensors`` holds the state under the names of the original ``state_dict``;
``constants.safetensors`` holds tensors that the graph needs beside it. Nothing is pickled, and
loading can call only the operators of `program_ops`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from penjing.archives import memory_bytes
from penjing.errors import ArtifactError
from penjing.export.program_graph import decode_graph, encode_graph
from penjing.export.program_tensors import TensorEntry, load_tensors, save_tensors
from penjing.export.program_values import decode_tree, decode_value
from penjing.files import read_json, write_json
from penjing.graph import Graph, GraphModel
from penjing.graph.inputs import as_examples

PROGRAM_FILE = "program.json"
FORMAT = "penjing-program"
VERSION = 1


def save_program(program: Graph | GraphModel | fx.GraphModule, folder: Path | str) -> None:
    """Write ``program.json`` and its safetensors files into ``folder``, which is made if need be.

    Raises:
        ExportError: when the graph holds an operator or an argument that cannot be stored, naming the node.
        RunError: when the folder cannot be written.
    """
    folder = Path(folder)
    module = program.module if isinstance(program, Graph) else program
    graph = encode_graph(module)
    folder.mkdir(parents=True, exist_ok=True)
    entries = save_tensors(module, folder)
    data = {
        "format": FORMAT,
        "version": VERSION,
        "graph": graph,
        "tensors": [entry.to_dict() for entry in entries],
    }
    write_json(folder / PROGRAM_FILE, data)


def load_program(folder: Path | str) -> GraphModel:
    """Build the network stored in ``folder``: trainable, with the original ``state_dict`` names.

    Raises:
        ArtifactError: when a file is missing, damaged, of a newer version, or names a function that a
            program may not call.
    """
    folder = Path(folder)
    data = read_program(folder)
    with told_damaged(folder):
        entries = [TensorEntry.from_dict(entry) for entry in data["tensors"]]
        root = load_tensors(entries, folder)
        module = decode_graph(data["graph"], root)
    # fx keeps what the graph reads; unused parameters and the order of names belong to the model as well.
    module._parameters, module._buffers, module._modules = root._parameters, root._buffers, root._modules
    module._non_persistent_buffers_set = root._non_persistent_buffers_set
    aliases = {entry.name: entry.same_as for entry in entries if entry.same_as is not None}
    params = dict(module.named_parameters())
    buffers = dict(module.named_buffers())
    return GraphModel(Graph(module, params, buffers, aliases))


@contextmanager
def told_damaged(folder: Path = Path()) -> Iterator[None]:
    """What goes wrong inside, with what a program says, is told as damage of its file.

    Raises:
        ArtifactError: naming it.
    """
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ArtifactError(
            f"{folder / PROGRAM_FILE} is damaged ({type(error).__name__}: {error})",
            layer=PROGRAM_FILE,
            remedy="Copy the folder again, or write it again from the model",
        ) from error


def example_inputs_of(data: Mapping[str, Any], *, batch: int = 2, seed: int = 0) -> Any:
    """Inputs that fit a stored program: normal noise for floating-point tensors, zeros for integers.

    Args:
        data: Content of ``program.json``.
        batch: Size of the dimensions that may vary.
        seed: Of the noise.

    Returns:
        A tensor, a tuple or a dict, as the program takes them.

    Raises:
        ArtifactError: for a program that is damaged, or was stored without the shapes of its inputs.
    """
    with told_damaged():
        return _noise(data, batch, seed)


def _noise(data: Mapping[str, Any], batch: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    leaves = []
    for node in data["graph"]["nodes"]:
        if node["op"] != "placeholder":
            continue
        if "example" not in node:
            raise ArtifactError(
                f"{PROGRAM_FILE} does not tell the shape of its input {node['name']!r}",
                layer=PROGRAM_FILE,
                remedy="Write the artifact again with this release",
            )
        shape = [batch if size == "batch" else size for size in node["example"]["shape"]]
        if 8 * math.prod(shape) > memory_bytes():
            raise ValueError(f"input {node['name']!r} of shape {shape} is larger than the memory")
        dtype: torch.dtype = decode_value({"dtype": node["example"]["dtype"]}, {})
        noise = torch.randn(shape, generator=generator)
        leaves.append(noise.to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype))
    args, kwargs = pytree.tree_unflatten(leaves, decode_tree(data["graph"]["inputs"]))
    return as_examples(args, kwargs)


def read_program(folder: Path) -> dict[str, Any]:
    """The content of ``program.json`` after checking format and version."""
    path = folder / PROGRAM_FILE
    try:
        data = read_json(path)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path} does not exist", layer=PROGRAM_FILE, remedy="Give a whole artifact folder"
        ) from error
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} is not readable JSON ({error})", layer=PROGRAM_FILE, remedy="Copy it again"
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("version"), int):
        raise ArtifactError(
            f"{path} is no program", layer=PROGRAM_FILE, remedy="Give a folder written by penjing"
        )
    if data["version"] > VERSION:
        raise ArtifactError(
            f"{path} has version {data['version']}; this penjing reads up to {VERSION}",
            layer=PROGRAM_FILE,
            remedy="Install a newer penjing",
        )
    return data
