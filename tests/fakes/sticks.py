"""Sticks as folders: kits whose metadata nobody signed, for tests of what reads them."""

import json
from collections.abc import Iterable
from pathlib import Path

from protocol.ids import digest
from protocol.kits import BLOBS_FOLDER, KIT_FILE, KITS_FOLDER

KIT = "kit-spring"


def write_kit(stick: Path, kit: str = KIT, blobs: Iterable[bytes] = (), *, word: str = "one") -> Path:
    """A folder that looks like a kit; `word` tells two of the same name apart."""
    folder = stick / KITS_FOLDER / kit
    for repository in ("image", "director"):
        (folder / repository).mkdir(parents=True, exist_ok=True)
        (folder / repository / "1.root.json").write_text("{}")
        (folder / repository / "timestamp.json").write_text('{"a": 1}')
    (folder / BLOBS_FOLDER).mkdir(exist_ok=True)
    for blob in blobs:
        blob_path(stick, blob, kit).write_bytes(blob)
    (folder / KIT_FILE).write_text(json.dumps({"kit": kit, "word": word}))
    return folder


def blob_path(stick: Path, blob: bytes, kit: str = KIT) -> Path:
    return stick / KITS_FOLDER / kit / BLOBS_FOLDER / digest(blob)
