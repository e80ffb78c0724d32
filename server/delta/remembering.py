"""Remembers what was found for arrays without holding the arrays."""

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from hashlib import blake2b
from typing import Any, Final, TypeVar

import numpy as np

REMEMBERED: Final = 1 << 12  # results
HELD: Final = 1 << 21  # numbers in all of them: twice what the streams of a group may have of factors
KEY_BYTES: Final = 16

Found = TypeVar("Found")


def by_digest(weigh: Callable[[Found], int]) -> Callable[[Callable[..., Found]], Callable[..., Found]]:
    """Makes a function of arrays and plain values remember its last results, by a digest of its arguments.

    Args:
        weigh: How many numbers a result holds.
    """

    def decorate(find: Callable[..., Found]) -> Callable[..., Found]:
        results: OrderedDict[bytes, Found] = OrderedDict()
        held = 0

        @wraps(find)
        def remembered(*arguments: Any) -> Found:
            nonlocal held
            key = _digest(arguments)
            if key in results:
                return results[key]
            found = results[key] = find(*arguments)
            held += weigh(found)
            while len(results) > REMEMBERED or held > HELD:
                held -= weigh(results.popitem(last=False)[1])
            return found

        return remembered

    return decorate


def _digest(arguments: tuple[Any, ...]) -> bytes:
    digest = blake2b(digest_size=KEY_BYTES)
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            digest.update(f"{argument.dtype.str}{argument.shape};".encode())
            digest.update(np.ascontiguousarray(argument).data)
        else:
            digest.update(f"{argument!r};".encode())
    return digest.digest()
