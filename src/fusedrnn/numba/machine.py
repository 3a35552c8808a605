"""What a time loop needs of the machine beside arithmetic: memory at an address, calls through one, atomics, the clock,
flush-to-zero, Python's signals. The twin of kernels/cpu.h. Refuses to allocate.
"""

import signal
import time
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import RequireLiteralValue

from fusedrnn.numba.jit import CPU, emitted

__all__ = [
    "at",
    "call",
    "call_acquire",
    "call_asleep",
    "call_native",
    "call_nothing",
    "call_python",
    "clear",
    "cond_init",
    "cond_signal",
    "cond_wait",
    "copy",
    "count",
    "flush_denormals",
    "fp_now",
    "fp_restore",
    "get",
    "integer",
    "mutex_init",
    "mutex_lock",
    "mutex_unlock",
    "peek",
    "poke",
    "put",
    "raise_again",
    "relax",
    "released",
    "retaken",
    "seconds",
    "share",
    "signals",
    "stack",
    "swap",
    "thread_create",
    "unshare",
    "yield_cpu",
]

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
X86 = CPU[0].startswith("x86_64")
ARM = CPU[0].startswith(("aarch64", "arm64"))


def _word(builder: Any, address: Any, i: Any = None) -> Any:
    p = builder.inttoptr(address, I64.as_pointer())
    return p if i is None else builder.gep(p, [i])


def _void(context: Any) -> Any:
    return context.get_dummy_value()


@emitted
def at(typing: Any, address: Any, dtype: Any) -> Any:
    """The record of a structured dtype that lies at an address."""
    record = dtype.dtype

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(record))

    return record(types.int64, dtype), codegen


@emitted
def get(typing: Any, address: Any, i: Any) -> Any:
    """The i-th 64-bit integer at an address."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(_word(builder, *values))

    return types.int64(types.int64, types.int64), codegen


@emitted
def put(typing: Any, address: Any, i: Any, value: Any) -> Any:
    """Write the i-th 64-bit integer at an address."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store(values[2], _word(builder, values[0], values[1]))
        return _void(context)

    return types.void(types.int64, types.int64, types.int64), codegen


@emitted
def copy(typing: Any, to: Any, source: Any, size: Any) -> Any:
    """memcpy."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        to, source = (builder.inttoptr(v, I8.as_pointer()) for v in values[:2])
        cgutils.raw_memcpy(builder, to, source, values[2], ir.Constant(I64, 1))
        return _void(context)

    return types.void(types.int64, types.int64, types.int64), codegen


@emitted
def clear(typing: Any, to: Any, size: Any) -> Any:
    """Write zeros."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        cgutils.memset(builder, builder.inttoptr(values[0], I8.as_pointer()), values[1], 0)
        return _void(context)

    return types.void(types.int64, types.int64), codegen


@emitted
def prefetch(typing: Any, address: Any) -> Any:
    """Ask for the line at an address."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        t = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, t, "llvm.prefetch.p0")
        builder.call(function, [builder.inttoptr(values[0], I8.as_pointer()), I32(0), I32(3), I32(1)])
        return _void(context)

    return types.void(types.int64), codegen


@emitted
def stack(typing: Any, size: Any) -> Any:
    """Address of a constant number of bytes on the stack, 64-byte aligned, for as long as the function runs. They hold
    anything: Numba's own `alloca_once` would clear them in every call."""
    if not isinstance(size, types.IntegerLiteral):
        raise RequireLiteralValue("stack: a constant size is needed")

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        with builder.goto_entry_block():
            block = builder.alloca(ir.ArrayType(I8, size.literal_value))
        block.align = 64
        return builder.ptrtoint(block, I64)

    return types.int64(size), codegen


@emitted
def call(typing: Any, function: Any, *args: Any) -> Any:
    """Call the function at an address with integers; it gives nothing back."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        rest = [builder.extract_value(values[1], i) for i in range(len(signature.args[1]))]
        p = builder.inttoptr(values[0], ir.FunctionType(ir.VoidType(), [v.type for v in rest]).as_pointer())
        builder.call(p, rest)
        return _void(context)

    return types.void(types.int64, types.StarArgTuple(args)), codegen


@emitted
def call_native(typing: Any, function: Any, address: Any) -> Any:
    """Call the native function (address, like) of a Kernel, which has Numba's own convention; it gives nothing back."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = I8.as_pointer()
        p = builder.inttoptr(values[0], ir.FunctionType(I32, [word.as_pointer()] * 2 + [I64, word]).as_pointer())
        nothing, error = (cgutils.alloca_once(builder, word) for _ in range(2))
        builder.call(p, [nothing, error, values[1], word(None)])
        return _void(context)

    return types.void(types.int64, types.int64), codegen


