"""Ops that act on aligned elements: axes are equated under broadcasting."""

from __future__ import annotations

from penjing.graph.rules.table import Axes, Op, rule

UNARY = """abs neg sign exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal square sin cos tan asin
acos atan sinh cosh asinh acosh atanh erf erfc relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid
hardsigmoid hardswish hardtanh tanh softplus softshrink hardshrink threshold logit log_sigmoid rrelu floor
ceil round trunc frac clamp_min clamp_max clamp clip nan_to_num isnan isinf isfinite logical_not bitwise_not
dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout bernoulli contiguous clone alias
detach to type_as _to_copy lift_fresh lift_fresh_copy lift positive conj real fill zero zeros_like ones_like
full_like empty_like rand_like randn_like view_as_real_copy requires_grad fake_quantize_per_tensor_affine
deg2rad rad2deg sinc digamma lgamma sgn cpu cuda absolute special_expit special_erf erfinv i0 angle imag
_conj _conj_physical conj_physical resolve_conj _neg_view resolve_neg signbit isposinf isneginf special_entr
special_erfcx special_log_ndtr special_ndtri special_i0e special_i1 special_i1e special_ndtr special_gammaln
special_psi special_digamma special_erfc special_erfinv special_expm1 special_exp2 special_log1p
special_logit special_round special_sinc special_i0 special_bessel_j0 special_bessel_j1 special_bessel_y0
special_bessel_y1 special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0
special_modified_bessel_k1 polygamma special_polygamma mvlgamma special_multigammaln"""
BINARY = """add sub mul div rsub floor_divide remainder fmod pow maximum minimum fmax fmin atan2 eq ne lt le
gt ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor bitwise_left_shift
bitwise_right_shift __and__ __or__ __xor__ __iand__ __ior__ __ixor__ where masked_fill addcmul addcdiv lerp
copysign hypot true_divide multiply subtract divide greater less greater_equal less_equal not_equal xlogy
logaddexp isclose nextafter float_power heaviside ldexp logaddexp2 gcd lcm special_xlog1py special_xlogy
special_zeta special_gammainc special_gammaincc igamma igammac"""


@rule(*(f"aten.{name}" for name in UNARY.split()))
def same(op: Op) -> Axes:
    """The first tensor's axes; a second tensor only lends its type, device or shape."""
    first = next(value for value in op.args.values() if op.is_tensor(value))
    return op.axes(first)


@rule(*(f"aten.{name}" for name in BINARY.split()))
def aligned(op: Op) -> Axes:
    """All tensor arguments broadcast together."""
    return op.broadcast(*op.tensors())


@rule("aten.clamp.Tensor", "aten.clamp_min.Tensor", "aten.clamp_max.Tensor", "aten.bernoulli.Tensor")
def clamped(op: Op) -> Axes:
    """Bounds given as tensors broadcast too."""
    return op.broadcast(*op.tensors())


@rule("aten.copy")
def copied(op: Op) -> Axes:
    """``x.copy_(y)``: y broadcasts to x."""
    target = op.axes(op.args["self"])
    op.broadcast(target, op.axes(op.args["src"]))
    return target


@rule("aten.prelu")
def prelu(op: Op) -> Axes:
    """A slope for each channel (dim 1), or a single one."""
    x, weight = op.axes(op.args["self"]), op.axes(op.args["weight"])
    if weight and weight[0].size > 1:
        op.unify(x[1] if len(x) > 1 else x[0], weight[0])
    return x


@rule("aten.glu")
def glu(op: Op) -> Axes:
    """``a · sigmoid(b)`` of the two halves."""
    x = list(op.axes(op.args["self"]))
    dim = op.dim(op.args["dim"], len(x))
    first, second = op.cut(x[dim], [x[dim].size // 2] * 2)
    op.unify(first, second)
    x[dim] = first
    return tuple(x)
