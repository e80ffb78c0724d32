"""What inference asks of a runtime. A new accelerator is one new file beside this one, and a line in `choose`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.release import Accelerator, Tensor

Mode = Literal["overlap", "exclusive"]
"""Whether a second worker can be warm beside the first, or the accelerator has one owner at a time."""

Outputs = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Description:
    """A model file's own tensors, in the file's order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Session(Protocol):
    """A loaded model. One thread uses it."""

    @property
    def description(self) -> Description:
        """Of the very bytes that were loaded."""
        ...

    @property
    def accelerator(self) -> Accelerator:
        """What really runs the model, which may be less than the variant asked for."""
        ...

    @property
    def fallback(self) -> str:
        """Why `accelerator` is not what the variant asked for; empty when it is."""
        ...

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Outputs:
        """One inference: every output by name, as arrays that the next run leaves alone.

        Raises:
            Refused: `MODEL_SHAPE` for feeds that do not fit; `BOUNDS` when memory ran out; `MODEL_LOAD` for all else
                that the runtime reports. A crash is a crash: only the process above sees it.
        """
        ...

    def close(self) -> None:
        """Lets the accelerator go. Safe to repeat."""
        ...


class Backend(Protocol):
    """One runtime. Models come as bytes whose hash was checked: what was judged is what is loaded."""

    @property
    def mode(self) -> Mode:
        """Whether two sessions may live at once, in whichever processes."""
        ...

    @property
    def version(self) -> str:
        """Of the runtime's package."""
        ...

    def describe(self, model: bytes) -> Description:
        """Reads the tensors of a model, on the CPU and without running it.

        Raises:
            Refused: `EXTERNAL_DATA`, `MODEL_LOAD`; `MODEL_SHAPE` for a type that no manifest can state.
        """
        ...

    def load(self, model: bytes, accelerator: Accelerator, *, threads: int) -> Session:
        """Makes a session.

        Args:
            model: The file.
            accelerator: What the variant is for.
            threads: Of one inference, on the CPU; 0 leaves it to the runtime.

        Raises:
            Refused: As `describe`; `BOUNDS` when memory ran out.
        """
        ...
