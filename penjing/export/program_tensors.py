"""The tensors of a stored program: its state, and in a file of their own the constants its graph needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import fx, nn

from penjing.errors import ArtifactError
from penjing.export.program_graph import check_tensor_name, tensors_used
from penjing.files import atomic_write, check_permitted

STATE_FILE = "model.safetensors"
CONSTANTS_FILE = "constants.safetensors"


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a program.

    Attributes:
        name: Dotted name, as in the original model's ``state_dict``.
        kind: ``"parameter"``, ``"buffer"`` or ``"constant"`` (used by the graph, no part of the state).
        dtype: Without the ``torch.`` prefix.
        shape: Sizes.
        requires_grad: For parameters.
        same_as: Name of the earlier entry this one shares its tensor with (tied weights), or None.
        order: Dimensions from outermost to innermost in memory when not row-major (``channels_last``).
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    requires_grad: bool = False
    same_as: str | None = None
    order: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data without the fields at their defaults."""
        data = {key: value for key, value in asdict(self).items() if value not in (None, False)}
        return data | {"shape": list(self.shape)} | ({"order": list(self.order)} if self.order else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TensorEntry:
        """The inverse of `to_dict`."""
        order = data.get("order")
        return cls(
            **{**data, "shape": tuple(data["shape"]), "order": None if order is None else tuple(order)}
        )


def save_tensors(module: fx.GraphModule, folder: Path) -> list[TensorEntry]:
    """Write all parameters, buffers and constants of ``module`` to ``folder`` and list them."""
    persistent = module.state_dict(keep_vars=True).keys()
    found: list[tuple[str, str, torch.Tensor]] = []
    found += [(name, "parameter", tensor) for name, tensor in module.named_parameters(remove_duplicate=False)]
    found += [
        (name, "buffer" if name in persistent else "constant", tensor)
        for name, tensor in module.named_buffers(remove_duplicate=False)
    ]
    known = {name for name, _, _ in found}
    found += [(name, "constant", tensor) for name, tensor in tensors_used(module) if name not in known]

    entries: dict[str, TensorEntry] = {}
    owners: dict[int, str] = {}
    files: dict[str, dict[str, torch.Tensor]] = {STATE_FILE: {}, CONSTANTS_FILE: {}}
    storages: set[int] = set()
    for name, kind, tensor in found:
        if name in entries:
            continue
        first = owners.setdefault(id(tensor), name)
        order = _memory_order(tensor)
        entries[name] = TensorEntry(
            name=name,
            kind=kind,
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
            requires_grad=tensor.requires_grad,
            same_as=None if first == name else first,
            order=order,
        )
        if first == name:
            target = CONSTANTS_FILE if kind == "constant" else STATE_FILE
            files[target][name] = _for_file(tensor, order, storages)
    for file, tensors in files.items():
        if tensors or file == STATE_FILE:
            with atomic_write(folder / file) as aside:  # readable as the umask says, not by its writer alone
                save_file(tensors, aside, metadata={"format": "pt"})
    return list(entries.values())


def load_tensors(entries: list[TensorEntry], folder: Path) -> nn.Module:
    """A bare module tree holding all tensors that `save_tensors` wrote, in the same order, ties kept.

    Raises:
        ArtifactError: when a file is missing or damaged, or a tensor is missing or of another shape or type.
    """
    files = {STATE_FILE: read_safetensors(folder / STATE_FILE)}
    if any(entry.kind == "constant" and entry.same_as is None for entry in entries):
        files[CONSTANTS_FILE] = read_safetensors(folder / CONSTANTS_FILE)
    root = nn.Module()
    made: dict[str, torch.Tensor] = {}
    for entry in entries:
        check_tensor_name(entry.name)
        if entry.same_as is not None:
            tensor = made[entry.same_as]
        else:
            file = CONSTANTS_FILE if entry.kind == "constant" else STATE_FILE
            tensor = _from_file(entry, files[file].pop(entry.name, None), folder / file)
            if entry.kind == "parameter":
                tensor = nn.Parameter(tensor, requires_grad=entry.requires_grad)
        made[entry.name] = tensor
        _attach(root, entry, tensor)
    return root


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file.

    Raises:
        ArtifactError: when the file is missing or is no safetensors file.
    """
    if path.is_dir():
        raise ArtifactError(
            f"{path} is a folder", layer=path.name, remedy=f"Give a file, such as {path / STATE_FILE}"
        )
    if not path.is_file():
        raise ArtifactError(
            f"{path} does not exist", layer=path.name, remedy="Give the folder or file that was written whole"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        check_permitted(path, ArtifactError)
        raise ArtifactError(
            f"{path} is not a readable safetensors file ({error})",
            layer=path.name,
            remedy="Copy or write the file again; convert pickled checkpoints to safetensors",
        ) from error


def _memory_order(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """Dimensions by falling stride, when it is dense but not row-major: kernels round differently."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return None
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dim: (-strides[dim], dim))
    return tuple(order) if tensor.permute(order).is_contiguous() else None


def _for_file(tensor: torch.Tensor, order: tuple[int, ...] | None, storages: set[int]) -> torch.Tensor:
    plain = tensor.detach() if order is None else tensor.detach().permute(order)
    plain = plain.cpu().contiguous()
    storage = plain.untyped_storage()
    if storage.data_ptr() in storages or storage.nbytes() != plain.nbytes:
        plain = plain.clone()
    storages.add(plain.untyped_storage().data_ptr())
    return plain


def _from_file(entry: TensorEntry, plain: torch.Tensor | None, path: Path) -> torch.Tensor:
    stored = tuple(entry.shape) if entry.order is None else tuple(entry.shape[dim] for dim in entry.order)
    if plain is None or tuple(plain.shape) != stored or str(plain.dtype) != f"torch.{entry.dtype}":
        what = (
            "is missing"
            if plain is None
            else f"is {plain.dtype} {list(plain.shape)} instead of {entry.dtype} {stored}"
        )
        raise ArtifactError(
            f"tensor {entry.name!r} {what} in {path}",
            layer=entry.name,
            remedy="Write the file again from the model",
        )
    if entry.order is None:
        return plain
    return plain.permute([entry.order.index(dim) for dim in range(len(entry.order))])


def _attach(root: nn.Module, entry: TensorEntry, tensor: torch.Tensor) -> None:
    *path, last = entry.name.split(".")
    module = root
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if entry.kind == "parameter":
        assert isinstance(tensor, nn.Parameter)
        module.register_parameter(last, tensor)
    else:
        module.register_buffer(last, tensor, persistent=entry.kind == "buffer")
