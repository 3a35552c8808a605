"""One vector type per dtype, as wide as the CPU's registers, and the operations on it: the twin of kernels/vec.h.

`like` is a dtype, np.float32 or np.float64; addresses are integers, and `i` counts elements. A number beside a vector
stands for a vector full of it. Refuses reassociation: what is written is what is emitted.
"""

import operator
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import lower_builtin, models, register_model, type_callable

from fusedrnn.numba.jit import VECTOR_BYTES, emitted

__all__ = [
    "Vec",
    "by_dtype",
    "fma",
    "horner",
    "itemsize",
    "lanes",
    "load",
    "load_upto",
    "maximum",
    "negative_abs",
    "pick_less",
    "pick_negative",
    "positive_part",
    "power_of_two",
    "real",
    "set_real",
    "store",
    "store_upto",
    "transpose",
    "xor_sign",
    "zeros",
]

BITS = {types.float32: 32, types.float64: 64}
EXPONENT = {types.float32: (23, 127), types.float64: (52, 1023)}


class Vec(types.Type):  # type: ignore[misc]  # Numba ships no types
    """A vector register of one dtype."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.lanes = VECTOR_BYTES * 8 // BITS[real]
        super().__init__(f"Vec({real}x{self.lanes})")


VECS = {real: Vec(real) for real in BITS}


@register_model(Vec)
class VecModel(models.PrimitiveModel):  # type: ignore[misc]
    """An LLVM vector."""

    def __init__(self, manager: Any, fe_type: Vec) -> None:
        super().__init__(manager, fe_type, ir_vector(fe_type.real))


def real_of(like: Any) -> Any:
    """Numba's type of the elements of a vector or of a dtype."""
    return like.real if isinstance(like, Vec) else like.dtype


def ir_real(real: Any) -> Any:
    """The LLVM type of an element."""
    return ir.FloatType() if real == types.float32 else ir.DoubleType()


def ir_vector(real: Any) -> Any:
    """The LLVM type of a vector."""
    return ir.VectorType(ir_real(real), VECTOR_BYTES * 8 // BITS[real])


def ir_bits(real: Any) -> Any:
    """The LLVM type of a vector's bits."""
    return ir.VectorType(ir.IntType(BITS[real]), VECTOR_BYTES * 8 // BITS[real])


def splat(builder: Any, value: Any) -> Any:
    """A vector full of an LLVM scalar."""
    n = VECTOR_BYTES // (4 if value.type == ir.FloatType() else 8)
    empty = ir.Constant(ir.VectorType(value.type, n), ir.Undefined)
    one = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(ir.IntType(32), n), [0] * n))


def named(module: Any, name: str, result: Any, args: list[Any], suffix: str = "") -> Any:
    """An LLVM intrinsic of one vector type; the suffix is of its pointers."""
    t = next(a for a in (result, *args) if isinstance(a, ir.VectorType))
    name = f"{name}.v{t.count}f{32 if t.element == ir.FloatType() else 64}{suffix}"
    return cgutils.get_or_insert_function(module, ir.FunctionType(result, args), name)


