"""The tape: what a forward pass keeps for its backward. Opaque, and good for one."""

from typing import Any, NoReturn

import numpy as np

from fusedrnn import checks

__all__ = ["Tape"]


class Tape:
    """What a forward pass keeps for its backward: opaque, and good for one.

    It holds x, y and the weights by reference: change none of them between forward and backward.

    Parameters
    ----------
    maker : object
        The function's name, or the layer: who may spend the tape.
    shape : tuple of int
        Of y, as the caller saw it.
    dtype : numpy.dtype
        Of everything.
    kept : object
        What the backward needs.
    """

    __slots__ = ("_dtype", "_kept", "_maker", "_shape")

    def __init__(self, maker: object, shape: checks.Shape, dtype: np.dtype[Any], kept: Any) -> None:
        self._maker = maker
        self._shape = shape
        self._dtype = dtype
        self._kept = [kept]  # in a list, because its pop is atomic: of two threads one gets the tape

    @property
    def maker(self) -> object:  # numpydoc ignore=RT01
        """The function's name, or the layer."""
        return self._maker

    @property
    def shape(self) -> checks.Shape:  # numpydoc ignore=RT01
        """Of y."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:  # numpydoc ignore=RT01
        """Of everything."""
        return self._dtype

    def __repr__(self) -> str:
        """Say whose it is, and whether it is spent."""
        return f"<Tape of {self.maker}, {'ready' if self._kept else 'spent'}>"

    def __reduce__(self) -> NoReturn:
        """Refuse: it holds a backend's memory."""
        raise TypeError("a tape cannot be copied or pickled: run forward again")

    def take(self) -> Any:
        """Spend the tape.

        Returns
        -------
        object
            What was kept; only the first caller gets it.

        Raises
        ------
        RuntimeError
            The tape is spent.
        """
        try:
            return self._kept.pop()
        except IndexError:
            raise checks.tape_spent() from None
