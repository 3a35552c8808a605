"""The promise of equal bits: what a sequence gives depends on nothing but the sequence, its states and the weights.

Not on threads, batch, chunks, streaming, the vector width, a fork or who else computes at the time. Compared with ==;
two different machines are not compared, and the baseline without fused multiply-add is held to itself alone.
"""

import concurrent.futures
import dataclasses
import functools
import os
import pickle
import select
import signal

import numpy as np
import pytest
from cases import (
    CELLS,
    DTYPES,
    FUNCTIONS,
    GATES,
    PARAMETERS,
    Case,
    assert_close,
    assert_same,
    backward,
    forward,
    problem,
    run,
    run_functional,
)

import fusedrnn as fr

THREADS = (1, 2, 3, 4, 7)
BATCH_AXIS = {"y": 1, "h_n": 1, "c_n": 1, "x": 1, "h0": 0, "c0": 0}

# T, B, I, H: small; ragged tiles; many rows of the input's product; a wide layer of few sequences, twice; a batch to
# split; a batch and a layer to split; a layer whose threads do each other's work, until few sequences are left; whole
# vectors, whose backward matrices few rows take as they come; a step of a layer too large to be packed beforehand; more
# rows of such a layer than are projected at once otherwise.
SIZES = (
    (7, 3, 5, 9, "any", "both"),
    (5, 33, 17, 65, "none", "reverse"),
    (90, 7, 12, 20, "zeros", "both"),
    (4, 2, 40, 257, "none", "both"),
    (6, 5, 7, 390, "any", "reverse"),
    (3, 16, 33, 128, "any", "forward"),
    (3, 40, 10, 300, "none", "forward"),
    (4, 40, 6, 512, "any", "reverse"),
    (6, 20, 48, 144, "none", "both"),
    (1, 9, 300, 520, "none", "both"),
    (9, 21, 260, 300, "any", "forward"),
    (3, 128, 64, 20, "any", "both"),
)

# Where the first step is a large part of all: the only one; all of a block of dW, packed or in place; most of one.
FIRST = (
    (1, 5, 6, 70, "none", "both"),
    (2, 600, 5, 16, "none", "forward"),
    (2, 520, 7, 21, "none", "both"),
    (3, 300, 6, 33, "any", "reverse"),
)


def cases(cell, dtype, sizes=SIZES):
    for T, B, I, H, lengths, directions in sizes:
        yield Case(cell, dtype, T, B, I, H, lengths=lengths, directions=directions)


def of_sizes(sizes):
    """The test for every cell, dtype and instruction set, once with each of the sizes."""

    def each(test):
        @functools.wraps(test)
        def loop(cell, dtype, compiled):
            for case in cases(cell, dtype, sizes):
                try:
                    test(compiled.module, problem(case))
                except Exception as error:
                    error.add_note(f"in {case}")
                    raise

        del loop.__wrapped__  # pytest is to see the arguments of the loop
        return pytest.mark.parametrize("cell", CELLS)(pytest.mark.parametrize("dtype", DTYPES)(loop))

    return each


each_cell = of_sizes(SIZES)


def of_rows(results, index):
    """What belongs to the sequences `index` of the batch (gradients of parameters are sums over it)."""
    found = {}
    for name, a in results.items():
        axis = BATCH_AXIS.get(name.split(".")[-1])
        if axis is not None:
            found[name] = None if a is None else a.take(index, axis=axis)
    return found


# Threads -------------------------------------------------------------------------------------------------------------


@each_cell
def test_any_number_of_threads(core, p):
    """Outputs and every gradient."""
    core.set_num_threads(1)
    want = run(core, p)
    for threads in THREADS[1:]:
        core.set_num_threads(threads)
        assert core.get_num_threads() == threads
        assert_same(run(core, p), want)
        assert_same(forward(core, p)[0], {name: want[name] for name in ("y", "h_n", "c_n")})


@each_cell
def test_any_cache(core, p):
    """Weights that stay in a core's own cache, and weights that do not, are dealt out and read in other ways."""
    if not hasattr(core, "near"):
        pytest.skip("compiled for the cache at hand")
    core.set_num_threads(2)
    want = run(core, p)
    try:
        for size in (4 << 10, 64 << 20):
            core.near(size)
            assert_same(run(core, p), want)
    finally:
        core.near(fr.threads.own_cache())


