"""Where metadata comes from: the port, a folder behind it, and what stands in front of it during one judgement."""

import errno
from pathlib import Path
from typing import Final, Protocol

from protocol.errors import LinkError, Reason, Refused
from signing.stick import stick_folder

_OTHER_KIND: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENAMETOOLONG})


class Source(Protocol):
    """Gives metadata files of one repository by name."""

    def read(self, name: str, limit_bytes: int) -> bytes:
        """Reads one file whole, into memory.

        Args:
            name: `timestamp.json`, `7.root.json`, `3.PRODUCT.json`; a role's name is percent-encoded in it.
            limit_bytes: The most that is taken; one byte more ends the transfer.

        Raises:
            LinkError: With `status` when the other side answered. 403 and 404 mean that it has no such file.
            Refused: `LENGTH`: more than `limit_bytes`; `METADATA`: an answer in a form that is not allowed.
        """
        ...


class Nowhere:
    """A source that has nothing: what is stored must do."""

    def read(self, name: str, limit_bytes: int) -> bytes:
        """As `Source.read`; always 404."""
        raise LinkError(f"{name} is not fetched", retryable=False, status=404)


class MetadataFolder:
    """Reads files of one folder: regular ones, through no link, and nothing below or beside it.

    Args:
        above: Holds the folder; ours.
        name: The folder's.
    """

    def __init__(self, above: Path, name: str) -> None:
        self._above = above
        self._name = name

    def read(self, name: str, limit_bytes: int) -> bytes:
        """As `Source.read`; a disk that cannot be read is a failed link."""
        what = f"{self._name}/{name}"
        if "/" in name:
            raise LinkError(f"{what} is no file's name", retryable=False, status=404)
        try:
            with stick_folder(self._above) as above, above.below(self._name) as folder:
                return folder.read(name, limit_bytes)
        except FileNotFoundError as error:
            raise LinkError(f"{what} is not there", retryable=False, status=404) from error
        except OSError as error:
            if error.errno in _OTHER_KIND:
                raise Refused(Reason.METADATA, f"{what} is no file") from error
            raise LinkError(f"{what} cannot be read: {error}") from error


class Offered:
    """A source for one contact: the timestamp is the one that the answer brought, and no file is fetched twice.

    Args:
        source: For everything else.
        timestamp: The exact bytes that were offered.
    """

    def __init__(self, source: Source, timestamp: bytes) -> None:
        self.timestamp = timestamp
        self._source = source
        self._kept: dict[str, bytes | LinkError] = {}

    def read(self, name: str, limit_bytes: int) -> bytes:
        """As `Source.read`."""
        if name == "timestamp.json":
            return self.timestamp
        if name not in self._kept:
            try:
                self._kept[name] = self._source.read(name, limit_bytes)
            except LinkError as error:
                # "No such file" is an answer worth keeping; a dropped link is not.
                if error.status is None:
                    raise
                self._kept[name] = error
        kept = self._kept[name]
        if isinstance(kept, LinkError):
            raise kept
        return kept


class Stored(Offered):
    """What is stored, whole: a copy of the repository is no newer. Nothing is fetched.

    Args:
        timestamp: The stored one.
    """

    def __init__(self, timestamp: bytes) -> None:
        super().__init__(Nowhere(), timestamp)


class Gathered(Stored):
    """The newest of each file that is stored, which a cut refresh left without having been one whole: a copy is no
    newer than some of them. Of timestamp and snapshot nothing is asked."""


class OverHalf(Offered):
    """A source that is judged over what an unfinished refresh left, as if timestamp and snapshot had never been seen.

    They say which files go together; which is the newest of each, the file's own floor says. A machine that learnt of a
    newer timestamp and then lost the link holds neither the one set nor the other, and a stick that was made in
    between would be too old for it, until the link is back. So both are taken from the stick where they hold, and kept
    only where they are newer.
    """
