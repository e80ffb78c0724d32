"""Who may use the machine's page: a browser that was told the pairing code, which only this machine shows.

The code is short, for a person types it, so guesses are few: after some wrong ones everybody waits. What a browser gets
for it is 256 bits of which nobody can guess any, good until a new code is drawn. It travels in a header, never in a
cookie: nothing that a foreign page makes a browser send carries a right.
"""

import hmac
import secrets
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import msgspec

from protocol import limits
from protocol.errors import Refused
from protocol.settings import Settings
from protocol.wire import Message, decode, encode
from signing import durable

CODE_DIGITS: Final = 8
GUESSES: Final = 5
GUESSES_OVER_S: Final = 60.0  # five a minute find one of 10^8 codes after twenty years


class PageSettings(Settings):
    """`[page]`: the machine's page, for a browser.

    Args:
        listen: Address and port; empty shows no page. The default answers this machine only; `0.0.0.0:8470` answers
            every network that the machine is in.
        names: Names of this machine that a browser may use instead of an address.
    """

    listen: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^(?:|(?:[0-9.]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5})\Z",
            description='an address and a port, such as "127.0.0.1:8470", or "" for no page',
        ),
    ] = "127.0.0.1:8470"
    names: tuple[str, ...] = ()

    def address(self) -> tuple[str, int]:
        """Where to listen."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    def url(self) -> str:
        """Where a browser finds the page."""
        host, port = self.address()
        if host in ("0.0.0.0", "::"):  # noqa: S104  (compared, not bound)
            return f"http://{self.names[0] if self.names else 'ADDRESS-OF-THIS-MACHINE'}:{port}"
        return f"http://{self.listen}"


class Pair(Message):
    """`page.json` in the state folder, for its owner's eyes only."""

    code: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{8}\Z")]
    token: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]

    def spelt(self) -> str:
        """The code as a person reads it: `1234 5678`."""
        return f"{self.code[:4]} {self.code[4:]}"


class TooManyGuessesError(Exception):
    """Wrong codes came too fast; everybody waits a minute."""


def read_or_draw(path: Path, *, anew: bool = False) -> Pair:
    """The pairing code; drawn when there is none, or none that can be read. Blocking.

    Args:
        path: Of `page.json`.
        anew: Draw another: every browser has to pair again.

    Raises:
        OSError: It cannot be read, or not be written.
    """
    known = None if anew else _read(path)
    if known is not None:
        return known
    pair = Pair(code=f"{secrets.randbelow(10**CODE_DIGITS):08d}", token=secrets.token_hex(32))
    durable.write(path, encode(pair) + b"\n")
    return pair


def _read(path: Path) -> Pair | None:
    """What is kept; None when there is nothing, or nothing that makes sense.

    A file that cannot be read now is neither: another code in its place would send every browser away.
    """
    try:
        with path.open("rb") as file:
            return decode(file.read(limits.KIB + 1), Pair, limit=limits.KIB)
    except (FileNotFoundError, Refused):
        return None


class Pairing:
    """Judges codes and tokens by the file as it is now, so that a new code counts at once.

    Args:
        path: Of `page.json`.
        monotonic: Seconds that never go back.
    """

    def __init__(self, path: Path, monotonic: Callable[[], float]) -> None:
        self._path = path
        self._monotonic = monotonic
        self._wrong: deque[float] = deque(maxlen=GUESSES)
        self._one_at_a_time = threading.Lock()  # guesses at once would all be looked at before one was counted

    def token(self, code: str) -> str | None:
        """What a browser is given for the code; None when that is wrong. Blocking.

        Raises:
            TooManyGuessesError: Wrong ones came too fast: this one was not even looked at.
            OSError: No code can be read or kept here.
        """
        with self._one_at_a_time:
            now_s = self._monotonic()
            if len(self._wrong) == GUESSES and now_s - self._wrong[0] < GUESSES_OVER_S:
                raise TooManyGuessesError
            pair = read_or_draw(self._path)
            digits = "".join(character for character in code if character.isascii() and character.isdigit())
            if hmac.compare_digest(digits, pair.code):
                return pair.token
            self._wrong.append(now_s)
            return None

    def is_paired(self, token: str) -> bool:
        """Whether a browser was given this for the present code. Blocking; writes nothing.

        Raises:
            OSError: The code cannot be read now.
        """
        pair = _read(self._path)
        return pair is not None and token.isascii() and hmac.compare_digest(token, pair.token)
