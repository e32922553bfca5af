"""Options of post-training quantization."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from penjing.config import Config
from penjing.quantize.observe import observers

_Op = Literal["Conv", "Gemm", "MatMul", "LSTM", "Gather"]


class QuantizeConfig(Config):
    """How a network is brought to int8: unsigned 8-bit activations, signed 8-bit weights per output channel.

    Attributes:
        mode: ``"static"``: activations and weights in 8 bits, ranges from calibration. ``"dynamic"``: linear
            layers, LSTMs and tables alone, activation ranges found while running. ``"weight_only"``: weights
            of linear and recurrent layers and tables alone, in 8 bits, or of linear ones in 4.
        block: Inputs that share a step, for 4-bit weights alone; a power of two.
        observer: How activation ranges are found, by name (``penjing.quantize.observers()`` lists them);
            ``"auto"`` takes least squared error or all that was seen, whichever leaves the network's output
            closer to fp32 on calibration data.
        align_inputs: Store images that were normalised from 8 bits on their own grid, without error.
        weights: How each output channel's weight scale is found: its largest magnitude, or least squared
            error.
        weight_bits: Bits of a weight's levels. Below 8 they are still stored in bytes, which makes nothing
            faster: a simulation of what fewer bits cost.
        samples: Samples read from the data, at most, with those of ``check_samples``: its first ones, so in
            Python give batches that are not sorted by class (a note says so where labels show it).
        values_per_sample: Values per tensor and sample that enter the histograms (extremes are always exact).
        memory_mb: Activations held at one time while calibrating, at most (at least one sample is).
        equalize: Even out channel ranges across layers where the function stays the same.
        bias_correction: Put the mean output error of the rounded weights into the biases.
        rounding: ``"second_order"``: each weight's rounding error is carried over to the weights not yet
            rounded, by the calibration inputs' second moments; ``"descent"``: that, and then each weight's
            level in turn to its best given all others, for few bits; ``"blocks"``: that of second order, and
            then weights, steps and biases of each block trained to give its fp32 output; or ``"nearest"``.
        block_steps: Training steps of each block, for ``rounding="blocks"``.
        reduce_range: How weights are kept from overflowing the 16-bit sums of CPUs without int8 dot products:
            ``"pairs"`` limits only the weight pairs that would, ``"full"`` uses 7 bits, ``"off"`` neither,
            ``"auto"`` is ``"pairs"`` where this machine needs it.
        widen: Pad widths between int8 convolutions with zero channels to what int8 kernels take whole, and
            fold or pad the images that come to them.
        max_drop: Largest accepted drop of the metric (a fraction, 0.01 is one point); layers go back to float
            until it holds. None: no layer goes back.
        sensitivity: Measure each layer's share of the error even when ``max_drop`` asks for nothing.
        ignore: Layers kept in float, by name or by shell pattern.
        ops: Op types to quantize besides what follows from them, in every mode. An LSTM becomes ONNX
            Runtime's own 8-bit one, which no other runtime reads (in ``"weight_only"`` it does not); without
            ``"LSTM"`` it stays in float. ``"Gather"`` stands for tables of embeddings: 8 bits a number, a
            step a row, and what is looked up is restored to float.
        min_agreement_db: Where the file's int8 kernels agree with the simulation of the same file to less
            than this, they must at least be as close to fp32 as the simulation is (to 1 dB), or it is an
            error; -inf never looks.
        dynamic_axes: Of a module that is exported first, sizes beside the batch that callers of the file
            choose: input (or a pattern) → dimension → name.
        check_samples: Samples on which the written file is compared with fp32 and with its simulation, at
            most: of every four samples one, which is kept out of calibration until there are so many.
    """

    mode: Literal["static", "dynamic", "weight_only"] = "static"
    block: Literal[16, 32, 64, 128, 256] = 32
    observer: str = "auto"
    align_inputs: bool = True
    weights: Literal["absmax", "mse"] = "mse"
    weight_bits: Annotated[int, Field(ge=2, le=8)] = 8
    samples: Annotated[int, Field(ge=1)] = 256
    values_per_sample: Annotated[int, Field(ge=16)] = 4096
    memory_mb: Annotated[int, Field(ge=1)] = 96
    equalize: bool = True
    bias_correction: bool = True
    rounding: Literal["nearest", "second_order", "descent", "blocks"] = "second_order"
    block_steps: Annotated[int, Field(ge=1)] = 200
    reduce_range: Literal["auto", "off", "pairs", "full"] = "auto"
    widen: bool = True
    max_drop: Annotated[float | None, Field(ge=0, le=1)] = None
    sensitivity: bool = False
    ignore: tuple[str, ...] = ()
    ops: tuple[_Op, ...] = ("Conv", "Gemm", "MatMul", "LSTM", "Gather")
    min_agreement_db: float = Field(default=35.0, lt=math.inf, allow_inf_nan=True)
    dynamic_axes: dict[str, dict[int, str]] = Field(default_factory=dict)
    check_samples: Annotated[int, Field(ge=1)] = 16

    @model_validator(mode="after")
    def _written_forms(self) -> Self:
        allowed = {"static": range(2, 9), "dynamic": (8,), "weight_only": (4, 8)}[self.mode]
        if self.weight_bits not in allowed:
            raise ValueError(f"mode {self.mode!r} takes weight_bits of {', '.join(map(str, allowed))}")
        if self.mode != "static" and (self.max_drop is not None or self.sensitivity):
            raise ValueError(f"max_drop and sensitivity are for mode 'static', not {self.mode!r}")
        if self.mode != "static" and self.rounding == "blocks":
            raise ValueError(f"rounding 'blocks' is for mode 'static', not {self.mode!r}")
        return self

    @field_validator("observer")
    @classmethod
    def _known_observer(cls, name: str) -> str:
        if name not in {"auto", *observers()}:
            raise ValueError(f"unknown observer {name!r}; known: auto, {', '.join(sorted(observers()))}")
        return name
