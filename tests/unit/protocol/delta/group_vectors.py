"""Groups of every kind as they travel, frozen: patches that were once made must give the same bytes for good.

python -m tests.unit.protocol.delta.group_vectors     writes them anew, when the format has changed on purpose
"""

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Final

from tests.unit.protocol.delta.hostile_groups import Seed, seeds

FOLDER: Final = Path(__file__).parents[3] / "vectors" / "delta" / "groups"


def read_vectors() -> list[Seed]:
    """All that are kept, by name."""
    return [_read(path) for path in sorted(FOLDER.glob("*.json"))]


def _read(path: Path) -> Seed:
    said = json.loads(path.read_text())
    return Seed(path.stem, _unpacked(said["base"]), base64.b64decode(said["group"]), _unpacked(said["output"]))


def _write(seed: Seed) -> None:
    said = {"base": _packed(seed.base), "group": base64.b64encode(seed.group).decode(), "output": _packed(seed.output)}
    name = re.sub("[^a-z0-9]+", "-", seed.name.lower())
    (FOLDER / f"{name}.json").write_text(json.dumps(said, indent=1) + "\n")


def _packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()


def _unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for one in seeds():
        _write(one)
