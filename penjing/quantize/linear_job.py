"""Write a network of few bits in linear and recurrent layers and tables (``dynamic``, ``weight_only``)."""

from __future__ import annotations

from pathlib import Path

from penjing.errors import QuantizeError
from penjing.quantize.apart import emit_apart, encode_apart, told_apart, worst_db
from penjing.quantize.calibrate import calibrate
from penjing.quantize.check import check_file
from penjing.quantize.graph import name_of
from penjing.quantize.job import Job, save_model
from penjing.quantize.linears import emit_linears, encode_linear
from penjing.quantize.pack import save_linears
from penjing.quantize.place import place
from penjing.quantize.result import LayerRow, QuantizeResult
from penjing.quantize.rounding import Moments
from penjing.quantize.runtime import Session


def write_linears(job: Job, out: Path) -> QuantizeResult:
    """Round, write both files, and compare the file with fp32.

    Raises:
        QuantizeError: if the network has no linear layer, or the runtime cannot run the file.
    """
    config = job.config
    ops = tuple(op for op in config.ops if op != "Conv")
    placement = place(job.model.graph, config.model_copy(update={"ops": ops}))
    if not placement.all_layers:
        others = sorted({why for name, why in placement.kept.items() if job.nodes[name].op_type != "Conv"})
        raise QuantizeError(
            f"it has no linear or recurrent layer or table, which is all that mode {config.mode!r} changes"
            if not others
            else f"nothing can be quantized ({'; '.join(others)})",
            remedy="Use mode 'static'" if not others else "Name more ops, or ignore fewer layers",
        )
    layers = {name: job.nodes[name] for name in placement.layers}
    moments = Moments(layers if config.rounding != "nearest" else {}, job.seed)
    if moments.visits:
        job.seen = calibrate(
            job.model,
            job.feeds,
            [],
            observer=job.observer,
            also=moments.visits,
            values_per_sample=config.values_per_sample,
            memory_mb=config.memory_mb,
            listen=job.listen,
        )
    heard = moments.means()
    encoded = {name: encode_linear(node, config, job.guard, heard.get(name)) for name, node in layers.items()}
    apart = encode_apart(job.model, tuple(placement.apart), config, job.guard)
    save_model(emit_apart(emit_linears(job.model, encoded, config), apart, config.mode), out)
    told = told_apart(apart, placement.apart)
    for name, numbers in encoded.items():
        weight = layers[name].inputs[1]
        assert weight is not None
        told.append((name_of(weight), placement.layers[name], numbers))
    scheme = f"{config.weight_bits}-bit symmetric, {config.mode}"
    weights_path = save_linears(out.with_suffix(".safetensors"), job.model, told, scheme)
    measured = check_file(out, Session(job.reference), job.fresh(), config.check_samples)
    weight_db = {name: numbers.weight_db for name, numbers in encoded.items()} | worst_db(apart)
    rows = tuple(
        LayerRow(
            layer,
            job.nodes[name].op_type,
            name in weight_db,
            "" if name in weight_db else placement.kept.get(name, "not a linear layer"),
            weight_db=weight_db.get(name),
        )
        for name, layer in job.names.items()
    )
    guard = job.guard if config.mode == "dynamic" else "off"
    return job.result(out, weights_path, rows, measured, placement, guard)
