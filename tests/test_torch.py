"""PyTorch, where it is installed, as a second opinion on whole networks: state_dict in, outputs and all gradients out.

Layers, directions, batch first, lengths (PyTorch's packed sequences) and the cells; in float64, where both are right.
"""

import itertools

import numpy as np
import pytest
from cases import tolerance

import fusedrnn as fr

torch = pytest.importorskip("torch", exc_type=ImportError)

KINDS = {
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
}


def close(got, want, name):
    want = want.detach().numpy()
    assert got.shape == want.shape, name
    assert got.dtype == want.dtype, name
    limit = tolerance(got.dtype, 400, 20) * np.abs(want).max(initial=0)
    assert np.abs(got - want).max(initial=0) <= limit, name


def pairs(a):
    return a if isinstance(a, tuple) else (a,)


def unpair(arrays):
    arrays = tuple(arrays)
    return arrays if len(arrays) == 2 else arrays[0]


@pytest.mark.parametrize("cell", KINDS)
@pytest.mark.parametrize("lengths", [None, (3, 6, 1, 6, 4)], ids=["dense", "ragged"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "two"])
def test_layers(bidirectional, lengths, cell, target):
    T, B, I, H = 6, 5, 7, 11
    kind, options = KINDS[cell]
    for num_layers, batch_first, bias, given in itertools.product((1, 3), (False, True), (False, True), (False, True)):
        torch.manual_seed(num_layers)
        shape = {"num_layers": num_layers, "batch_first": batch_first, "bias": bias, "bidirectional": bidirectional}
        theirs = getattr(torch.nn, kind)(I, H, dtype=torch.float64, **shape, **options)
        ours = getattr(fr, kind)(I, H, dtype=np.float64, backend=target.backend, **shape, **options)
        ours.load_state_dict({name: a.detach().numpy() for name, a in theirs.state_dict().items()})
        assert list(ours.state_dict()) == list(theirs.state_dict())

        D = 1 + bidirectional
        x = torch.randn((B, T, I) if batch_first else (T, B, I), dtype=torch.float64, requires_grad=True)
        states = [
            torch.randn(num_layers * D, B, H, dtype=torch.float64, requires_grad=True)
            for _ in range(1 + (cell == "lstm"))
        ]
        packed = x
        if lengths is not None:
            packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
        y, final = theirs(packed, unpair(states)) if given else theirs(packed)
        if lengths is not None:
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=batch_first, total_length=T)
        dy, dstate = torch.randn_like(y), [torch.randn_like(a) for a in pairs(final)]
        torch.autograd.backward([y, *pairs(final)], [dy, *dstate])

        state = unpair(a.detach().numpy() for a in states) if given else None
        with np.errstate(all="ignore"):
            found, state_n, tape = ours.forward(x.detach().numpy(), state, lengths=lengths)
            g = ours.backward(tape, dy.numpy(), unpair(a.numpy() for a in dstate))
        close(found, y, "y")
        for a, b in zip(pairs(state_n), pairs(final), strict=True):
            close(a, b, "final state")
        close(g.x, x.grad, "x")
        if given:
            for a, b in zip(pairs(g.state), states, strict=True):
                close(a, b.grad, "initial state")
        for name, parameter in theirs.named_parameters():
            close(g.parameters[name], parameter.grad, name)


@pytest.mark.parametrize("cell", KINDS)
def test_cells(cell, target):
    B, I, H = 5, 7, 11
    kind, options = KINDS[cell]
    for bias in (False, True):
        torch.manual_seed(0)
        theirs = getattr(torch.nn, f"{kind}Cell")(I, H, bias=bias, dtype=torch.float64, **options)
        ours = getattr(fr, f"{kind}Cell")(I, H, bias=bias, dtype=np.float64, backend=target.backend, **options)
        ours.load_state_dict({name: a.detach().numpy() for name, a in theirs.state_dict().items()})
        x = torch.randn(B, I, dtype=torch.float64)
        states = [torch.randn(B, H, dtype=torch.float64) for _ in range(1 + (cell == "lstm"))]
        got = ours(x.numpy(), unpair(a.numpy() for a in states))
        for a, b in zip(pairs(got), pairs(theirs(x, unpair(states))), strict=True):
            close(a, b, "state")
