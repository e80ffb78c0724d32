"""Drives the peers that have no command of one line:
`python peer_worker.py PACKAGES PEER encode OLD NEW PATCH`, or `... apply OLD PATCH OUT`; PACKAGES is where the peers
written for Python were installed. For casync a patch is a folder: the new index, and the chunks that are not in the
old file.
"""

import subprocess
import sys
import tempfile
from pathlib import Path


def bsdiff_encode(old: Path, new: Path, patch: Path) -> None:
    import bsdiff4

    patch.write_bytes(bsdiff4.diff(old.read_bytes(), new.read_bytes()))


def bsdiff_apply(old: Path, patch: Path, out: Path) -> None:
    import bsdiff4

    out.write_bytes(bsdiff4.patch(old.read_bytes(), patch.read_bytes()))


def hdiff_encode(old: Path, new: Path, patch: Path) -> None:
    import hdiffpatch

    best = hdiffpatch.Lzma2Config(level=9, window=25)
    patch.write_bytes(hdiffpatch.diff(old.read_bytes(), new.read_bytes(), best, validate=False))


def hdiff_apply(old: Path, patch: Path, out: Path) -> None:
    import hdiffpatch

    out.write_bytes(hdiffpatch.apply(old.read_bytes(), patch.read_bytes()))


def casync_encode(old: Path, new: Path, patch: Path) -> None:
    patch.mkdir()
    with tempfile.TemporaryDirectory(dir=patch.parent) as scratch:
        held, sent = Path(scratch) / "held", patch / "chunks"
        for store, index, file in ((held, Path(scratch) / "old.caibx", old), (sent, patch / "new.caibx", new)):
            subprocess.run(
                ["casync", "make", f"--store={store}", str(index), str(file)], check=True, stdout=subprocess.DEVNULL
            )
        for chunk in held.rglob("*.cacnk"):
            (sent / chunk.relative_to(held)).unlink(missing_ok=True)


def casync_apply(old: Path, patch: Path, out: Path) -> None:
    subprocess.run(
        ["casync", "extract", f"--store={patch / 'chunks'}", f"--seed={old}", str(patch / "new.caibx"), str(out)],
        check=True,
    )


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    work = {
        ("bsdiff4", "encode"): bsdiff_encode,
        ("bsdiff4", "apply"): bsdiff_apply,
        ("hdiffpatch", "encode"): hdiff_encode,
        ("hdiffpatch", "apply"): hdiff_apply,
        ("casync", "encode"): casync_encode,
        ("casync", "apply"): casync_apply,
    }
    work[sys.argv[2], sys.argv[3]](*map(Path, sys.argv[4:7]))
