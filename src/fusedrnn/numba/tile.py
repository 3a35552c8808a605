"""THE TILE: R rows x V vectors of accumulators in registers, K outermost, one broadcast a row and one fused
multiply-add an accumulator each step; the product made of tiles, and packing. The twin of kernels/tile.h, which says
what is promised: every element is one chain over ascending k, so its bits do not depend on R, V, the rows beside it,
the team or the vector width.

A tile is emitted as LLVM vectors, R, P (panels), V and `fetch` being constants. Its loop is unrolled by hand, since
LLVM would unroll the short one of a narrow tile and leave the long one of a wide tile alone.
"""

import functools
import itertools
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from fusedrnn.numba import vec
from fusedrnn.numba.jit import VECTOR_BYTES, emitted, inlined, inner
from fusedrnn.numba.machine import ARM, X86, at, call, clear, copy, get, prefetch, put, stack
from fusedrnn.numba.vec import by_dtype, itemsize, lanes, load_upto, real, set_real, store, store_upto, transpose, zeros

__all__ = [
    "DEPTH",
    "PACK",
    "PANEL",
    "POINTWISE",
    "PRODUCT",
    "fetch_ahead",
    "pack_left",
    "pack_rows",
    "pack_transposed",
    "product",
    "table_of",
    "tiles_of",
    "widths_for",
]

PANEL = 4
"""Vectors in a full linear panel: 6 rows x 4 vectors fill 24 of 32 registers."""
DEPTH = 512
"""K block of a product: a panel's block stays in L2 while the rows pass by."""
LEFT = 6
"""Rows that `pack_left` lays side by side."""

WIDE = VECTOR_BYTES == 64 or ARM
"""32 registers (AVX-512, NEON); else 16."""
REGISTERS = 32 if WIDE else 16
MOST_ROWS = (0, 8, 8, 8, 6) if WIDE else (0, 8, 6, 4, 3)
"""Rows of a tile by its vectors."""
AT_ONCE = 2**62 if WIDE else 24 * 1024
"""Bytes of a panel of 4: a larger one would not stay in L1 and is worked off in halves, ..."""
HALVES = () if WIDE else (2,)
"""... so many vectors each."""
TOGETHER = (0, 0, 4, 2, 2)
"""Panels that a single row takes at once, by their vectors: eight chains keep two ports of latency 4 busy."""
UNROLL = 4
DEEP = 384
"""Tiles of fewer k are too short for two dozen prefetches, and what they add to is in L1 or near."""
AHEAD = 4
"""Rows of a backward pass whose memory is on its way."""
COPY_BYTES = 8 * 4 * VECTOR_BYTES  # a tile of whole vectors
POINTER_BYTES = 8 * 8


def record(*names: str) -> np.dtype[Any]:
    """A structure of 64-bit integers."""
    return np.dtype([(name, np.int64) for name in names])


# out[r][...] (+)= sum_k a[r][k] * w[k][...]: product_t of kernels/tiles.h, every field with the meaning it has there,
# and `tiles`, a table of tiles.
PRODUCT = record(
    *("rows", "a", "a_step", "a_segment", "segments", "depth", "w", "ld", "width", "vectors", "first", "last", "out"),
    *("out_offset", "out_panel", "out_step", "columns", "init", "accumulate", "whole", "fetch_left", "prefetch"),
    *("next", "tiles"),
)
# What stays the same over the tiles of one product.
WALK = record(
    *("a_step", "a_segment", "segments", "depth", "w_step", "w_panel", "out_panel", "out_step", "init", "accumulate"),
    "fetch_step",  # bytes from k to k+1 in the panel to come
)
WALK_BYTES, PRODUCT_BYTES = WALK.itemsize, PRODUCT.itemsize
# pack_t, with what pack_left takes: w rows of ld elements, `sum` the column sums, `step` elements from a group of rows
# to the next.
PACK = record(
    *("out", "depth", "width", "vectors", "first", "last", "columns", "w", "ld", "row", "gated", "sum"),
    *("step", "gate0", "gate1", "gate2", "gate3"),
)


def has_fetch(V: int, R: int) -> bool:
    """Whether a tile is wide enough to hide a prefetch in every step of k."""
    return V in (*HALVES, 3, PANEL) and (2 if V == 4 else 4) <= R