@pytest.mark.parametrize("cell", CELLS)
def test_large_gradients(cell, compiled):
    """Blocks of dW one after the other, and the matrix of dx where their operands were: nobody comes too early."""
    core, p = compiled.module, problem(Case(cell, "float32", 70, 33, 520, 528, lengths="any", directions="forward"))
    core.set_num_threads(1)
    want = run(core, p)
    for threads in THREADS[1:]:
        core.set_num_threads(threads)
        for _ in range(3):
            assert_same(run(core, p), want)


@pytest.mark.parametrize("directions", ["forward", "both"])
@pytest.mark.parametrize("cell", CELLS)
def test_threads_of_one_pass_each(cell, directions, compiled):
    """A tape that so many groups have written, each in a part of its own, is read by others."""
    core, p = compiled.module, problem(Case(cell, "float32", 40, 13, 8, 40, directions=directions))
    core.set_num_threads(1)
    want = run(core, p)
    for one, other in [(2, 1), (1, 2), (3, 2), (4, 3), (4, 1), (2, 4)]:
        core.set_num_threads(one)
        _, tape = forward(core, p, training=True)
        core.set_num_threads(other)
        got = backward(core, p, tape)
        assert_same(got, {name: want[name] for name in got})


@each_cell
def test_again(core, p):
    """Nothing is left over from one call to the next."""
    want = run(core, p)
    run(core, p.map(lambda a: np.full_like(a, 1e3)))
    assert_same(run(core, p), want)


def test_python_threads_at_once(compiled):
    """Each gets what it gets alone, with one team between them."""
    problems = [problem(case) for cell in CELLS for case in cases(cell, "float32")]
    want = [run(compiled.module, p) for p in problems]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for round_ in range(3):
            order = np.random.default_rng(round_).permutation(len(problems))
            found = pool.map(lambda i: (i, run(compiled.module, problems[i])), order)
            for i, got in found:
                assert_same(got, want[i])


# Batches -------------------------------------------------------------------------------------------------------------


