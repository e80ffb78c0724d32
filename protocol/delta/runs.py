"""Elements as lanes take them: each lane works through a run of neighbours, all lanes side by side."""

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Number = TypeVar("Number", np.uint8, np.int16)


class Runs:
    """As many runs as there are lanes, or fewer; only the last may be shorter than the others.

    Args:
        count: Of the elements.
        lanes: Of the coder.
    """

    def __init__(self, count: int, lanes: int) -> None:
        self._count = count
        self.steps = -(-count // lanes)
        self.lanes = -(-count // max(self.steps, 1))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Each step, and how many lanes still have an element."""
        whole = self._count - (self.lanes - 1) * self.steps
        for step in range(self.steps):
            yield step, self.lanes if step < whole else self.lanes - 1

    def rows(self, column: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """What the lanes work on, step by step: [steps, lanes] from [count]."""
        padded = np.zeros(self.lanes * self.steps, column.dtype)
        padded[: column.size] = column
        return np.ascontiguousarray(padded.reshape(self.lanes, self.steps).T)

    def empty(self, dtype: type[Number]) -> npt.NDArray[Number]:
        """Rows to be filled."""
        return np.zeros((self.steps, self.lanes), dtype)

    def column(self, rows: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """The reverse of `rows`."""
        return rows.T.ravel()[: self._count]
