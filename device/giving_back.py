"""Giving back: signed files that this machine trusts, for a server that came out of a backup and lacks them.

The exact bytes that were verified here, and each verifies itself there. Nothing of it is secret.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from protocol import limits
from protocol.messages import SignedFile
from signing.trust.files import file_name

WANTED: Final = re.compile(
    r"^(image|director)/(?:([1-9][0-9]{0,8}\.root)|([a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?))\.json\Z"
)


class SignedFiles:
    """The trusted metadata of both repositories, as files.

    Args:
        trust: The folder that holds a trust store a repository.
    """

    def __init__(self, trust: Path) -> None:
        self._trust = trust

    def find(self, wanted: Sequence[str]) -> tuple[SignedFile, ...]:
        """Those of the wanted files that are here, in their order, together at most `limits.GIVEN_BACK_BYTES` long in
        JSON. Blocking.

        Args:
            wanted: `image/3.root.json`, `director/targets.json`, by the server's word.
        """
        found = []
        left = limits.GIVEN_BACK_BYTES // 2  # quotes in the content are escaped
        for name in wanted:
            known = WANTED.match(name)
            if known is None:
                continue
            repository: Literal["image", "director"] = "image" if known.group(1) == "image" else "director"
            folder = self._trust / repository
            path = folder / "root_history" / f"{known.group(2)}.json" if known.group(2) else None
            try:
                data = (path or folder / file_name(known.group(3))).read_bytes()
                content = data.decode("utf-8")
            except (OSError, UnicodeError):
                continue
            left -= len(data)
            if left < 0:
                break
            found.append(SignedFile(repository=repository, name=name.partition("/")[2], content=content))
        return tuple(found)
