#!/usr/bin/env python3
"""Writes two large pairs for the benchmark, to see that memory does not grow with files: the same on every machine.

    scripts/make_big_pairs.py FOLDER && scripts/bench-delta FOLDER --only headland

`sparse`: 4.5 GiB, nearly all of it holes, with blocks of noise that changed a little, moved, went or came; it takes
next to no room. `layer`: a tar of 300 MB, texts and noise in 900 files, of which some changed.
"""

import argparse
import io
import random
import tarfile
from pathlib import Path
from typing import Final

SPARSE_BYTES: Final = 9 << 29
BLOCK_BYTES: Final = 1 << 18
BLOCKS: Final = 24
LAYER_BYTES: Final = 300_000_000
FILES: Final = 900


def write_sparse(folder: Path) -> None:
    """Writes `sparse.old.bin` and `sparse.new.bin`."""
    chance = random.Random(45)
    room = SPARSE_BYTES // BLOCKS
    old = {
        number * room + chance.randrange(room - BLOCK_BYTES): chance.randbytes(BLOCK_BYTES) for number in range(BLOCKS)
    }
    new = {}
    for number, (place, block) in enumerate(old.items()):
        if number % 4 == 0:  # a word of it changed
            new[place] = block[:100_000] + chance.randbytes(200) + block[100_200:]
        elif number % 4 == 1:  # it moved
            new[place + 12_345] = block
        elif number % 8 != 2:  # it stayed; the others went
            new[place] = block
    new[SPARSE_BYTES - 3 * BLOCK_BYTES] = chance.randbytes(100_000)
    for name, blocks, length in (("old", old, SPARSE_BYTES), ("new", new, SPARSE_BYTES + (1 << 20))):
        with (folder / f"sparse.{name}.bin").open("wb") as file:
            for place, block in blocks.items():
                file.seek(place)
                file.write(block)
            file.truncate(length)


def write_layer(folder: Path) -> None:
    """Writes `layer.old.tar` and `layer.new.tar`."""
    chance = random.Random(300)
    words = [bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz", k=chance.randrange(2, 11))) for _ in range(4000)]
    with tarfile.open(folder / "layer.old.tar", "w") as old, tarfile.open(folder / "layer.new.tar", "w") as new:
        for number in range(FILES):
            size = int(LAYER_BYTES / FILES * chance.choice((0.1, 0.5, 1.0, 2.4)))
            data = chance.randbytes(size) if number % 3 else b" ".join(chance.choices(words, k=size // 7))
            changed = bytearray(data)
            if number % 6 == 0:
                for _ in range(20):
                    place = chance.randrange(len(data))
                    changed[place : place + 5] = chance.choice(words)
            for archive, content, stamp in ((old, data, 1), (new, bytes(changed), 2)):
                entry = tarfile.TarInfo(f"opt/application/part{number % 30:02}/file{number:03}")
                entry.size, entry.mtime = len(content), 1_700_000_000 + stamp
                archive.addfile(entry, io.BytesIO(content))


def main() -> None:
    """Writes both pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="made where it is not there")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    write_sparse(folder)
    write_layer(folder)


if __name__ == "__main__":
    main()