@each_cell
def test_a_sequence_alone_and_in_any_batch(core, p):
    batch = p.x.shape[1]
    whole = run(core, p)
    for row in {0, batch // 2, batch - 1}:
        index = np.array([row])
        assert_same(of_rows(run(core, p.rows(index)), [0]), of_rows(whole, index))
    order = np.random.default_rng(batch).permutation(batch)
    assert_same(of_rows(run(core, p.rows(order)), np.arange(batch)), of_rows(whole, order))


@each_cell
def test_a_batch_in_parts(core, p):
    batch = p.x.shape[1]
    whole = run(core, p)
    for cut in {1, batch // 2, batch - 1} - {0, batch}:
        for part in (np.arange(cut), np.arange(cut, batch)):
            assert_same(of_rows(run(core, p.rows(part)), np.arange(len(part))), of_rows(whole, part))


def test_every_batch_size(compiled):
    """One sequence as the last of 1 to 33: every height of a tile."""
    for cell in CELLS:
        p = problem(Case(cell, T=3, B=33, I=5, H=40))
        whole = run(compiled.module, p)
        for batch in range(1, 33):
            rows = np.arange(33 - batch, 33)
            assert_same(of_rows(run(compiled.module, p.rows(rows)), np.arange(batch)), of_rows(whole, rows))


# Time ----------------------------------------------------------------------------------------------------------------


@each_cell
def test_lengths_as_if_each_sequence_were_cut(core, p):
    lengths = np.minimum(np.arange(p.x.shape[1]) * 7 % (p.x.shape[0] + 1), p.x.shape[0]).astype(np.int64)
    p = dataclasses.replace(p.map(np.nan_to_num), lengths=lengths)
    whole = run(core, p)
    for row, length in list(enumerate(lengths))[:8]:
        alone = p.rows(np.array([row]))
        cut = dataclasses.replace(alone, x=alone.x[:length].copy(), dy=alone.dy[:length].copy(), lengths=None)
        want, got = of_rows(run(core, cut), [0]), of_rows(whole, [row])
        for name in ("y", "x"):
            assert not got[name][length:].any()
            got[name] = got[name][:length]
        assert_same(got, want)


@each_cell
def test_reversed_time(core, p):
    """A reversed direction is the forward one on the sequence turned round."""
    turned = dataclasses.replace(p, x=p.x[::-1].copy(), dy=p.dy[::-1].copy(), lengths=None).map(np.nan_to_num)
    turned = dataclasses.replace(turned, directions=tuple((*d[:3], not d[3]) for d in turned.directions))
    straight = dataclasses.replace(p, lengths=None).map(np.nan_to_num)
    got, want = run(core, straight), run(core, turned)
    for name in ("y", "x"):
        want[name] = want[name][::-1]
    everything = np.arange(p.x.shape[1])
    assert_same(of_rows(got, everything), of_rows(want, everything))


@each_cell
def test_both_directions_as_two_calls(core, p):
    """Everything but dx, which is the sum of the two."""
    H = p.directions[0][0][1].shape[1]
    both = run(core, p)
    for d, direction in enumerate(p.directions):
        part = slice(d * H, (d + 1) * H)
        states = (None if a is None else a[d : d + 1] for a in (p.dh_n, p.dc_n))
        dh_n, dc_n = states
        alone = dataclasses.replace(p, directions=(direction,), dy=p.dy[:, :, part].copy(), dh_n=dh_n, dc_n=dc_n)
        one = run(core, alone)
        assert np.array_equal(both["y"][:, :, part], one["y"])
        for name in (*PARAMETERS, "h0", "c0"):
            assert_same({name: both[f"{d}.{name}"]}, {name: one[f"0.{name}"]})


def steps(core, p, batch):
    """The weights of p's first direction packed for a stream, and p without lengths."""
    weights, h0, c0, _ = p.directions[0]
    stepper = core.stream((core.pack(p.cell, *weights),), batch)
    p = dataclasses.replace(p, lengths=None, directions=((weights, h0, c0, False),)).map(np.nan_to_num)
    return stepper, p


@each_cell
def test_a_stream_and_a_sequence(core, p):
    stepper, p = steps(core, p, p.x.shape[1])
    want = forward(core, p)[0]
    _, h0, c0, _ = p.directions[0]
    stepper.set_state(h0[None], None if c0 is None else c0[None])
    out = np.empty_like(want["y"][0])
    for t, x_t in enumerate(p.x):
        assert np.array_equal(stepper.step(x_t, out=out) if t % 2 else stepper.step(x_t), want["y"][t])
    assert_same(dict(zip("hc", stepper.get_state(), strict=True)), {"h": want["h_n"], "c": want["c_n"]})


@each_cell
def test_a_stream_of_one_sequence(core, p):
    stepper, p = steps(core, p, 1)
    want = forward(core, p)[0]
    _, h0, c0, _ = p.directions[0]
    stepper.set_state(h0[None, -1:], None if c0 is None else c0[None, -1:])
    for t, x_t in enumerate(p.x):
        assert np.array_equal(stepper.step(x_t[-1:]), want["y"][t, -1:])


@pytest.mark.parametrize("size", [(1, 40, 300), (3, 300, 130), (9, 17, 200), (40, 70, 150), (300, 20, 70)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_stream_and_its_threads(cell, dtype, size, compiled):
    """Steps that are cut into blocks of units and of rows, for whoever takes them; some of them are a trial, in which
    they are made another way, and for those of two threads there is time to try all."""
    function, options = FUNCTIONS[cell]
    B, I, H = size
    layer = getattr(fr, function.upper())(I, H, dtype=dtype, rng=0, backend=compiled.backend, **options).freeze()
    x = np.random.default_rng(0).standard_normal((5, B, I)).astype(dtype)
    want, state = layer(x)
    stream = layer.stream(batch_size=B)
    for threads in (1, 2, 3, 4):
        compiled.module.set_num_threads(threads)
        for _ in range(60 if threads == 2 else 12):
            stream.reset()
            assert np.array_equal([stream.step(x_t) for x_t in x], want)
            assert np.array_equal(stream.state, state)


@each_cell
def test_one_call_and_many(core, p):
    """The state carried from call to call, the sequence cut anywhere."""
    time = len(p.x)
    p = dataclasses.replace(p, lengths=None, directions=tuple((*d[:3], False) for d in p.directions)).map(np.nan_to_num)
    whole = forward(core, p)[0]
    for chunk in {1, 2, time // 2 + 1}:
        q, parts = p, []
        for start in range(0, time, chunk):
            q = dataclasses.replace(q, x=p.x[start : start + chunk])
            part = forward(core, q)[0]
            parts.append(part["y"])
            c_n = [None] * len(p.directions) if part["c_n"] is None else part["c_n"]
            states = zip(p.directions, part["h_n"], c_n, strict=True)
            q = dataclasses.replace(q, directions=tuple((w, h, c, False) for (w, *_), h, c in states))
        assert_same(part | {"y": np.concatenate(parts)}, whole)


# Ways of saying the same ---------------------------------------------------------------------------------------------


@of_sizes(SIZES + FIRST)
def test_none_is_zeros(core, p):
    """For states, biases and gradients; a gradient comes back for the bias that was given."""
    B, H = p.x.shape[1], p.directions[0][0][1].shape[1]
    G = p.directions[0][0][0].shape[0]
    lstm = p.cell == "lstm"

    def with_(zeros):
        state = (zeros(B, H), zeros(B, H) if lstm else None)
        directions = tuple(
            ((*weights[:2], zeros(G), zeros(G)), *state, reverse) for weights, _, _, reverse in p.directions
        )
        return dataclasses.replace(
            p,
            directions=directions,
            dy=zeros(*p.dy.shape),
            dh_n=p.dh_n,
            dc_n=zeros(*p.dc_n.shape) if lstm else None,
        )

    want = run(core, with_(lambda *shape: np.zeros(shape, p.x.dtype)))
    got = run(core, with_(lambda *_: None))
    for name in list(want):
        if name.split(".")[-1] in ("b_ih", "b_hh"):
            assert want.pop(name) is not None
            assert got.pop(name) is None
    assert_same(got, want)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_what_none_would_be_multiplied_by_is_not_read(cell, reverse, compiled):
    """Where zeros are given, it is: NaN tells. A first step is left out of dW_hh, too."""
    core, (T, B, I, H) = compiled.module, (3, 4, 5, 40)
    rng, G, lstm = np.random.default_rng(0), GATES[cell], cell == "lstm"
    weights = *(rng.uniform(-0.3, 0.3, (G * H, n)).astype("f") for n in (I, H)), None, None
    lost = (weights[0], np.full((G * H, H), np.nan, "f"), None, None)
    x, zeros = rng.standard_normal((T, B, I), np.float32), np.zeros((B, H), np.float32)
    c0 = rng.standard_normal((B, H), np.float32) if lstm else None

    def final(w, h0, steps, lengths=None):
        return core.forward(cell, x[:steps], ((w, h0, c0, reverse),), lengths, training=False)[1]

    ones = np.array([1, 0, 1, 1])
    for steps, lengths in ((1, None), (3, ones)):
        assert np.array_equal(final(lost, None, steps, lengths), final(weights, zeros, steps, lengths))
        assert np.isnan(final(lost, zeros, steps, lengths)[0, 0]).all()
    assert np.isnan(final(lost, None, 2)).all()

    dy = rng.standard_normal((T, B, H), np.float32)
    dy[:, 0] = np.inf  # of a sequence that has a first step alone
    for h0, finite in ((None, True), (zeros, False)):
        *_, tape = core.forward(cell, x, ((weights, h0, c0, reverse),), np.array([1, 3, 3, 3]), training=True)
        _, ((of_w_ih, of_w_hh, *_),) = core.backward(tape, dy, None, None)
        assert not np.isfinite(of_w_ih).all()
        assert np.isfinite(of_w_hh).all() == finite


@each_cell
def test_with_and_without_dx(core, p):
    want = backward(core, p, forward(core, p, training=True)[1])
    got = backward(core, p, forward(core, p, training=True)[1], of_x=False)
    assert got["x"] is None
    assert_same(got, want | {"x": None})


@pytest.mark.parametrize("cell", CELLS)
def test_what_dx_is_made_of_is_not_read_without_it(cell, compiled):
    """NaN tells, which takes W_ih's place once the forward pass has read it."""
    p = problem(Case(cell, "float32", 6, 9, 40, 48))
    for of_x in (True, False):
        w_ih = p.directions[0][0][0].copy()
        ((weights, *rest),) = p.directions
        changed = dataclasses.replace(p, directions=(((w_ih, *weights[1:]), *rest),))
        _, tape = forward(compiled.module, changed, training=True)
        w_ih[:] = np.nan
        found = backward(compiled.module, changed, tape, of_x)
        of_data = found.pop("x")
        assert np.isnan(of_data).all() if of_x else of_data is None
        assert_same(found, {name: a for name, a in run(compiled.module, p).items() if name in found})


@each_cell
def test_tapes_of_many_calls_at_once(core, p):
    """Backward passes in another order than the forward ones."""
    q = p.map(lambda a: (a * a.dtype.type(0.5)).astype(a.dtype))
    want = run(core, p), run(core, q)
    found = {}
    tapes = [(i, r, forward(core, r, training=True)[1]) for i, r in ((0, p), (1, q), (0, p))]
    for i, r, tape in reversed(tapes):
        dx, gradients = core.backward(tape, r.dy, r.dh_n, r.dc_n)
        found = {"x": dx} | {
            f"{d}.{name}": a
            for d, g in enumerate(gradients)
            for name, a in zip((*PARAMETERS, "h0", "c0"), g, strict=True)
        }
        assert_same(found, {name: want[i][name] for name in found})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_public_functions(cell, dtype, compiled):
    for case in cases(cell, dtype):
        p = problem(dataclasses.replace(case, directions="reverse" if case.B > 8 else "forward"))
        want = run(compiled.module, p)
        assert_same(run_functional(compiled.backend, p), want)
        outputs = {name: want[name] for name in ("y", "h_n", "c_n")}
        assert_same(run_functional(compiled.backend, p, training=False), outputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_layers_frozen_layers_streams_and_functions(cell, dtype, compiled):
    """Three layers: called, called for training, frozen, streamed, and as functions one after the other."""
    function, options = FUNCTIONS[cell]
    layer = getattr(fr, function.upper())(20, 33, num_layers=3, dtype=dtype, rng=0, backend=compiled.backend, **options)
    x = np.random.default_rng(0).standard_normal((9, 4, 20)).astype(dtype)
    y, state = layer(x)
    states = state if cell == "lstm" else (state,)

    for found, found_state in (layer.freeze()(x), layer.forward(x)[:2]):
        assert np.array_equal(found, y)
        assert np.array_equal(found_state, state)

    stream = layer.freeze().stream(batch_size=4)
    assert np.array_equal([stream.step(x_t) for x_t in x], y)
    assert np.array_equal(stream.state, state)

    h = x
    for n in range(3):
        weights = [layer.parameters[f"{name}_l{n}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        h, *finals, _ = getattr(fr, f"{function}_forward")(h, *weights, backend=compiled.backend, **options)
        for final, of_all in zip(finals, states, strict=True):
            assert np.array_equal(final, of_all[n])
    assert np.array_equal(h, y)


# Machines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_avx2_and_avx512(cell, dtype, core):
    """Outputs and every gradient; all that fuses multiplication and addition does so in the same order."""
    names = [name for name in ("avx512", "avx2") if name in core.available_isas()]
    if len(names) < 2:
        pytest.skip("this CPU does not run both")
    before = core.isa()
    try:
        for case in cases(cell, dtype):
            p = problem(case)
            found = []
            for name in names:
                core.set_isa(name)
                found.append(run(core, p))
            assert_same(*found)
    finally:
        core.set_isa(before)


@pytest.mark.parametrize("cell", CELLS)
def test_weights_packed_under_another_instruction_set(cell, core):
    """They stay good: panels of another width are not taken for one's own."""
    names, before = core.available_isas(), core.isa()
    p = problem(Case(cell, T=5, B=7, I=20, H=33, states="zero"))
    weights = p.directions[0][0]
    try:
        for packing in names:
            core.set_isa(packing)
            packed = core.pack(cell, *weights)
            want = core.forward(cell, p.x, ((packed, None, None, False),), None, False)[0]
            for running in names:
                core.set_isa(running)
                got = core.forward(cell, p.x, ((packed, None, None, False),), None, False)[0]
                assert_close({"y": got}, {"y": want}, p)
                stepper = core.stream((packed,), 7)
                core.set_isa(packing)
                assert_close({"y": np.stack([stepper.step(x_t) for x_t in p.x])}, {"y": want}, p)
    finally:
        core.set_isa(before)


def in_child(function, seconds=60):
    """What the function returns in a forked child; fails where the child hangs or dies."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(write, "wb") as pipe:
                pipe.write(pickle.dumps(function()))
        finally:
            os._exit(0)
    os.close(write)
    try:
        with os.fdopen(read, "rb") as pipe:
            if not select.select([pipe], [], [], seconds)[0]:
                pytest.fail("the forked child hangs")
            data = pipe.read()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert data, "the forked child died"
    return pickle.loads(data)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_before_and_after_fork(compiled):
    """In the child, in its own child, and in the parent once more."""
    problems = [problem(case) for cell in CELLS for case in cases(cell, "float32")]
    compiled.module.set_num_threads(2)

    def everything():
        return [run(compiled.module, p) for p in problems]

    want = everything()
    for found in (in_child(everything), in_child(lambda: in_child(everything)), everything()):
        for got, w in zip(found, want, strict=True):
            assert_same(got, w)
