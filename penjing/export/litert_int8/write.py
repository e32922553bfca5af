"""Convert a SavedModel to full int8, keep in float what int8 would break, and tell what that was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from penjing.errors import ExportError
from penjing.export.coexist import quiet_tf
from penjing.export.inputs import Feeds
from penjing.export.litert_int8.compare import Judge
from penjing.export.litert_int8.graph import CASTS, MOVES, Operation, operations
from penjing.export.litert_int8.normalisation import ROOTS, normalisations
from penjing.export.litert_int8.ranges import infinite, with_ranges
from penjing.export.litert_int8.search import Choice, Search
from penjing.export.verify import QUANTIZED_TOLERANCE
from penjing.log import without_lines

with quiet_tf():
    from tensorflow.lite.python import convert

RANGE_SHARE = 0.75
"""Share of the samples that set ranges; files are compared on the others as well."""
COMPARED = 64
"""Samples on which files are compared: the last ones, so that those held back are among them."""
INFINITE = 4
"""Samples that show which values become infinite, where masks do."""
NAMED = 12
"""Operations named in a note; the rest is counted."""


@dataclass(frozen=True)
class Integer:
    """A full int8 file.

    Attributes:
        content: The file.
        notes: What stayed in float, and why; where the file is no smaller for being int8, that.
    """

    content: bytes
    notes: tuple[str, ...]


def to_integer(converter: Any, samples: Sequence[Feeds]) -> Integer:
    """Quantize what ``converter`` converts.

    The float file is calibrated once; each candidate is then quantized from it in a moment.

    Args:
        converter: TensorFlow's, with the model.
        samples: Calibration inputs by name, one sample each: the first three quarters set the ranges, the
            last 64 compare.

    Returns:
        The file and what stayed in float.

    Raises:
        ExportError: if the outputs are lost even with everything in float that can be.
    """
    calibrated = _calibrated(converter, samples)
    every = operations(calibrated)
    norms = normalisations([op for op in every if op.dtype == "FLOAT32"])
    endless = infinite(calibrated, samples[:INFINITE])
    masks = [op for op in every if op.dtype == "FLOAT32" and endless & {*op.inputs, *op.outputs}]
    always = frozenset(op.name for ops in (*norms, masks) for op in ops)

    def quantize(kept: frozenset[str]) -> bytes:
        with quiet_tf(), without_lines("fully_quantize:"):  # printed for every file
            content: bytes = convert.mlir_quantize(calibrated, denylisted_nodes=set(always | kept))
        return content

    judge = Judge(calibrated, samples[-COMPARED:])
    able = [op for op in _with_kernel(every, quantize(frozenset())) if op.name not in always]
    choice = Search(quantize, judge, able).run() if able else _as_it_is(quantize, judge)
    if 10 ** (-choice.quality.snr / 20) > QUANTIZED_TOLERANCE:
        left = [str(op) for op in operations(choice.content) if op.dtype == "INT8" and op.kind not in CASTS]
        raise ExportError(
            f"int8 loses the outputs ({choice.quality}), whatever stays in float",
            layer=_named(left) if left else None,
            remedy="Use 'litert_dynamic' or 'litert_fp16', or give calibration data like the real inputs",
        )
    plain = quantize(frozenset(op.name for op in every))
    told = (*_notes(choice, norms, masks, every, able), *_not_smaller(choice.content, plain))
    return Integer(choice.content, told)


def _calibrated(converter: Any, samples: Sequence[Feeds]) -> bytes:
    """The float file with ranges."""
    converter.representative_dataset = lambda: iter(samples[:1])  # the ranges are set below
    converter._experimental_calibrate_only = True
    content: bytes = converter.convert()
    return with_ranges(content, samples[: max(min(8, len(samples)), int(RANGE_SHARE * len(samples)))])


def _with_kernel(every: Sequence[Operation], content: bytes) -> list[Operation]:
    """Those that the quantizer turned into int8; their names may change, their order does not."""
    made = [op for op in operations(content) if op.kind not in CASTS]
    if [op.kind for op in made] != [op.kind for op in every]:
        return [op for op in every if op.dtype == "FLOAT32"]
    return [
        op for op, now in zip(every, made, strict=True) if op.dtype == "FLOAT32" and now.dtype != "FLOAT32"
    ]


def _as_it_is(quantize: Callable[[frozenset[str]], bytes], judge: Judge) -> Choice:
    content = quantize(frozenset())
    return Choice(content, (), judge(content))


def _notes(
    choice: Choice,
    norms: Sequence[Sequence[Operation]],
    masks: Sequence[Operation],
    every: Sequence[Operation],
    able: Sequence[Operation],
) -> Iterator[str]:
    if norms:
        roots = [str(next(op for op in norm if op.kind in ROOTS)) for norm in norms]
        yield f"normalisation stays in float, as a variance spans too much for 8 bits: {_named(roots)}"
    if masks:
        yield f"infinities stay in float, as 8 bits have none: {_named(list(map(str, masks)))}"
    if choice.kept:
        share = sum(op.macs for op in choice.kept) / max(sum(op.macs for op in every), 1)
        # what only moves values follows its neighbours
        names = [str(op) for op in choice.kept if op.kind not in MOVES] or list(map(str, choice.kept))
        yield (
            f"kept in float, where int8 costs answers most ({100 * share:.1f}% of the multiplications; "
            f"now {choice.quality} on calibration samples): {_named(names)}"
        )
    known = {op.name for op in (*able, *masks, *(op for norm in norms for op in norm))}
    unable = Counter(
        op.kind for op in every if op.dtype == "FLOAT32" and op.name not in known and op.kind not in MOVES
    )
    if unable:
        kinds = ", ".join(f"{kind} × {count}" for kind, count in sorted(unable.items()))
        yield f"left in float by LiteRT's quantizer: {kinds}"


def _not_smaller(content: bytes, plain: bytes) -> Iterator[str]:
    if len(content) >= len(plain):
        yield (
            f"the int8 file is not smaller than the float one ({len(content):,} and {len(plain):,} bytes): "
            "scales and changes of type take more than such small weights save"
        )


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
