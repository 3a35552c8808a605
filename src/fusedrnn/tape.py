"""The tape: what a forward pass keeps for its backward. Opaque, and good for one."""

from typing import Any

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

    __slots__ = ("_kept", "dtype", "maker", "shape")

    def __init__(self, maker: object, shape: checks.Shape, dtype: np.dtype[Any], kept: Any) -> None:
        self.maker = maker
        self.shape = shape
        self.dtype = dtype
        self._kept = [kept]  # in a list, because its pop is atomic: of two threads one gets the tape

    def __repr__(self) -> str:
        """Say whose it is, and whether it is spent."""
        return f"<Tape of {self.maker}, {'ready' if self._kept else 'spent'}>"

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