@emitted
def call_acquire(typing: Any, function: Any, wanted: Any, patience: Any, team: Any) -> Any:
    """Call a team's acquire at an address."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        t = ir.FunctionType(I32, [I32, ir.DoubleType(), I64])
        p = builder.inttoptr(values[0], t.as_pointer())
        return builder.sext(builder.call(p, [builder.trunc(values[1], I32), *values[2:]]), I64)

    return types.int64(types.int64, types.int64, types.float64, types.int64), codegen


@emitted
def call_asleep(typing: Any, function: Any, team: Any) -> Any:
    """Call a team's asleep at an address."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        p = builder.inttoptr(values[0], ir.FunctionType(I32, [I64]).as_pointer())
        return builder.icmp_signed("!=", builder.call(p, [values[1]]), I32(0))

    return types.boolean(types.int64, types.int64), codegen


# Atomics -------------------------------------------------------------------------------------------------------------


@emitted
def peek(typing: Any, address: Any) -> Any:
    """A 64-bit integer that other threads write; what they wrote before it is seen after.

    All threads see every `peek` and `poke` in one order: a worker that falls asleep and a caller that wakes it each
    write one word and read the other."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(_word(builder, values[0]), "seq_cst", 8)

    return types.int64(types.int64), codegen


@emitted
def poke(typing: Any, address: Any, value: Any) -> Any:
    """Write a 64-bit integer for other threads to see, after all that was written before."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store_atomic(values[1], _word(builder, values[0]), "seq_cst", 8)
        return _void(context)

    return types.void(types.int64, types.int64), codegen


@emitted
def swap(typing: Any, address: Any, old: Any, new: Any) -> Any:
    """Write `new` if `old` is there; whether it was."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pair = builder.cmpxchg(_word(builder, values[0]), values[1], values[2], "seq_cst", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@emitted
def count(typing: Any, address: Any) -> Any:
    """Add 1; what was there before. Orders nothing else."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", _word(builder, values[0]), I64(1), "monotonic")

    return types.int64(types.int64), codegen


# The CPU and the system ----------------------------------------------------------------------------------------------


def _external(builder: Any, name: str, result: Any, *args: Any) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [a.type for a in args]), name)


@emitted
def relax(typing: Any) -> Any:
    """One pause of a spin."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if X86:
            builder.call(_external(builder, "llvm.x86.sse2.pause", ir.VoidType()), [])
        elif ARM:
            builder.call(_external(builder, "llvm.aarch64.hint", ir.VoidType(), I32(1)), [I32(1)])
        return _void(context)

    return types.void(), codegen


@emitted
def yield_cpu(typing: Any) -> Any:
    """Let another thread have this CPU."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.call(_external(builder, "sched_yield", I32), [])
        return _void(context)

    return types.void(), codegen


def _on_address(name: str, result: Any, *arguments: Any) -> Any:
    """Code that calls a C function of pointers, the first at an address, and drops what it gives."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointers = [builder.inttoptr(v, I8.as_pointer()) for v in values]
        pointers += [ir.Constant(I8.as_pointer(), None)] * len(arguments)
        builder.call(_external(builder, name, result, *pointers), pointers)
        return _void(context)

    return codegen


@emitted
def mutex_lock(typing: Any, mutex: Any) -> Any:
    """pthread_mutex_lock."""
    return types.void(types.int64), _on_address("pthread_mutex_lock", I32)


@emitted
def mutex_unlock(typing: Any, mutex: Any) -> Any:
    """pthread_mutex_unlock."""
    return types.void(types.int64), _on_address("pthread_mutex_unlock", I32)


@emitted
def mutex_init(typing: Any, mutex: Any) -> Any:
    """pthread_mutex_init."""
    return types.void(types.int64), _on_address("pthread_mutex_init", I32, None)


@emitted
def cond_init(typing: Any, cond: Any) -> Any:
    """pthread_cond_init."""
    return types.void(types.int64), _on_address("pthread_cond_init", I32, None)


@emitted
def cond_signal(typing: Any, cond: Any) -> Any:
    """pthread_cond_signal."""
    return types.void(types.int64), _on_address("pthread_cond_signal", I32)


@emitted
def cond_wait(typing: Any, cond: Any, mutex: Any) -> Any:
    """pthread_cond_wait."""
    return types.void(types.int64, types.int64), _on_address("pthread_cond_wait", I32)


SET_MASK = int(signal.SIG_SETMASK)


@emitted
def thread_create(typing: Any, where: Any, function: Any, arg: Any) -> Any:
    """Start function(arg) on a detached thread that takes no signals; whether the system let us."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        every, before = (
            builder.bitcast(cgutils.alloca_once(builder, ir.ArrayType(I64, 16)), I8.as_pointer()) for _ in range(2)
        )
        where, function, arg = (builder.inttoptr(v, I8.as_pointer()) for v in values)
        null = ir.Constant(I8.as_pointer(), None)
        builder.call(_external(builder, "sigfillset", I32, every), [every])
        for mask, old in ((every, before), (before, null)):
            if mask is before:
                failed = builder.call(
                    _external(builder, "pthread_create", I32, where, null, function, arg), [where, null, function, arg]
                )
            arguments = [I32(SET_MASK), mask, old]
            builder.call(_external(builder, "pthread_sigmask", I32, *arguments), arguments)
        started = builder.icmp_signed("==", failed, I32(0))
        with builder.if_then(started):
            thread = builder.load(_word(builder, values[0]))
            builder.call(_external(builder, "pthread_detach", I32, thread), [thread])
        return started

    return types.boolean(types.int64, types.int64, types.int64), codegen