I32, I64 = ir.IntType(32), ir.IntType(64)
TILE = ir.FunctionType(ir.VoidType(), [I64] * 7)


def emit_tile(module: Any, real: Any, R: int, P: int, V: int, fetch: bool) -> Any:
    """The function of one tile: (walk, a, a_offset, w, out, out_offset, next)."""
    name = f"fusedrnn_tile_{R}x{P}x{V}{'_fetch' if fetch else ''}_f{vec.BITS[real]}"
    function = module.globals.get(name)
    if function is not None:
        return function
    function = ir.Function(module, TILE, name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    walk, a, a_offset, w, out, out_offset, ahead = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    blocks = {n: function.append_basic_block(n) for n in ("segment", "four", "fours", "one", "ones", "next", "end")}
    cells = [(r, p, v) for r in range(R) for p in range(P) for v in range(V)]
    size = vec.BITS[real] // 8

    def word(base: Any, i: int) -> Any:
        return b.load(b.gep(b.inttoptr(base, I64.as_pointer()), [I64(i)]))

    g = {field: word(walk, i) for i, field in enumerate(WALK.names or ())}

    def places(rows: list[Any]) -> list[Any]:
        steps = {
            (p, v): b.add(out_offset, b.add(b.mul(I64(p), g["out_panel"]), b.mul(I64(v), g["out_step"])))
            for p in range(P)
            for v in range(V)
        }
        return [b.gep(rows[r], [steps[p, v]]) for r, p, v in cells]

    left = [b.gep(vec.pointer(b, word(a, r), real), [a_offset]) for r in range(R)]
    to = places([vec.pointer(b, word(out, r), real) for r in range(R)])

    # start from out, from init or from zero
    start, begins = [], []
    blocks_in = {n: function.append_basic_block(n) for n in ("accumulate", "fresh", "init", "zero", "begin")}
    b.cbranch(b.icmp_signed("!=", g["accumulate"], I64(0)), blocks_in["accumulate"], blocks_in["fresh"])
    b.position_at_end(blocks_in["accumulate"])
    begins.append(([vec.emit_load(b, p, real) for p in to], b.block))
    b.branch(blocks_in["begin"])
    b.position_at_end(blocks_in["fresh"])
    b.cbranch(b.icmp_signed("!=", g["init"], I64(0)), blocks_in["init"], blocks_in["zero"])
    b.position_at_end(blocks_in["init"])
    row = vec.pointer(b, g["init"], real)
    begins.append(([vec.emit_load(b, p, real) for p in places([row] * R)], b.block))
    b.branch(blocks_in["begin"])
    b.position_at_end(blocks_in["zero"])
    begins.append(([ir.Constant(vec.ir_vector(real), None)] * len(cells), b.block))
    b.branch(blocks_in["begin"])
    b.position_at_end(blocks_in["begin"])
    for i in range(len(cells)):
        phi = b.phi(vec.ir_vector(real))
        for values, block in begins:
            phi.add_incoming(values[i], block)
        start.append(phi)

    # state of the loops: s is carried by `segment` alone; w, at, ahead and the sums by all
    w_bytes, a_step = b.mul(g["w_step"], I64(size)), g["a_step"]
    panel_bytes = b.mul(g["w_panel"], I64(size))
    fours_of, ones_of = b.ashr(g["depth"], I64(2)), b.and_(g["depth"], I64(3))
    begin = b.block

    def header(block: str, values: list[Any], source: Any) -> list[Any]:
        b.position_at_end(blocks[block])
        phis = []
        for value in values:
            phi = b.phi(value.type)
            phi.add_incoming(value, source)
            phis.append(phi)
        return phis

    def close(phis: list[Any], values: list[Any]) -> None:
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, b.block)

    def fence(values: list[Any]) -> list[Any]:
        """No instruction, but LLVM sees no further: else it would load the weights of several k at once, and keep an
        address for each row and each of them, and spill."""
        registers = ["r" if v.type == I64 else "v" if X86 else "w" for v in values]
        t = ir.FunctionType(ir.LiteralStructType([v.type for v in values]), [v.type for v in values])
        constraints = [*(f"={r}" for r in registers), *map(str, range(len(values))), "~{memory}"]
        found = b.asm(t, "", ",".join(constraints), values, True)
        return [b.extract_value(found, i) for i in range(len(values))]

    def step(w: Any, at: Any, ahead: Any, sums: list[Any]) -> tuple[Any, Any, Any, list[Any]]:
        """One k."""
        w, at, *sums = fence([w, at, *sums])
        if fetch:
            p = b.inttoptr(ahead, ir.IntType(8).as_pointer())
            t = ir.FunctionType(ir.VoidType(), [p.type, I32, I32, I32])
            b.call(cgutils.get_or_insert_function(module, t, "llvm.prefetch.p0"), [p, I32(0), I32(2), I32(1)])
            ahead = b.add(ahead, g["fetch_step"])
        panels = [w if p == 0 else b.add(w, b.mul(I64(p), panel_bytes)) for p in range(P)]
        new = list(sums)

        def weight(p: int, v: int) -> Any:
            return vec.emit_load(b, vec.pointer(b, panels[p], real, I64(v * VECTOR_BYTES // size)), real)

        def x(r: int) -> Any:
            return vec.splat(b, b.load(b.gep(left[r], [at])))

        if R > 1 and len(cells) + P * V + 1 > REGISTERS:  # these do not hold all weights, but an element of each row
            xs = [x(r) for r in range(R)]
            for p, v in itertools.product(range(P), range(V)):
                one = weight(p, v)
                for i in (i for i, cell in enumerate(cells) if cell[1:] == (p, v)):
                    new[i] = vec.emit_fma(b, xs[cells[i][0]], one, sums[i])
        else:
            weights = {(p, v): weight(p, v) for p in range(P) for v in range(V)}
            for r in range(R):
                one = x(r)
                for i in (i for i, cell in enumerate(cells) if cell[0] == r):
                    new[i] = vec.emit_fma(b, one, weights[cells[i][1:]], sums[i])
        return b.add(w, w_bytes), b.add(at, a_step), ahead, new

    zero = I64(0)
    b.cbranch(b.icmp_signed(">", g["segments"], zero), blocks["segment"], blocks["end"])
    outer = header("segment", [zero, w, zero, ahead, *start], begin)
    s, w_s, at_s, ahead_s, *sums_s = outer
    b.cbranch(b.icmp_signed(">", fours_of, zero), blocks["four"], blocks["fours"])

    loop = header("four", [fours_of, w_s, at_s, ahead_s, *sums_s], blocks["segment"])
    n, w_k, at_k, ahead_k, *sums = loop
    for _ in range(UNROLL):
        w_k, at_k, ahead_k, sums = step(w_k, at_k, ahead_k, sums)
    n = b.sub(n, I64(1))
    after_fours = [w_k, at_k, ahead_k, *sums]
    close(loop, [n, *after_fours])
    b.cbranch(b.icmp_signed(">", n, zero), blocks["four"], blocks["fours"])

    rest = header("fours", [w_s, at_s, ahead_s, *sums_s], blocks["segment"])
    for phi, value in zip(rest, after_fours, strict=True):
        phi.add_incoming(value, blocks["four"])
    b.cbranch(b.icmp_signed(">", ones_of, zero), blocks["one"], blocks["ones"])

    loop = header("one", [ones_of, *rest], blocks["fours"])
    n, w_k, at_k, ahead_k, *sums = loop
    w_k, at_k, ahead_k, sums = step(w_k, at_k, ahead_k, sums)
    n = b.sub(n, I64(1))
    after_ones = [w_k, at_k, ahead_k, *sums]
    close(loop, [n, *after_ones])
    b.cbranch(b.icmp_signed(">", n, zero), blocks["one"], blocks["ones"])

    done = header("ones", rest, blocks["fours"])
    for phi, value in zip(done, after_ones, strict=True):
        phi.add_incoming(value, blocks["one"])
    w_k, at_k, ahead_k, *sums = done
    s = b.add(s, I64(1))
    close(outer, [s, w_k, b.mul(s, g["a_segment"]), ahead_k, *sums])
    b.cbranch(b.icmp_signed("<", s, g["segments"]), blocks["segment"], blocks["next"])

    b.position_at_end(blocks["next"])
    for place, value in zip(to, sums, strict=True):
        vec.emit_store(b, value, place, real)
    b.ret_void()
    b.position_at_end(blocks["end"])  # no segments: nothing to add, and nobody asks for that
    b.ret_void()
    return function


# The gate math of some rows and units: pointwise_t of kernels/tiles.h, and the `stage` of the step.
POINTWISE = record(
    *("rows", "first", "last", "stride", "training", "gates", "h_prev", "h", "c_prev", "c", "dy", "dh", "dc", "dq"),
    "stage",
)
POINTWISE_BYTES = POINTWISE.itemsize


@inner
def fetch_ahead(q, state, j, u, segments, like):
    """What a pointwise function of the backward pass reads has left the near caches, and no prefetcher follows from row
    to row: some segments of a gate row, a state and dy are fetched AHEAD rows before."""
    row = j + AHEAD
    if row >= q.rows:
        return
    at_u = u * itemsize(like)
    for s in range(segments):
        prefetch(get(q.gates, row) + at_u + s * q.stride * itemsize(like))
    prefetch(get(state, row) + at_u)
    if q.dy:
        prefetch(get(q.dy, row) + at_u)


FETCHED = 5 * 9
"""Where the tiles with prefetch begin in a table [fetch][V][R]; R = 0 is the tile of one row and several panels."""


def table_of(widths: tuple[int, ...], *, fetch: bool = True) -> Any:
    """Make the intrinsic table(like): the address of a table of the tiles of these widths, which alone are compiled."""

    def constant(module: Any, real: Any) -> Any:
        name = f"fusedrnn_tiles_{''.join(map(str, widths))}{'_fetch' if fetch else ''}_f{vec.BITS[real]}"
        if (found := module.globals.get(name)) is not None:
            return found
        functions = [ir.Constant(TILE.as_pointer(), None)] * (2 * FETCHED)
        for V in widths:
            for R in range(1, MOST_ROWS[V] + 1):
                functions[V * 9 + R] = emit_tile(module, real, R, 1, V, fetch=False)
                if fetch and has_fetch(V, R):
                    functions[FETCHED + V * 9 + R] = emit_tile(module, real, R, 1, V, fetch=True)
            if TOGETHER[V]:
                functions[V * 9] = emit_tile(module, real, 1, TOGETHER[V], V, fetch=False)
        t = ir.ArrayType(TILE.as_pointer(), len(functions))
        found = ir.GlobalVariable(module, t, name)
        found.linkage, found.global_constant, found.initializer = "internal", True, ir.Constant(t, functions)
        return found

    @emitted
    def table(typing: Any, like: Any) -> Any:
        """The address of the table, one function pointer a place."""

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.ptrtoint(constant(builder.module, vec.real_of(like)), I64)

        return types.int64(like), codegen

    return table


FETCHES = tuple(int(0 < R <= MOST_ROWS[V] and has_fetch(V, R)) for V in range(5) for R in range(9))
one_vector, two_vectors, three_vectors, four_vectors = (table_of((V,)) for V in (1, 2, 3, 4))


def tiles_of_1(like):
    return one_vector(like)


def tiles_of_2(like):
    return two_vectors(like)


def tiles_of_3(like):
    return three_vectors(like)


def tiles_of_4(like):
    return four_vectors(like)


tiles_of = {1: tiles_of_1, 2: tiles_of_2, 3: tiles_of_3, 4: tiles_of_4}
"""By their vectors: functions that give a table; apart, since a first call waits for what it compiles."""


@functools.cache
def widths_for(gates: int, vectors: int, threads: int) -> frozenset[int]:
    """Vectors of the tiles that panels of so many gates meet, where `vectors` of a gate are shared out among up to so
    many threads. Those of one gate are linear: the last panel is narrower, and a thread's share may end within one."""
    met = {gates}
    if gates == 1:
        ends = {0, vectors, *range(0, vectors, PANEL)}
        shares = [sorted(ends | {vectors * r // size for r in range(size)}) for size in range(1, threads + 1)]
        met = {b - a for share in shares for a, b in itertools.pairwise(share)}
    return frozenset(met.union(HALVES) if PANEL in met else met)


@inner
def next_left(walk, a, a_offset, rows, like):
    """Rows of the left operand for the tile before to fetch, from where they begin; 0 where they lie apart."""
    g = at(walk, WALK)
    size = itemsize(like)
    used = (g.segments - 1) * g.a_segment + g.depth
    span = (get(a, rows - 1) - get(a, 0)) // size + used
    if span <= 0 or span > 2 * rows * used:
        return 0
    g.fetch_step = span * size // (g.segments * g.depth)
    return get(a, 0) + a_offset * size


@inlined
def rows_of_tiles(p, walk, a_offset, w, width, out_offset, columns, ahead, like):
    """All rows of `width` vectors at w, in balanced tiles: 32 rows are 6,6,5,5,5,5 and not 6,6,6,6,6,2."""
    q, g = at(p, PRODUCT), at(walk, WALK)
    size, L = itemsize(like), lanes(like)
    a, out, total = q.a, q.out, q.rows
    most = MOST_ROWS[width]
    tiles = 1 if total <= most else (total + most - 1) // most
    fewer = total if tiles == 1 else total // tiles
    longer = total - fewer * tiles
    # the next panel is spread over all tiles: at a line a k the core's few fill buffers are never free
    g.fetch_step = min((VECTOR_BYTES * width + tiles - 1) // tiles, 64)
    left = q.fetch_left and tiles > 1
    for t in range(tiles):
        rows = fewer + 1 if t < longer else fewer
        if left:
            more = fewer + 1 if t + 1 < longer else fewer
            ahead = next_left(walk, a + 8 * rows, a_offset, more, like) if t + 1 < tiles else 0
        fetch = 1 if ahead and FETCHES[width * 9 + rows] else 0
        tile = get(q.tiles, fetch * FETCHED + width * 9 + rows)
        now = ahead
        if fetch:
            ahead += g.depth * g.segments * g.fetch_step
        if g.depth >= DEEP and t + 1 < tiles:  # what the next tile begins with is on its way while this one works
            for r in range(rows, rows + fewer):
                for v in range(width):
                    prefetch(get(out, r) + (out_offset + v * g.out_step) * size)
        if columns >= width * L:
            call(tile, walk, a, a_offset, w, out, out_offset, now)
        else:  # the last columns of unpadded rows: by way of a padded copy
            padded = stack(COPY_BYTES)
            to = stack(POINTER_BYTES)
            clear(padded, rows * 4 * VECTOR_BYTES)
            for r in range(rows):
                put(to, r, padded + r * 4 * VECTOR_BYTES - out_offset * size)
                if g.accumulate:
                    copy(padded + r * 4 * VECTOR_BYTES, get(out, r) + out_offset * size, columns * size)
            call(tile, walk, a, a_offset, w, to, out_offset, now)
            for r in range(rows):
                copy(get(out, r) + out_offset * size, padded + r * 4 * VECTOR_BYTES, columns * size)
        a += 8 * rows
        out += 8 * rows


@inlined
def block(p, walk, a_offset, k0, after, like):
    """Vectors [first, last) of one K block."""
    q, g = at(p, PRODUCT), at(walk, WALK)
    size, L = itemsize(like), lanes(like)
    K = q.segments * q.depth
    width_full, vectors, rows, columns, end = q.width, q.vectors, q.rows, q.columns, q.last
    v = q.first
    panel = v // width_full if v else 0
    within = v - panel * width_full
    together = TOGETHER[width_full]
    while v < end:
        full = min(vectors - panel * width_full, width_full)
        w = q.w + (k0 * q.ld + v * L if q.ld else (panel * width_full * K + k0 * full + within) * L) * size
        out_offset = q.out_offset + panel * q.out_panel + within * q.out_step
        g.w_step = q.ld if q.ld else full * L
        g.w_panel = full * L if q.ld else full * L * K
        if (
            rows == 1
            and within == 0
            and width_full > 1
            and v + together * width_full <= end
            and (columns == 0 or (v + together * width_full) * L <= columns)
        ):
            call(get(q.tiles, width_full * 9), walk, q.a, a_offset, w, q.out, out_offset, 0)
            v += together * width_full
            panel += together
            continue
        width = min(full - within, end - v)
        if width == 4 and rows > MOST_ROWS[4] and g.depth * g.segments * 4 * VECTOR_BYTES > AT_ONCE:
            width = 2
        ahead = 0
        if q.prefetch:
            ahead = w - within * VECTOR_BYTES + g.w_panel * size if v - within + full < end else after
        if ahead:
            ahead += within * g.depth * g.segments * VECTOR_BYTES  # half a panel fetches half of the next
        some = columns - v * L if columns else width * L
        rows_of_tiles(p, walk, a_offset, w, width, out_offset, some, ahead, like)
        v += width
        within += width
        if within == width_full:
            panel += 1
            within = 0


@inner
def product(p, like):
    """out (+)= a w, in K blocks of DEPTH."""
    q = at(p, PRODUCT)
    if q.rows <= 0:
        return
    walk = stack(WALK_BYTES)
    g = at(walk, WALK)
    g.a_step = q.a_step
    g.a_segment = q.a_segment
    g.segments = q.segments
    g.depth = q.depth
    g.out_panel = q.out_panel
    g.out_step = q.out_step
    g.init = q.init
    g.accumulate = q.accumulate
    K = q.segments * q.depth
    if q.whole or K <= DEPTH:
        block(p, walk, 0, 0, q.next, like)
        return
    g.segments = 1
    before = q.first // q.width * q.width  # vectors of the panels before the first one here
    line = min(q.vectors - before, q.width) * VECTOR_BYTES
    first = q.w + before * K * VECTOR_BYTES
    for s in range(q.segments):
        for k in range(0, q.depth, DEPTH):
            g.depth = min(q.depth - k, DEPTH)
            k0 = s * q.depth + k
            after = k0 + g.depth
            block(p, walk, s * q.a_segment + k * q.a_step, k0, q.next if after == K else first + after * line, like)
            g.accumulate = 1


# Packing -------------------------------------------------------------------------------------------------------------


@inner
def pack_transposed(p, like):
    """Columns of w^T: column c of gate g is a row of w."""
    q = at(p, PACK)
    L, size, depth, ld = lanes(like), itemsize(like), q.depth, q.ld
    for v in range(q.first, q.last):
        panel = v // q.width
        within = v - panel * q.width
        full = min(q.vectors - panel * q.width, q.width)
        column = (panel if q.gated else v) * L
        valid = min(q.columns - column, L)
        gate = q.gate0 if within == 0 else q.gate1 if within == 1 else q.gate2 if within == 2 else q.gate3
        source = q.w + ((gate * q.columns if q.gated else 0) + column) * ld * size
        to = q.out + (panel * q.width * depth + within) * L * size
        k = 0
        while valid == L and k + L <= depth:
            transpose(source + k * size, ld, to + k * full * L * size, full * L, like)
            k += L
        while k < depth:
            for i in range(L):
                value = real(source, i * ld + k, like) if i < valid else by_dtype(like, 0.0, 0.0)
                set_real(to, k * full * L + i, value)
            k += 1


@inner
def pack_rows(p, like):
    """Rows of w, each at an address of its own."""
    q = at(p, PACK)
    L, size, depth, columns, row = lanes(like), itemsize(like), q.depth, q.columns, q.row
    v = q.first
    while v < q.last:
        panel = v // q.width
        within = v - panel * q.width
        full = min(q.vectors - panel * q.width, q.width)
        width = min(full - within, q.last - v)
        to = q.out + (panel * q.width * depth + within) * L * size
        for k in range(depth):
            source = get(row, k)
            for i in range(width):
                valid = columns - (v + i) * L
                value = load_upto(source, (v + i) * L, valid, like) if valid > 0 else zeros(like)
                store(to, (k * full + i) * L, value)
        v += width


@inner
def pack_left(p, like):
    """The left operand of dW in groups of 6 rows side by side, `step` elements apart; column sums beside."""
    q = at(p, PACK)
    L, size, depth, columns, ld, source = lanes(like), itemsize(like), q.depth, q.columns, q.ld, q.w
    to, step = q.out, q.step
    for m in range(0, columns, L):
        n = columns - m
        total = load_upto(q.sum, m, n, like)
        for k in range(depth):
            total = total + load_upto(source, k * ld + m, n, like)
        store_upto(q.sum, m, total, n)
    whole = columns // LEFT * LEFT
    for k in range(depth):
        for m in range(0, whole, LEFT):
            copy(to + (m // LEFT * step + k * LEFT) * size, source + (k * ld + m) * size, LEFT * size)
        for i in range(whole, columns):
            set_real(to, whole // LEFT * step + k * LEFT + i - whole, real(source, k * ld + i, like))
