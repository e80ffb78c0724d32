"""Finds the lines of package lists that carry hashes of files in the same archive: what follows need not be sent."""

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from protocol.delta.tar import Form

_RECORD_LINE: Final = re.compile(rb"^(.+),(sha256=)([\w-]{43},\d+)\r?$", re.MULTILINE)
_MD5SUMS_LINE: Final = re.compile(rb"^([0-9a-f]{32})  (.+)$", re.MULTILINE)


class Mention(NamedTuple):
    """A hash in a list.

    Args:
        start: Where its text begins in the list.
        text: As it stands there.
        name: The path of the file it is said to be of, in the archive.
        form: How it is written.
    """

    start: int
    text: bytes
    name: str
    form: Form


def is_list(name: str) -> bool:
    """Whether a file of this name lists hashes of other files."""
    return name.endswith((".dist-info/RECORD", ".md5sums"))


def find_mentions(name: str, content: bytes) -> Iterator[Mention]:
    """The hashes in a file of this name, in order."""
    folder, _, own = name.rpartition("/")
    if own == "RECORD" and folder.endswith(".dist-info"):
        root = folder.rpartition("/")[0]
        for line in _RECORD_LINE.finditer(content):
            path = line[1].strip(b'"').decode(errors="surrogateescape")
            yield Mention(line.start(3), line[3], f"{root}/{path}" if root else path, Form.RECORD)
    elif own.endswith(".md5sums"):
        root = folder.removesuffix("var/lib/dpkg/info")
        for line in _MD5SUMS_LINE.finditer(content):
            yield Mention(line.start(1), line[1], root + line[2].decode(errors="surrogateescape"), Form.MD5SUMS)


def digest_text(form: Form, content: memoryview) -> bytes:
    """What a list says of a file with this content."""
    if form is Form.MD5SUMS:
        return hashlib.md5(content, usedforsecurity=False).hexdigest().encode()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return digest + b",%d" % len(content)
