"""Inference only: layers whose weights were packed once, and streams that run them one time step at a time.

A frozen layer is immutable and may be shared between threads. A stream keeps a state: one thread at a time.
"""

from __future__ import annotations

import os
from typing import Any, Generic, NoReturn, Protocol, TypeAlias, TypeVar, cast
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from fusedrnn import checks
from fusedrnn.backends import Backend, Packed, Stepper
from fusedrnn.checks import Array
from fusedrnn.stack import Layers, Stack

__all__ = ["Frozen", "Stream"]

Pair: TypeAlias = tuple[Array, Array]
State = TypeVar("State", bound=Array | Pair)
"""h, or for an LSTM (h, c)."""


class Step(Protocol):
    """The type of `Stream.step`."""

    def __call__(self, x_t: npt.ArrayLike, out: Array | None = None) -> Array:
        """Run one time step."""


class _Sized:
    """What a layer for inference tells of itself."""

    __slots__ = ()
    _stack: Stack

    @property
    def input_size(self) -> int:
        """I, the features of x."""
        return self._stack.input_size

    @property
    def hidden_size(self) -> int:
        """H, the features of the state."""
        return self._stack.hidden_size

    @property
    def num_layers(self) -> int:
        """Stacked layers."""
        return self._stack.num_layers

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of every array."""
        return self._stack.dtype


_streams: WeakSet[Stream[Any]] = WeakSet()


def _forked() -> None:
    for stream in _streams:
        stream._stepper.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Frozen(_Sized, Generic[State]):
    """A layer for inference, its weights packed once. Made by ``layer.freeze()``.

    It cannot be changed, so threads may share it; copying it gives the same object.

    Parameters
    ----------
    name : str
        What was frozen, as shown.
    stack : Stack
        Its sizes and layout.
    backend : Backend
        Who packed the weights.
    layers : sequence of tuple
        The packed directions of every layer.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedrnn as fr
    >>> fast = fr.GRU(3, 5, rng=0).freeze()
    >>> y, h_n = fast(np.ones((7, 2, 3), np.float32))
    >>> y, h_n = fast(np.ones((7, 2, 3), np.float32), h_n)  # goes on where the first call ended
    >>> y.shape, h_n.shape
    ((7, 2, 5), (1, 2, 5))
    """

    __slots__ = ("__weakref__", "_backend", "_layers", "_name", "_stack")

    _name: str
    _backend: Backend
    _layers: Layers

    def __init__(self, name: str, stack: Stack, backend: Backend, layers: Layers) -> None:
        for attribute, value in zip(self.__slots__[1:], (backend, layers, name, stack), strict=True):
            object.__setattr__(self, attribute, value)

    def __call__(
        self, x: npt.ArrayLike, state: Any = None, lengths: npt.ArrayLike | None = None
    ) -> tuple[Array, State]:
        """Run the layer.

        Parameters
        ----------
        x : array_like, shape (T, B, I), or (B, T, I) if batch_first, or (T, I) for one sequence without a batch
            The sequences, of the layer's dtype.
        state : array_like or pair of array_like, shape (num_layers * D, B, H), optional
            The initial state: h0, or for an LSTM (h0, c0); without the B for an unbatched x. None is zeros.
        lengths : array_like of int, shape (B,), optional
            Valid steps of each sequence, from 0 to T, in any order. What lies past them is never read.

        Returns
        -------
        y : ndarray, shape (T, B, D * H), or (B, T, D * H) if batch_first, or (T, D * H)
            The last layer's hidden states; 0 past a sequence's length. Batch-first, a view of an array (T, B, D * H).
        state : ndarray or pair of ndarray, shape (num_layers * D, B, H)
            The final state, in the form of the initial one.

        Raises
        ------
        TypeError, ValueError
            An argument does not fit.
        """
        return self._stack.infer(self._backend, self._layers, x, state, lengths)

    def stream(self, batch_size: int = 1) -> Stream[State]:
        """Run the layer step by step.

        Parameters
        ----------
        batch_size : int, default 1
            B.

        Returns
        -------
        Stream
            Its state is zeros.

        Raises
        ------
        TypeError, ValueError
            `batch_size` is no integer, or less than 1.
        ValueError
            The layer is bidirectional.
        """
        if self._stack.directions == 2:
            checks.no_stream(self._name)
        batch_size = checks.size("batch_size", batch_size)
        stack = self._stack
        checks.addressable(
            "batch_size", (stack.num_layers + 8, batch_size, stack.input_size + stack.hidden_size), stack.dtype
        )
        stepper = self._backend.stream(tuple(cast(Packed, directions[0][0]) for directions in self._layers), batch_size)
        return Stream(self, stepper, batch_size)

    def __repr__(self) -> str:
        """Say what was frozen, and on which backend."""
        return f"<frozen {self._name} on {self._backend.name}>"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        """Refuse: threads share a frozen layer."""
        raise AttributeError(f"{name}: a frozen layer cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        """Refuse: threads share a frozen layer."""
        raise AttributeError(f"{name}: a frozen layer cannot be changed")

    def __copy__(self) -> Frozen[State]:
        """The same object: there is nothing in it to change."""
        return self

    def __deepcopy__(self, memo: object) -> Frozen[State]:
        """The same object: there is nothing in it to change."""
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse: packed weights suit the machine they were packed on."""
        raise TypeError("a frozen layer cannot be pickled: pickle the layer and freeze it again")