def emit_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a*b + c, rounded once."""
    return builder.call(named(builder.module, "llvm.fma", a.type, [a.type] * 3), [a, b, c])


def pointer(builder: Any, address: Any, real: Any, i: Any = None) -> Any:
    """The element `i` at an address, as an LLVM pointer."""
    p = builder.inttoptr(address, ir_real(real).as_pointer())
    return p if i is None else builder.gep(p, [i])


def vector_pointer(builder: Any, p: Any, real: Any) -> Any:
    """A pointer to an element as one to a vector."""
    return builder.bitcast(p, ir_vector(real).as_pointer())


def emit_load(builder: Any, p: Any, real: Any) -> Any:
    """A vector from an address of any alignment."""
    return builder.load(vector_pointer(builder, p, real), align=BITS[real] // 8)


def emit_store(builder: Any, value: Any, p: Any, real: Any) -> None:
    """A vector to an address of any alignment."""
    builder.store(value, vector_pointer(builder, p, real), align=BITS[real] // 8)


def _is_vec(t: Any) -> bool:
    return isinstance(t, Vec)


def _as_vec(context: Any, builder: Any, value: Any, given: Any, vec: Vec) -> Any:
    if _is_vec(given):
        return value
    return splat(builder, context.cast(builder, value, given, vec.real))


def _operation(emit: Any) -> Any:
    """Typer and code of an operation on vectors and numbers, one vector at least, that gives a vector."""

    def typer(*args: Any) -> Any:
        vec = next(filter(_is_vec, args), None)
        if vec is None or not all(a == vec or isinstance(a, types.Number) for a in args):
            return None

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            vectors = [_as_vec(context, builder, v, t, vec) for v, t in zip(values, signature.args, strict=True)]
            return emit(builder, vec.real, *vectors)

        return vec(*args), codegen

    return typer


def _register(symbol: Any, arguments: int, emit: Any) -> None:
    """Make a Python operator work on vectors."""
    typer = _operation(emit)
    if arguments == 1:
        type_callable(symbol)(lambda context: lambda a: a if _is_vec(a) else None)
        patterns: list[tuple[Any, ...]] = [(Vec,)]
    else:
        type_callable(symbol)(
            lambda context: (
                lambda a, b: (
                    a
                    if _is_vec(a) and (a == b or isinstance(b, types.Number))
                    else b
                    if _is_vec(b) and isinstance(a, types.Number)
                    else None
                )
            )
        )
        patterns = [(Vec, Vec), (Vec, types.Number), (types.Number, Vec)]
    for pattern in patterns:
        lower_builtin(symbol, *pattern)(
            lambda context, builder, signature, values: typer(*signature.args)[1](context, builder, signature, values)
        )


_register(operator.add, 2, lambda b, real, x, y: b.fadd(x, y))
_register(operator.sub, 2, lambda b, real, x, y: b.fsub(x, y))
_register(operator.mul, 2, lambda b, real, x, y: b.fmul(x, y))
_register(operator.truediv, 2, lambda b, real, x, y: b.fdiv(x, y))
_register(operator.neg, 1, lambda b, real, x: b.fneg(x))


def _bits(builder: Any, real: Any, x: Any) -> Any:
    return builder.bitcast(x, ir_bits(real))


def _reals(builder: Any, real: Any, bits: Any) -> Any:
    return builder.bitcast(bits, ir_vector(real))


def _constant(real: Any, value: int) -> Any:
    t = ir_bits(real)
    return ir.Constant(t, [value] * t.count)


def _sign_bit(real: Any) -> Any:
    return _constant(real, 1 << BITS[real] - 1)


@emitted
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a*b + c, rounded once."""
    return _operation(lambda builder, real, x, y, z: emit_fma(builder, x, y, z))(a, b, c)


@emitted
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """The larger; NaN when b is (a never is where it is used)."""
    return _operation(lambda builder, real, x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y))(a, b)


@emitted
def negative_abs(typing: Any, x: Any) -> Any:
    """-|x|."""
    return _operation(
        lambda builder, real, x: _reals(builder, real, builder.or_(_bits(builder, real, x), _sign_bit(real)))
    )(x)


@emitted
def xor_sign(typing: Any, a: Any, x: Any) -> Any:
    """Where x is negative (-0 too), -a; elsewhere a."""

    def emit(builder: Any, real: Any, a: Any, x: Any) -> Any:
        sign = builder.and_(_bits(builder, real, x), _sign_bit(real))
        return _reals(builder, real, builder.xor(_bits(builder, real, a), sign))

    return _operation(emit)(a, x)


@emitted
def power_of_two(typing: Any, shifted: Any) -> Any:
    """2^n, n in the low bits of a number's significand."""

    def emit(builder: Any, real: Any, x: Any) -> Any:
        exponent, bias = EXPONENT[real]
        up = builder.shl(_bits(builder, real, x), _constant(real, exponent))
        return _reals(builder, real, builder.add(up, _constant(real, bias << exponent)))

    return _operation(emit)(shifted)


