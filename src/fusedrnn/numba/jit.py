"""How everything here is compiled: Numba's options in one place, each with its reason. Refuses fastmath in any form:
it would break NaN, infinities and the order of the sums.
"""

import contextlib
import functools
import gc
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import numba
from numba.core import caching, codegen, compiler, compiler_machinery, config, sigutils, typed_passes, types
from numba.core.ccallback import CFunc
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from fusedrnn.threads import own_cache

__all__ = ["CPU", "VECTOR_BYTES", "Kernel", "emitted", "inlined", "inner", "once", "public"]

if config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise ImportError("fusedrnn.numba needs Numba's compiler, and NUMBA_DISABLE_JIT is set")

R = TypeVar("R")

CPU: Final = tuple(cpu_target.target_context.codegen().magic_tuple())
"""Triple, CPU and features that Numba compiles for: the host's, or what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say."""


def _vector_bytes() -> int:
    features = CPU[2].split(",")
    if all(f"+avx512{part}" in features for part in ("f", "vl", "bw", "dq")):
        return 64
    if "+avx2" in features and "+fma" in features:
        return 32
    if CPU[0].startswith("x86_64") and "+fma" not in features:  # a call of libm for every product
        raise ImportError("fusedrnn.numba needs a CPU with fused multiply-adds (on x86, FMA)")
    return 16


VECTOR_BYTES: Final = _vector_bytes()

_OPTIONS: Final[dict[str, Any]] = {
    "nogil": True,  # other Python threads go on meanwhile
    "error_model": "numpy",  # no test for a zero divisor, and with it no way to fail in the middle of a team's work
    "boundscheck": False,  # addresses have no bounds; arguments were checked before
    "fastmath": False,
}
# Called from compiled code alone: no wrappers for Python or C, which would cost compile time.
_INNER: Final[dict[str, Any]] = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


class _Deferred(codegen.JITCodeLibrary):  # type: ignore[misc]  # Numba ships no types
    """What is only ever linked into others becomes machine code there, and not also by itself and at every level."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


@compiler_machinery.register_pass(mutates_CFG=False, analysis_only=True)
class _Defer(compiler_machinery.FunctionPass):  # type: ignore[misc]
    _name = "fusedrnn_defer"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        state.library = _Deferred(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        state.flags.no_compile = True
        return False


@compiler_machinery.register_pass(mutates_CFG=False, analysis_only=True)
class _NoEntry(compiler_machinery.LoweringPass):  # type: ignore[misc]
    """There is no machine code that Python could call; a dispatcher insists on a built-in function of its own."""

    _name = "fusedrnn_no_entry"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        state.cr = state.cr._replace(cfunc=[].append)
        state.targetctx.insert_user_function(state.cr.cfunc, state.cr.fndesc, [state.library])
        return True


# Passes for what no function here has: with blocks, closures, inlined overloads, unrolled literals, listings.
_NEEDLESS: Final = {
    *("WithLifting", "InlineClosureLikes", "RewriteDynamicRaises", "MakeFunctionToJitFunction", "InlineInlinables"),
    *("FindLiterallyCalls", "LiteralUnroll", "LiteralPropagationSubPipelinePass", "InlineOverloads", "AnnotateTypes"),
    *("DumpParforDiagnostics", "NoPythonSupportedFeatureValidation"),
}


class _Inner(compiler.CompilerBase):  # type: ignore[misc]
    """Numba's own pipeline with that library, shortened: half the compile time."""

    def define_pipelines(self) -> list[Any]:
        pipeline = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.passes = [p for p in pipeline.passes if p[0].__name__ not in _NEEDLESS]
        pipeline._finalized = False
        pipeline.add_pass_after(_Defer, typed_passes.NopythonTypeInference)
        pipeline.add_pass_after(_NoEntry, typed_passes.NativeLowering)
        pipeline.finalize()
        return [pipeline]


def inner(function: Callable[..., Any], *, always: bool = False) -> Any:
    """Compile for the use of other compiled functions, into them where `always`; the cache of those holds it.

    Once for each set of types: left alone, Numba would also compile it anew for every constant that it is called with.
    """
    made = numba.njit(pipeline_class=_Inner, forceinline=always, **_INNER)(function)
    template = made.get_call_template
    made.get_call_template = lambda args, kws: template([types.unliteral(a) for a in args], kws)
    return made


