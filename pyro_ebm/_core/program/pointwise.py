"""The elementwise operations that a C program knows, as C expressions of their operands."""

import math
from collections.abc import Callable

import torch

aten = torch.ops.aten

C_TYPES = {
    torch.float64: "double",
    torch.float32: "float",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.bool: "uint8_t",
    torch.uint8: "uint8_t",
}


def literal(value: float | int | bool, dtype: torch.dtype) -> str:
    """A number as a C constant of a dtype."""
    if not dtype.is_floating_point:
        return f"(({C_TYPES[dtype]}){int(bool(value) if dtype == torch.bool else value)}LL)"
    value = float(value)
    if math.isnan(value):
        text = "NAN"
    elif math.isinf(value):
        text = "INFINITY" if value > 0 else "-INFINITY"
    else:
        text = value.hex()
    return f"(({C_TYPES[dtype]}){text})"


def _call(name: str) -> Callable[..., str]:
    """A function of the C library, whose single-precision name ends in f."""

    def expression(dtype: torch.dtype, *operands: str) -> str:
        return f"{name}{'f' if dtype == torch.float32 else ''}({', '.join(operands)})"

    return expression


def _format(template: str) -> Callable[..., str]:
    def expression(dtype: torch.dtype, *operands: str) -> str:
        return template.format(*operands, type=C_TYPES[dtype])

    return expression


def _whole(floating: Callable[..., str], integer: Callable[..., str]) -> Callable[..., str]:
    """One expression for floats, and one for integers, which a float does not hold."""

    def expression(dtype: torch.dtype, *operands: str) -> str:
        return (floating if dtype.is_floating_point else integer)(dtype, *operands)

    return expression


def _rounding(name: str) -> Callable[..., str]:
    return _whole(_call(name), _format("{0}"))


def _shift(within: str, beyond: str) -> Callable[..., str]:
    """A shift by as many bits as there are, or more, or by a negative number, is `beyond`."""

    def expression(dtype: torch.dtype, *operands: str) -> str:
        bits = f"sizeof({C_TYPES[dtype]}) * 8"
        return f"((uint64_t){operands[1]} < {bits} ? {within} : {beyond})".format(*operands)

    return expression


