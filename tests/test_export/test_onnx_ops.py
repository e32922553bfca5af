"""The op tables to TensorFlow and torch against ONNX Runtime, over the attributes that change a result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from export_models import needs_tensorflow, one_op
from onnx import helper, numpy_helper

from penjing.errors import ExportError

RNG = np.random.default_rng(0)
Check = Callable[..., None]


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


IMAGE = f32(2, 6, 9, 8)
UNIT = RNG.uniform(-0.9, 0.9, (3, 4)).astype(np.float32)
POSITIVE = RNG.uniform(1.1, 3.0, (3, 4)).astype(np.float32)

UNARY_DOMAINS = {
    "Acosh": POSITIVE,
    "Log": POSITIVE,
    "Sqrt": POSITIVE,
    "Acos": UNIT,
    "Asin": UNIT,
    "Atanh": UNIT,
}


UNARY_NAMES = """
Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish
Identity IsInf IsNaN LeakyRelu Log Mish Neg Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh
Softplus Softsign Sqrt Tan Tanh ThresholdedRelu
"""
UNARY = sorted(UNARY_NAMES.strip().replace("\n", " ").split(" "))


@pytest.mark.tf
@needs_tensorflow
def test_every_unary_op_of_the_tables_is_tested() -> None:
    from penjing.export import tf_ops
    from penjing.models import onnx_ops

    untested = {"Not", "Swish", "BitwiseNot"}
    for package in (tf_ops, onnx_ops):
        table = package.elementwise
        assert {*table.UNARY, *table.WITH_ATTRIBUTES} - untested == set(UNARY)


@pytest.mark.parametrize("op_type", UNARY)
def test_unary_ops_agree(op_type: str, same_answer: Check) -> None:
    x = UNARY_DOMAINS.get(op_type, f32(3, 4) * 2)
    same_answer(one_op(op_type, {"x": x}), {"x": x})


@pytest.mark.parametrize(
    "op_type", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Greater", "Less", "Equal", "GreaterOrEqual"]
)
@pytest.mark.parametrize("shape", [(6, 1, 1), (2, 6, 9, 8), (1,), (8,)])
def test_binary_ops_broadcast_after_a_convolution(
    op_type: str, shape: tuple[int, ...], same_answer: Check
) -> None:
    y = f32(*shape) + 3
    same_answer(one_op(op_type, {"x": IMAGE}, constants={"y": y}), {"x": IMAGE})


def test_integer_division_truncates_towards_zero(same_answer: Check) -> None:
    x, y = i64(-7, 7, -8, 8), i64(2, -2, 3, 3)
    same_answer(one_op("Div", {"x": x}, constants={"y": y}), {"x": x})


CONVS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 6, 9, 8), (4, 6, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 6, 9, 8), (4, 6, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ((2, 6, 9, 8), (4, 6, 3, 2), {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
    ((2, 6, 9, 8), (4, 6, 3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    ((2, 6, 9, 8), (4, 3, 3, 3), {"group": 2}),
    ((2, 6, 9, 8), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
    ((2, 6, 9, 8), (12, 1, 3, 3), {"group": 6, "strides": [2, 2]}),
    ((2, 6, 9, 8), (6, 1, 3, 3), {"group": 6, "strides": [2, 1]}),
    ((2, 6, 9, 8), (6, 1, 3, 3), {"group": 6, "dilations": [2, 2], "strides": [2, 2]}),
    ((2, 6, 9, 8), (4, 6, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((2, 6, 9, 8), (4, 6, 3, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ((2, 6, 9), (4, 6, 3), {"pads": [1, 1], "strides": [2]}),
    ((2, 6, 9), (6, 1, 3), {"pads": [1, 1], "group": 6}),
    ((2, 4, 5, 6, 7), (3, 4, 3, 3, 3), {"pads": [1, 1, 1, 1, 1, 1], "strides": [1, 2, 2]}),
    ((2, 4, 5, 6, 7), (4, 2, 1, 3, 3), {"group": 2}),
]


@pytest.mark.parametrize(("x_shape", "w_shape", "attributes"), CONVS)
def test_convolutions_agree(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], attributes: dict[str, Any], same_answer: Check
) -> None:
    x = f32(*x_shape)
    model = one_op("Conv", {"x": x}, constants={"w": f32(*w_shape), "b": f32(w_shape[0])}, **attributes)
    same_answer(model, {"x": x})


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "attributes"),
    [
        ((2, 6, 5, 4), (6, 3, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
        ((2, 6, 5, 4), (6, 2, 2, 2), {"strides": [2, 2], "group": 3}),
        ((2, 6, 5, 4), (6, 3, 3, 3), {"dilations": [2, 2]}),
        ((2, 6, 5, 4), (6, 3, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ((2, 6, 5), (6, 3, 4), {"strides": [2], "pads": [1, 1]}),
    ],
)
def test_transposed_convolutions_agree(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], attributes: dict[str, Any], same_answer: Check
) -> None:
    x = f32(*x_shape)
    bias = f32(w_shape[1] * attributes.get("group", 1))
    same_answer(
        one_op("ConvTranspose", {"x": x}, constants={"w": f32(*w_shape), "b": bias}, **attributes), {"x": x}
    )


POOLS: list[dict[str, Any]] = [
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 0, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [1, 1], "strides": [2, 2]},
    {"kernel_shape": [5, 5], "strides": [1, 1], "pads": [2, 2, 2, 2]},
]


@pytest.mark.parametrize("attributes", POOLS)
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool", "AveragePool/counted"])
def test_pools_agree(kind: str, attributes: dict[str, Any], same_answer: Check) -> None:
    op_type, _, counted = kind.partition("/")
    extra: dict[str, Any] = {"count_include_pad": 1} if counted else {}
    same_answer(one_op(op_type, {"x": IMAGE - 3}, **attributes, **extra), {"x": IMAGE - 3})


def test_writing_nothing_changes_nothing(same_answer: Check) -> None:
    empty: dict[str, Any] = {"at": np.zeros((0, 1), np.int64), "u": np.zeros((0, 4), np.float32)}
    same_answer(one_op("ScatterND", {"x": UNIT}, constants=empty), {"x": UNIT})
    nothing = np.zeros((3, 0), np.float32)
    into = {"x": nothing, "at": i64(0).reshape(1, 1), "u": np.zeros((1, 0), np.float32)}
    same_answer(
        one_op("ScatterND", {"y": UNIT[:, :0]}, constants=into, order=["x", "at", "u"]), {"y": nothing}
    )


BLOCKS: list[dict[str, Any]] = [
    {"block": (3, 3), "windows": 20, "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"block": (2, 3), "windows": 8 * 6},
    {"block": (2, 2), "windows": 7 * 6, "dilations": [2, 2]},
    {"block": (3, 3), "windows": 9, "strides": [3, 3], "pads": [0, 1, 2, 2]},
]


@pytest.mark.parametrize("attributes", BLOCKS)
def test_blocks_are_laid_back_into_the_image(attributes: dict[str, Any], same_answer: Check) -> None:
    given = dict(attributes)
    block, windows = given.pop("block"), given.pop("windows")
    x = f32(2, 4 * int(np.prod(block)), windows)
    shapes = {"image": i64(9, 8), "block": i64(*block)}
    same_answer(one_op("Col2Im", {"x": x}, constants=shapes, **given), {"x": x})


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pools_agree(op_type: str, same_answer: Check) -> None:
    same_answer(one_op(op_type, {"x": IMAGE}), {"x": IMAGE})


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [1], [-1], [0, 2]])
@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp"])
def test_reductions_agree(op_type: str, axes: list[int], keepdims: int, same_answer: Check) -> None:
    model = one_op(op_type, {"x": IMAGE}, constants={"axes": i64(*axes)}, keepdims=keepdims)
    same_answer(model, {"x": IMAGE})


def test_normalisations_agree(same_answer: Check) -> None:
    six = {name: np.abs(f32(6)) + 0.5 for name in ("scale", "bias", "mean", "var")}
    same_answer(one_op("BatchNormalization", {"x": IMAGE}, constants=six), {"x": IMAGE})
    two = {"scale": f32(6), "bias": f32(6)}
    same_answer(one_op("InstanceNormalization", {"x": IMAGE}, constants=two), {"x": IMAGE})
    last = {"scale": f32(9, 8), "bias": f32(9, 8)}
    same_answer(one_op("LayerNormalization", {"x": IMAGE}, constants=last, axis=2), {"x": IMAGE})


def test_mean_variance_normalisation_agrees(same_answer: Check) -> None:
    same_answer(one_op("MeanVarianceNormalization", {"x": IMAGE}, axes=[0, 2, 3]), {"x": IMAGE})
    same_answer(one_op("MeanVarianceNormalization", {"x": IMAGE}, axes=[1, 2]), {"x": IMAGE})


def test_norms_that_share_a_weight_stay_two(same_answer: Check) -> None:
    model = one_op("BatchNormalization", {"x": IMAGE}, constants={n: np.abs(f32(6)) + 0.5 for n in "sbmv"})
    model.graph.initializer.append(numpy_helper.from_array(np.abs(f32(6)) + 2, "v2"))
    model.graph.node.append(helper.make_node("BatchNormalization", ["y0", "s", "b", "m", "v2"], ["z"]))
    model.graph.output[0].name = "z"
    same_answer(model, {"x": IMAGE})


@pytest.mark.parametrize("opset", [11, 20])
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_softmax_agrees(op_type: str, axis: int, opset: int, same_answer: Check) -> None:
    same_answer(one_op(op_type, {"x": IMAGE}, axis=axis, opset=opset), {"x": IMAGE})


@pytest.mark.parametrize(
    ("left", "right"),
    [((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((2, 4), (4,)), ((2, 5, 3, 4), (5, 4, 2))],
)
def test_matrix_products_agree(left: tuple[int, ...], right: tuple[int, ...], same_answer: Check) -> None:
    x = f32(*left)
    same_answer(one_op("MatMul", {"x": x}, constants={"w": f32(*right)}), {"x": x})


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_agrees(trans: int, same_answer: Check) -> None:
    x, w = f32(3, 4), f32(5, 4) if trans else f32(4, 5)
    model = one_op("Gemm", {"x": x}, constants={"w": w, "b": f32(5)}, transB=trans, alpha=0.5, beta=2.0)
    same_answer(model, {"x": x})


SHAPES: list[tuple[str, dict[str, np.ndarray], dict[str, Any], int]] = [
    ("Reshape", {"s": i64(0, 3, -1, 8)}, {}, 1),
    ("Flatten", {}, {"axis": 1}, 1),
    ("Transpose", {}, {"perm": [0, 2, 3, 1]}, 1),
    ("Transpose", {}, {"perm": [0, 3, 1, 2]}, 1),
    ("Transpose", {}, {"perm": [3, 1, 0, 2]}, 1),
    ("Split", {"s": i64(1, 2, 3)}, {"axis": 1}, 3),
    ("Slice", {"a": i64(1, -3), "b": i64(9, 2**62), "c": i64(1, 3)}, {}, 1),
    ("Slice", {"a": i64(-1), "b": i64(-(2**62)), "c": i64(2), "d": i64(-2)}, {}, 1),
    ("Unsqueeze", {"s": i64(1, -1)}, {}, 1),
    ("Tile", {"s": i64(1, 2, 1, 3)}, {}, 1),
    ("Expand", {"s": i64(2, 1, 6, 1, 8)[1:2]}, {}, 1),
    ("Gather", {"i": i64(2, 0, -1)}, {"axis": 1}, 1),
    ("Gather", {"i": np.array(-2, np.int64)}, {"axis": 3}, 1),
    ("GatherND", {"i": np.array([[0, 1], [1, -1]], np.int64)}, {}, 1),
    ("CumSum", {"a": np.array(1, np.int64)}, {}, 1),
    ("Trilu", {"k": np.array(1, np.int64)}, {"upper": 0}, 1),
    ("Pad", {"p": i64(0, 0, 1, 2, 0, 1, 0, 3)}, {}, 1),
    ("Pad", {"p": i64(0, 0, 1, 2, 0, 0, 2, 3)}, {"mode": "reflect"}, 1),
    ("Pad", {"p": i64(0, 0, 1, 2, 0, 0, 2, 3)}, {"mode": "edge"}, 1),
    ("Pad", {"p": i64(0, 0, -1, 2, 0, 0, -2, 0)}, {}, 1),
    ("Shape", {}, {}, 1),
    ("Shape", {}, {"start": 1, "end": 3}, 1),
    ("ArgMax", {}, {"axis": 1, "keepdims": 0}, 1),
    ("LpNormalization", {}, {"axis": 1}, 1),
    ("LRN", {}, {"size": 3}, 1),
    ("TopK", {"k": i64(3)}, {"axis": 1}, 2),
    ("TopK", {"k": i64(3)}, {"axis": -1, "largest": 0}, 2),
    ("Clip", {"lo": np.array(-0.5, np.float32), "hi": np.array(0.7, np.float32)}, {}, 1),
    ("PRelu", {"slope": f32(6, 1, 1)}, {}, 1),
    ("Pow", {"e": np.array(2.0, np.float32)}, {}, 1),
    ("Cast", {}, {"to": 7}, 1),
    ("NonZero", {}, {}, 1),
    ("Einsum", {"w": f32(6, 5)}, {"equation": "nchw,cd->ndhw"}, 1),
]


@pytest.mark.parametrize(("op_type", "constants", "attributes", "outputs"), SHAPES)
def test_shape_and_index_ops_agree(
    op_type: str,
    constants: dict[str, np.ndarray],
    attributes: dict[str, Any],
    outputs: int,
    same_answer: Check,
) -> None:
    model = one_op(op_type, {"x": IMAGE}, constants=constants, num_outputs=outputs, **attributes)
    same_answer(model, {"x": IMAGE})


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_the_place_of_an_extreme_integer_is_found(op_type: str, same_answer: Check) -> None:
    x = np.array([[3, 2**40 + 1, 2**40, 2**40 + 1], [5, -(2**40), -(2**40), 7]], np.int64)
    same_answer(one_op(op_type, {"x": x}, axis=1, keepdims=1), {"x": x})


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_agrees(mode: str, same_answer: Check) -> None:
    x = f32(2, 8, 3, 4)
    same_answer(one_op("DepthToSpace", {"x": x}, blocksize=2, mode=mode), {"x": x})


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("op_type", ["GatherElements", "ScatterElements"])
def test_element_indexing_agrees(op_type: str, axis: int, same_answer: Check) -> None:
    x = f32(3, 4)
    constants = {"i": np.array([[0, 2, 1, -1], [1, 0, 2, 2]], np.int64)}
    if op_type == "ScatterElements":
        constants |= {"u": f32(2, 4)}
        constants["i"] = (
            np.array([[0, 1, 2, 0], [1, 0, 0, 2]], np.int64)
            if axis == 0
            else np.array([[0, 2, 1, -1], [1, 0, 2, 3]], np.int64)
        )
    same_answer(one_op(op_type, {"x": x}, constants=constants, axis=axis), {"x": x})


@pytest.mark.parametrize("rule", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("scale", [(2.0, 2.0), (0.5, 1.3)])
def test_resize_agrees(mode: str, rule: str, scale: tuple[float, float], same_answer: Check) -> None:
    constants = {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, *scale], np.float32)}
    model = one_op(
        "Resize", {"x": IMAGE}, constants=constants, mode=mode, coordinate_transformation_mode=rule
    )
    same_answer(model, {"x": IMAGE}, rtol=1e-4)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_recurrent_layers_agree(op_type: str, gates: int, direction: str, same_answer: Check) -> None:
    x, hidden = f32(7, 2, 5), 6
    count = 2 if direction == "bidirectional" else 1
    constants = {
        "w": f32(count, gates * hidden, 5),
        "r": f32(count, gates * hidden, hidden),
        "b": f32(count, 2 * gates * hidden),
    }
    extra: dict[str, Any] = {"linear_before_reset": 1} if op_type == "GRU" else {}
    model = one_op(
        op_type,
        {"x": x},
        constants=constants,
        num_outputs=3 if gates == 4 else 2,
        hidden_size=hidden,
        direction=direction,
        **extra,
    )
    same_answer(model, {"x": x})


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_quantize_then_dequantize_is_exact(dtype: type, same_answer: Check) -> None:
    x = (f32(3, 50) * 4).round(1)
    quantized = one_op(
        "QuantizeLinear", {"x": x}, constants={"s": np.array(0.05, np.float32), "z": np.array(7, dtype)}
    )
    same_answer(quantized, {"x": x}, rtol=0.0)


@pytest.mark.tf
@needs_tensorflow
def test_an_op_without_a_rule_is_named(tmp_path: Any) -> None:
    import onnx

    from penjing.export.saved_model import write_saved_model

    x = f32(2, 3)
    onnx.save(one_op("Bernoulli", {"x": np.abs(x)}), str(tmp_path / "m.onnx"))
    with pytest.raises(ExportError, match="Bernoulli") as caught:
        write_saved_model(tmp_path / "m.onnx", tmp_path / "sm")
    assert caught.value.layer == "the_Bernoulli"
    assert not (tmp_path / "sm").exists()