CLOCK = getattr(time, "CLOCK_MONOTONIC", 1)


@emitted
def seconds(typing: Any) -> Any:
    """The clock."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pair = cgutils.alloca_once(builder, ir.ArrayType(I64, 2))
        first = builder.bitcast(pair, I64.as_pointer())
        clock = I32(CLOCK)
        builder.call(_external(builder, "clock_gettime", I32, clock, first), [clock, first])
        whole, rest = (builder.sitofp(builder.load(builder.gep(first, [I64(i)])), ir.DoubleType()) for i in range(2))
        return builder.fadd(whole, builder.fmul(rest, ir.Constant(ir.DoubleType(), 1e-9)))

    return types.float64(), codegen


def _assembly(builder: Any, text: str, constraints: str, result: Any, args: Any) -> Any:
    t = ir.FunctionType(result, [a.type for a in args])
    return builder.asm(t, text, constraints, args, True)


def _mxcsr(builder: Any, name: str, slot: Any) -> None:
    p = builder.bitcast(slot, I8.as_pointer())
    builder.call(_external(builder, f"llvm.x86.sse.{name}", ir.VoidType(), p), [p])


def _fp_now(builder: Any) -> Any:
    if X86:
        slot = cgutils.alloca_once(builder, I32)
        _mxcsr(builder, "stmxcsr", slot)
        return builder.zext(builder.load(slot), I64)
    return _assembly(builder, "mrs $0, fpcr", "=r", I64, []) if ARM else I64(0)


def _fp_restore(builder: Any, state: Any) -> None:
    if X86:
        slot = cgutils.alloca_once(builder, I32)
        builder.store(builder.trunc(state, I32), slot)
        _mxcsr(builder, "ldmxcsr", slot)
    elif ARM:
        _assembly(builder, "msr fpcr, $0", "r", ir.VoidType(), [state])


FLUSH = 0x8040 if X86 else 1 << 24
"""FTZ and DAZ; FZ."""


@emitted
def fp_now(typing: Any) -> Any:
    """The thread's floating-point state."""
    return types.int64(), lambda context, builder, signature, values: _fp_now(builder)


@emitted
def flush_denormals(typing: Any) -> Any:
    """Flush-to-zero from here on: denormals cost up to a hundred cycles each. Gives the state before."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        before = _fp_now(builder)
        _fp_restore(builder, builder.or_(before, I64(FLUSH)))
        return before

    return types.int64(), codegen


@emitted
def fp_restore(typing: Any, state: Any) -> Any:
    """Undo `flush_denormals`."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _fp_restore(builder, values[0])
        return _void(context)

    return types.void(types.int64), codegen


@emitted
def signals(typing: Any, error: Any) -> Any:
    """Run Python's signal handlers, with the GIL; what they raise goes to three words at `error`. Whether any did."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        api = context.get_python_api(builder)
        gil = api.gil_ensure()
        found = builder.call(_external(builder, "PyErr_CheckSignals", I32), [])
        raised = builder.icmp_signed("!=", found, I32(0))
        with builder.if_then(raised):
            places = [_word(builder, values[0], I64(i)) for i in range(3)]
            builder.call(_external(builder, "PyErr_Fetch", ir.VoidType(), *places), places)
        api.gil_release(gil)
        return raised

    return types.boolean(types.int64), codegen


# Python's own functions, with the GIL held ---------------------------------------------------------------------------


def _python(name: str, gives: bool, n: int) -> Any:
    """Make the intrinsic of a function of n words that gives a word or nothing."""

    @emitted
    def function(typing: Any, *args: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            words = [builder.extract_value(values[0], i) for i in range(n)]
            found = builder.call(_external(builder, name, I64 if gives else ir.VoidType(), *words), words)
            return found if gives else _void(context)

        return (types.int64 if gives else types.void)(types.StarArgTuple([types.int64] * n)), codegen

    return function


call_nothing = _python("PyObject_CallNoArgs", True, 1)
call_python = _python("PyObject_Vectorcall", True, 4)
integer = _python("PyLong_AsLong", True, 1)
raise_again = _python("PyErr_Restore", False, 3)
released = _python("PyEval_SaveThread", True, 0)
retaken = _python("PyEval_RestoreThread", False, 1)
share = _python("Py_IncRef", False, 1)
unshare = _python("Py_DecRef", False, 1)