# Operations whose operands are first cast to the dtype of the result. Comparisons cast to the operands' common dtype.
ARITHMETIC: dict[str, Callable[..., str]] = {
    "add": lambda dtype, x, y: f"{x} {'|' if dtype == torch.bool else '+'} {y}",
    "sub": _format("{0} - {1}"),
    "mul": _format("{0} * {1}"),
    "div": _format("{0} / {1}"),
    "maximum": _format("MAXIMUM({0}, {1})"),
    "minimum": _format("MINIMUM({0}, {1})"),
    "fmax": _whole(_call("fmax"), _format("MAXIMUM({0}, {1})")),
    "fmin": _whole(_call("fmin"), _format("MINIMUM({0}, {1})")),
    "clamp_min": _format("MAXIMUM({0}, {1})"),
    "clamp_max": _format("MINIMUM({0}, {1})"),
    "fmod": _whole(_call("fmod"), _format("({1} == 0 || {1} == -1 ? 0 : {0} % {1})")),
    "remainder": _whole(_call("floored_remainder"), _format("whole_floored_remainder({0}, {1})")),
    "atan2": _call("atan2"),
    "hypot": _call("hypot"),
    "copysign": _call("copysign"),
    "pow": _whole(_call("pow"), _format("integer_power({0}, {1})")),
    "neg": _format("-{0}"),
    "abs": _whole(_call("fabs"), _format("({0} < 0 ? -{0} : {0})")),
    "sign": _format("({type})(({0} > 0) - ({0} < 0))"),
    "sgn": _format("({type})(({0} > 0) - ({0} < 0))"),
    "reciprocal": _format("1 / {0}"),
    "square": _format("{0} * {0}"),
    "relu": _format("MAXIMUM({0}, ({type})0)"),
    "sqrt": _call("sqrt"),
    "rsqrt": lambda dtype, x: f"1 / {_call('sqrt')(dtype, x)}",
    "sigmoid": lambda dtype, x: f"1 / (1 + {_call('exp')(dtype, '-' + x)})",
    "lgamma": _call("lgamma"),
    "special_erfcx": lambda dtype, x: f"({C_TYPES[dtype]})scaled_erfc({x})",
    "digamma": lambda dtype, x: f"({C_TYPES[dtype]})digamma({x})",
    **{name: _call(name) for name in ("exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "erf", "erfc")},
    **{name: _call(name) for name in ("sin", "cos", "tan", "asin", "acos", "atan")},
    **{name: _call(name) for name in ("sinh", "cosh", "tanh", "asinh", "acosh", "atanh")},
    "floor": _rounding("floor"),
    "ceil": _rounding("ceil"),
    "trunc": _rounding("trunc"),
    "round": _rounding("rint"),
    "bitwise_and": _format("{0} & {1}"),
    "bitwise_or": _format("{0} | {1}"),
    "bitwise_xor": _format("{0} ^ {1}"),
    "__and__": _format("{0} & {1}"),
    "__or__": _format("{0} | {1}"),
    "__xor__": _format("{0} ^ {1}"),
    "__lshift__": _shift("{0} << {1}", "0"),
    "__rshift__": _shift("{0} >> {1}", "({0} < 0 ? -1 : 0)"),
    "bitwise_left_shift": _shift("{0} << {1}", "0"),
    "bitwise_right_shift": _shift("{0} >> {1}", "({0} < 0 ? -1 : 0)"),
}

# Those of them whose results are exact.
SELECTIONS = {
    *("maximum", "minimum", "fmax", "fmin", "clamp_min", "clamp_max", "neg", "abs", "sign", "sgn", "relu"),
    *("floor", "ceil", "trunc", "round"),
}

# Divisions by their mode of rounding.
ROUNDED: dict[str, Callable[..., str]] = {
    "div_floor": _whole(_call("floored_quotient"), _format("whole_quotient({0}, {1}, 1)")),
    "div_trunc": _whole(
        lambda dtype, x, y: _call("trunc")(dtype, f"{x} / {y}"), _format("whole_quotient({0}, {1}, 0)")
    ),
}

COMPARISONS: dict[str, Callable[..., str]] = {
    "eq": _format("{0} == {1}"),
    "ne": _format("{0} != {1}"),
    "lt": _format("{0} < {1}"),
    "le": _format("{0} <= {1}"),
    "gt": _format("{0} > {1}"),
    "ge": _format("{0} >= {1}"),
    "signbit": _whole(_format("signbit({0}) != 0"), _format("{0} < 0")),
    "isnan": _format("{0} != {0}"),
    "isinf": _format("fabs((double){0}) == INFINITY"),
    "isfinite": _format("fabs((double){0}) < INFINITY"),
    "logical_and": _format("({0} != 0) & ({1} != 0)"),
    "logical_or": _format("({0} != 0) | ({1} != 0)"),
    "logical_xor": _format("({0} != 0) ^ ({1} != 0)"),
    "logical_not": _format("{0} == 0"),
}

COPIES = {"clone", "_to_copy", "copy", "lift_fresh_copy", "contiguous", "to"}
ALIASES = {"detach", "alias", "lift_fresh", "detach_"}

PREAMBLE = r"""
#include <math.h>
#include <stdint.h>
#include <string.h>
#define MAXIMUM(a, b) ((a) != (a) ? (a) : ((a) > (b) ? (a) : (b)))
#define MINIMUM(a, b) ((a) != (a) ? (a) : ((a) < (b) ? (a) : (b)))
#ifdef VECTOR_MATH
#define SIMD _Pragma("omp declare simd notinbranch")
#define UNARY(name) SIMD double name(double); SIMD float name##f(float);
UNARY(exp) UNARY(expm1) UNARY(log) UNARY(log1p) UNARY(sin) UNARY(cos) UNARY(tan) UNARY(tanh) UNARY(sinh) UNARY(cosh)
UNARY(asin) UNARY(acos) UNARY(atan) UNARY(erf) UNARY(erfc)
SIMD double pow(double, double); SIMD float powf(float, float);
#endif
typedef void gemm_f64(const char*, const char*, const int*, const int*, const int*, const double*, const double*,
  const int*, const double*, const int*, const double*, double*, const int*);
typedef void gemm_f32(const char*, const char*, const int*, const int*, const int*, const float*, const float*,
  const int*, const float*, const int*, const float*, float*, const int*);
static int64_t integer_power(int64_t x, int64_t n) {
  if (n < 0) return x == 1 ? 1 : x == -1 ? (n & 1 ? -1 : 1) : 0;
  uint64_t y = 1, square = x;
  for (; n; n >>= 1, square *= square) if (n & 1) y *= square;
  return y;
}
#define FLOORED(type, f) \
  static type floored_remainder##f(type x, type y) { \
    type rest = fmod##f(x, y); return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest; } \
  static type floored_quotient##f(type x, type y) { \
    if (y == 0) return x / y; \
    type rest = fmod##f(x, y), quotient = rint##f((x - rest) / y) - (rest != 0 && (rest < 0) != (y < 0)); \
    return quotient == 0 ? copysign##f(0, x / y) : quotient; }
FLOORED(double, ) FLOORED(float, f)
static int64_t whole_floored_remainder(int64_t x, int64_t y) {
  int64_t rest = y == 0 || y == -1 ? 0 : x % y;
  return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
}
static int64_t whole_quotient(int64_t x, int64_t y, int floored) {
  if (y == 0 || y == -1) return -x * (y == -1);
  return x / y - (floored && x % y != 0 && (x < 0) != (y < 0));
}
static double scaled_erfc(double x) {
  if (x < 25) return exp(x * x) * erfc(x);
  double y = 0.5 / (x * x);
  return (1 - y * (1 - y * (3 - y * (15 - y * (105 - y * 945))))) / (x * sqrt(M_PI));
}
static double digamma(double x) {
  double shift = 0;
  if (x == 0) return copysign(INFINITY, -x);
  if (x < 0) { if (x == floor(x)) return NAN; shift = -M_PI / tan(M_PI * (x - rint(x))); x = 1 - x; }
  while (x < 10) { shift -= 1 / x; x += 1; }
  double y = 1 / (x * x);
  return shift + log(x) - 0.5 / x - y * (1.0 / 12 - y * (1.0 / 120 - y * (1.0 / 252 - y * (1.0 / 240 - y * (1.0 / 132
    - y * (691.0 / 32760 - y / 12))))));
}
"""