def inlined(function: Callable[..., Any]) -> Any:
    """The same, into its caller even where LLVM finds it too long: for what a small step passes through."""
    return inner(function, always=True)


def public(function: Callable[..., Any]) -> Any:
    """Compile for users' own jitted functions, for whatever argument types come."""
    return _cached(numba.njit(cache=True, **_OPTIONS)(function))


_making = threading.RLock()
# A fork waits for what is being made: in the child nobody would finish it.
os.register_at_fork(before=_making.acquire, after_in_parent=_making.release, after_in_child=_making.release)


class _Once(functools.cached_property[Any]):
    """A property that one thread computes while others wait: since Python 3.12 they would all compile."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        with _making:
            return super().__get__(instance, owner)


def once(make: Callable[..., R]) -> Callable[..., R]:
    """Remember what is made of some arguments; one thread makes it while others wait.

    `functools.cache` lets all of them make it and drops all but one: addresses of the others would point nowhere."""
    made: dict[Any, R] = {}

    @functools.wraps(make)
    def get(*key: Any) -> R:
        if key not in made:
            with _making:
                if key not in made:
                    made[key] = make(*key)
        return made[key]

    return get


class Kernel:
    """A function of fixed argument types, compiled or fetched from the cache when it is first wanted."""

    _all: ClassVar[list["Kernel"]] = []  # machine code lives as long as what compiled it

    def __init__(self, function: Callable[..., Any], signature: Any, *, nogil: bool = True) -> None:
        self._options = {**_OPTIONS, "nogil": nogil}
        self.function, self.signature = getattr(function, "py_func", function), signature
        self._all.append(self)

    @_Once
    def call(self) -> Callable[..., Any]:
        """The function as Python calls it: without Numba's dispatcher, which looks at the type of every argument."""
        self._dispatcher = _cached(numba.njit(**self._options)(self.function))
        with timed(self.function.__name__):
            return self._dispatcher.compile(self.signature)

    @_Once
    def address(self) -> int:
        """The function as compiled code calls it."""
        self._callback = _cached(CFunc(self.function, sigutils.normalize_signature(self.signature), {}, _OPTIONS))
        with timed(self.function.__name__):
            self._callback.compile()
        return int(self._callback.address)

    @_Once
    def native(self) -> int:
        """The function as `call_native` calls it, without the wrapper that C needs."""
        _ = self.address
        result = self._callback._cache.result
        return int(result.library.get_pointer_to_function(result.fndesc.llvm_func_name))


emitted = intrinsic
"""What is written as LLVM code."""


def _stamp() -> str:
    """Changes when any source of this folder or the vector width does: Numba itself looks at one file only."""
    digest = hashlib.sha256(repr((VECTOR_BYTES, numba.__version__)).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_STAMP: Final = _stamp()


_log: Final = logging.getLogger("fusedrnn.numba")
_spent = 0.0  # seconds of compiling, in this process
_said = False
_misses = 0  # functions that were not on disk


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    """Log what is compiled; a warning, once, when a process has spent seconds on it."""
    global _spent, _said
    if _spent > 2 and not _said:
        _said = True
        _log.warning("compiling takes some seconds, once: what is compiled is kept on disk (fusedrnn.numba.compile)")
    began, before, collecting = time.perf_counter(), _misses, gc.isenabled()
    gc.disable()  # a compiler makes much and drops little: a quarter of the time
    try:
        yield
    finally:
        if collecting:
            gc.enable()
    if _misses > before:
        took = time.perf_counter() - began
        _spent += took
        _log.info("compiled %s in %.1f s", name, took)


class _Stamped(caching.FunctionCache):  # type: ignore[misc]  # Numba ships no types
    """Numba's cache on disk, with our stamp in the place of the file's own, and files for every size of L2."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        name = f"{self._impl.filename_base}-{own_cache() >> 10}k"
        self._cache_file = caching.IndexDataCacheFile(
            cache_path=self._cache_path, filename_base=name, source_stamp=_STAMP
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        global _misses
        self.result = super().load_overload(sig, target_context)
        _misses += self.result is None
        return self.result

    def save_overload(self, sig: Any, data: Any) -> None:
        self.result = data
        super().save_overload(sig, data)


def _cached(dispatcher: Any) -> Any:
    dispatcher._cache = _Stamped(getattr(dispatcher, "py_func", None) or dispatcher._pyfunc)
    return dispatcher