@emitted
def pick_negative(typing: Any, x: Any, a: Any, b: Any) -> Any:
    """Where x is negative (-0 too), a; elsewhere b."""

    def emit(builder: Any, real: Any, x: Any, a: Any, b: Any) -> Any:
        return builder.select(builder.icmp_signed("<", _bits(builder, real, x), _constant(real, 0)), a, b)

    return _operation(emit)(x, a, b)


@emitted
def pick_less(typing: Any, x: Any, y: Any, a: Any, b: Any) -> Any:
    """Where x < y, a; elsewhere, and where either is NaN, b."""
    return _operation(lambda builder, real, x, y, a, b: builder.select(builder.fcmp_ordered("<", x, y), a, b))(
        x, y, a, b
    )


@emitted
def positive_part(typing: Any, x: Any, a: Any) -> Any:
    """Where x <= 0, 0; elsewhere, and where x is NaN, a."""

    def emit(builder: Any, real: Any, x: Any, a: Any) -> Any:
        zero = ir.Constant(ir_vector(real), None)
        return builder.select(builder.fcmp_ordered("<=", x, zero), zero, a)

    return _operation(emit)(x, a)


@emitted
def itemsize(typing: Any, like: Any) -> Any:
    """Bytes of an element, a constant."""
    return types.int64(like), lambda c, b, signature, v: ir.Constant(
        ir.IntType(64), BITS[real_of(signature.args[0])] // 8
    )


@emitted
def lanes(typing: Any, like: Any) -> Any:
    """Elements of a vector, L, a constant."""
    return types.int64(like), lambda c, b, signature, v: ir.Constant(
        ir.IntType(64), VECS[real_of(signature.args[0])].lanes
    )


@emitted
def zeros(typing: Any, like: Any) -> Any:
    """A vector of zeros."""
    return VECS[real_of(like)](like), lambda c, b, signature, v: ir.Constant(ir_vector(real_of(like)), None)


@emitted
def load(typing: Any, address: Any, i: Any, like: Any) -> Any:
    """The vector at element `i`."""
    real = real_of(like)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return emit_load(builder, pointer(builder, values[0], real, values[1]), real)

    return VECS[real](types.int64, types.int64, like), codegen


@emitted
def store(typing: Any, address: Any, i: Any, x: Any) -> Any:
    """Write a vector at element `i`."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit_store(builder, values[2], pointer(builder, values[0], x.real, values[1]), x.real)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, x), codegen


@emitted
def transpose(typing: Any, source: Any, ld: Any, to: Any, step: Any, like: Any) -> Any:
    """A square of L rows at `source`, `ld` elements apart, to L rows at `to`, `step` elements apart, transposed."""
    real = real_of(like)
    L = VECS[real].lanes

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, ld, to, step, _ = values
        rows = [builder.mul(ir.Constant(ld.type, i), ld) for i in range(L)]
        v = [emit_load(builder, pointer(builder, source, real, row), real) for row in rows]
        alternate = [i // 2 + i % 2 * L for i in range(2 * L)]  # a0 b0 a1 b1 ...
        mask = ir.VectorType(ir.IntType(32), L)
        halves = ir.Constant(mask, alternate[:L]), ir.Constant(mask, alternate[L:])
        for _ in range(L.bit_length() - 1):
            v = [builder.shuffle_vector(v[i], v[i + L // 2], half) for i in range(L // 2) for half in halves]
        for i in range(L):
            emit_store(builder, v[i], pointer(builder, to, real, builder.mul(ir.Constant(step.type, i), step)), real)
        return context.get_dummy_value()

    word = types.int64
    return types.void(word, word, word, word, like), codegen


@emitted
def real(typing: Any, address: Any, i: Any, like: Any) -> Any:
    """The number at element `i`."""
    real = real_of(like)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(pointer(builder, values[0], real, values[1]))

    return real(types.int64, types.int64, like), codegen


@emitted
def set_real(typing: Any, address: Any, i: Any, x: Any) -> Any:
    """Write a number at element `i`."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store(values[2], pointer(builder, values[0], x, values[1]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, x), codegen


