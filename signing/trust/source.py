"""Where metadata comes from: the port, and what stands in front of it during one contact."""

from typing import Protocol

from protocol.errors import LinkError


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
