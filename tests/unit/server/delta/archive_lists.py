"""A package as an installer leaves it: modules, what was compiled from them, and a list of hashes."""

import base64
import hashlib
import random

from tests.unit.server.delta.archive_files import compiled

File = tuple[str, bytes, float]


def noise(length: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(length)


def package(mtime: float, version: str = "1.0", changed: bytes = b"", modules: int = 8) -> list[File]:
    files: list[File] = [("site/", b"", mtime), ("site/pkg/", b"", mtime)]
    lines = []
    for number in range(modules):
        source = noise(700, number) + (changed if number == modules - 1 else b"")
        files.append((f"site/pkg/m{number}.py", source, mtime))
        digest = base64.urlsafe_b64encode(hashlib.sha256(source).digest()).rstrip(b"=").decode()
        lines.append(f"pkg/m{number}.py,sha256={digest},{len(source)}\n")
    files.append(("site/pkg/__pycache__/", b"", mtime))
    for number in range(modules):
        size = 700 + (len(changed) if number == modules - 1 else 0)
        body = noise(500, 100 + number)
        files.append((f"site/pkg/__pycache__/m{number}.pyc", compiled(int(mtime), size, body), mtime))
    files.append((f"site/pkg-{version}.dist-info/RECORD", "".join(lines).encode(), mtime))
    return files