def _first(builder: Any, real: Any, n: Any) -> Any:
    """A mask of the first n lanes."""
    t = ir_bits(real)
    count = builder.trunc(n, t.element) if t.element.width < 64 else n
    empty = ir.Constant(t, ir.Undefined)
    one = builder.insert_element(empty, count, ir.Constant(ir.IntType(32), 0))
    counts = builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(ir.IntType(32), t.count), [0] * t.count))
    return builder.icmp_signed("<", ir.Constant(t, list(range(t.count))), counts)


@emitted
def load_upto(typing: Any, address: Any, i: Any, n: Any, like: Any) -> Any:
    """Up to n elements (n >= 1) from element `i`, all of them when n >= L: the last vector of an unpadded row."""
    real = real_of(like)
    vec = VECS[real]

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        p, n = pointer(builder, values[0], real, values[1]), values[2]
        found = cgutils.alloca_once(builder, ir_vector(real))
        whole = builder.icmp_signed(">=", n, ir.Constant(n.type, vec.lanes))
        with builder.if_else(whole, likely=True) as (then, otherwise):
            with then:
                builder.store(emit_load(builder, p, real), found)
            with otherwise:
                mask, at = _first(builder, real, n), vector_pointer(builder, p, real)
                types_ = [at.type, ir.IntType(32), mask.type, ir_vector(real)]
                function = named(builder.module, "llvm.masked.load", ir_vector(real), types_, ".p0")
                align = ir.Constant(ir.IntType(32), BITS[real] // 8)
                part = builder.call(function, [at, align, mask, ir.Constant(ir_vector(real), None)])
                builder.store(part, found)
        return builder.load(found)

    return vec(types.int64, types.int64, types.int64, like), codegen


@emitted
def store_upto(typing: Any, address: Any, i: Any, x: Any, n: Any) -> Any:
    """Write up to n elements (n >= 1) at element `i`, all of them when n >= L."""
    real = x.real

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        p, n = pointer(builder, values[0], real, values[1]), values[3]
        whole = builder.icmp_signed(">=", n, ir.Constant(n.type, x.lanes))
        with builder.if_else(whole, likely=True) as (then, otherwise):
            with then:
                emit_store(builder, values[2], p, real)
            with otherwise:
                mask, at = _first(builder, real, n), vector_pointer(builder, p, real)
                types_ = [ir_vector(real), at.type, ir.IntType(32), mask.type]
                function = named(builder.module, "llvm.masked.store", ir.VoidType(), types_, ".p0")
                align = ir.Constant(ir.IntType(32), BITS[real] // 8)
                builder.call(function, [values[2], at, align, mask])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, x, types.int64), codegen


@emitted
def by_dtype(typing: Any, x: Any, narrow: Any, wide: Any) -> Any:
    """A constant of x's dtype: `narrow` for float32, `wide` for float64."""
    real = real_of(x)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        which = 1 if real == types.float32 else 2
        return context.cast(builder, values[which], signature.args[which], real)

    return real(x, narrow, wide), codegen


@emitted
def horner(typing: Any, r: Any, narrow: Any, wide: Any) -> Any:
    """A polynomial of r, the highest coefficient first: `narrow` for float32, `wide` for float64."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        which = 1 if r.real == types.float32 else 2
        given = [
            splat(builder, context.cast(builder, builder.extract_value(values[which], i), types.float64, r.real))
            for i in range(signature.args[which].count)
        ]
        q = given[0]
        for coefficient in given[1:]:
            q = emit_fma(builder, q, values[0], coefficient)
        return q

    return r(r, narrow, wide), codegen