class Stream(_Sized, Generic[State]):
    """Stacked layers run one time step at a time; the state stays here between the steps. Made by ``frozen.stream()``.

    A copy, shallow or deep, has a state of its own from then on; the packed weights are shared. Where there is no state
    to copy, after a step that was interrupted half way, it raises as reading `state` does.

    Parameters
    ----------
    frozen : Frozen
        What runs.
    stepper : Stepper
        The backend's half: the packed weights and the state.
    batch_size : int
        B.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedrnn as fr
    >>> stream = fr.LSTM(3, 5, rng=0).freeze().stream(batch_size=2)
    >>> h = stream.step(np.ones((2, 3), np.float32))
    >>> h_n, c_n = stream.state
    >>> bool((h_n[-1] == h).all())
    True
    >>> stream.reset()
    """

    # The backend's own method, bound once: a Python function around it would take longer than a small step.
    __slots__ = {
        "__weakref__": None,
        "_frozen": None,
        "_stack": None,
        "_stepper": None,
        "batch_size": "B.",
        "step": """step(x_t, out=None)

        Run one time step.

        Parameters
        ----------
        x_t : ndarray, shape (B, I)
            The input of this step, of the layer's dtype; of a single sequence, ``x[None]``.
        out : ndarray, shape (B, H), optional
            Is written and returned; nothing is then allocated.

        Returns
        -------
        ndarray, shape (B, H)
            The last layer's hidden state.

        Raises
        ------
        TypeError, ValueError
            An argument does not fit.
        RuntimeError
            A step is under way, in another thread or below a signal handler, or the last one was interrupted half way:
            set the state or reset it.
        """,
    }

    _frozen: Frozen[State]
    _stepper: Stepper
    step: Step
    batch_size: int

    def __init__(self, frozen: Frozen[State], stepper: Stepper, batch_size: int) -> None:
        for attribute, value in zip(
            list(self.__slots__)[1:], (frozen, frozen._stack, stepper, batch_size, stepper.step), strict=True
        ):
            object.__setattr__(self, attribute, value)
        _streams.add(self)

    @property
    def state(self) -> State:
        """The present state: h, or for an LSTM (h, c), each (num_layers, B, H). Reading and assigning copy.

        Returns
        -------
        ndarray or pair of ndarray
            A copy.

        Raises
        ------
        TypeError, ValueError
            What is assigned does not fit.
        RuntimeError
            A step is under way, or the last one was interrupted half way: there is no state then until it is set.
        """
        h, c = self._stepper.get_state()
        return cast(State, h if c is None else (h, c))

    @state.setter
    def state(self, value: npt.ArrayLike | tuple[npt.ArrayLike, npt.ArrayLike] | None) -> None:  # numpydoc ignore=GL08
        h, c = self._stack.split("state", ("h", "c"), value, self.batch_size, unbatched=False)
        shape = (self._stack.num_layers, self.batch_size, self._stack.hidden_size)
        h, c = (np.zeros(shape, self._stack.dtype) if part is None else part for part in (h, c))
        self._stepper.set_state(h, c if self._stack.two_states else None)

    def reset(self) -> None:
        """Set the state to zeros."""
        self._stepper.reset()

    def __repr__(self) -> str:
        """Say what runs, and how wide."""
        return f"<stream of {self._frozen._name}, batch_size={self.batch_size}>"

    def __setattr__(self, name: str, value: object) -> None:
        """Set the state; refuse all else."""
        if name != "state":
            raise AttributeError(f"{name}: only the state of a stream can be changed")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> NoReturn:
        """Refuse."""
        raise AttributeError(f"{name}: only the state of a stream can be changed")

    def __copy__(self) -> Stream[State]:
        """Go on apart from here."""
        twin = self._frozen.stream(self.batch_size)
        twin.state = self.state
        return twin

    def __deepcopy__(self, memo: object) -> Stream[State]:
        """Go on apart from here."""
        return self.__copy__()

    def __reduce__(self) -> NoReturn:
        """Refuse: packed weights suit the machine they were packed on."""
        raise TypeError("a stream cannot be pickled: pickle the layer and the stream's state")
