"""Writes patch files: what would travel, in one file with the index in front."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Final

from protocol.delta.envelope import Envelope, write_envelope
from protocol.delta.patch import DIGEST_PREFIX_BYTES, write_patch_head
from server.delta.applying import Progress, inflated, pieces_of, replacing, sha256_of
from server.delta.encode import Encoded, EncodeOptions, encode
from server.delta.gzip_file import find_recipe, is_gzip
from signing.durable import TEMPORARY_PREFIX

SMALL_BYTES: Final = 512  # of a patch with an envelope: up to here one without is tried


def write_patch(old: Path, new: Path, patch: Path, *, options: EncodeOptions, progress: Progress) -> Encoded:
    """Makes a patch file. It is there wholly or not at all.

    Gzip files are patched by what they hold, where that gives the very bytes of `new` again.

    Raises:
        OSError: A file cannot be read or written.
    """
    if is_gzip(old) or is_gzip(new):
        made = _write_enveloped(old, new, patch, options, progress)
        if made is not None:
            return _shorter(made, old, new, patch, options)
    return _write_plain(old, new, patch, options=options, progress=progress, envelope=b"")


def _shorter(made: Encoded, old: Path, new: Path, patch: Path, options: EncodeOptions) -> Encoded:
    """The patch that is there, or one without its envelope: a tiny one may be mostly that."""
    if patch.stat().st_size > SMALL_BYTES:
        return made
    enveloped = patch.read_bytes()
    plain = _write_plain(old, new, patch, options=options, progress=lambda done, total: None, envelope=b"")
    if patch.stat().st_size < len(enveloped):
        return plain
    with replacing(patch) as file:
        file.append(enveloped)
    return made


def _write_enveloped(old: Path, new: Path, patch: Path, options: EncodeOptions, progress: Progress) -> Encoded | None:
    with tempfile.TemporaryDirectory(dir=patch.absolute().parent, prefix=TEMPORARY_PREFIX) as folder:
        plain_old, plain_new = inflated(old, Path(folder) / "old"), inflated(new, Path(folder) / "new")
        recipe = find_recipe(new, plain_new) if plain_new is not None else None
        if recipe is None and (is_gzip(new) or plain_old is None):
            return None  # compressed bytes resemble other compressed bytes more than what those hold
        base_sha256, output_sha256 = sha256_of(old), sha256_of(new)
        envelope = Envelope(
            base_sha256[:DIGEST_PREFIX_BYTES], output_sha256[:DIGEST_PREFIX_BYTES], plain_old is not None, recipe
        )
        made = _write_plain(
            plain_old or old,
            plain_new or new,
            patch,
            options=options,
            progress=progress,
            envelope=write_envelope(envelope),
        )
    return dataclasses.replace(
        made,
        base_sha256=base_sha256.hex(),
        output_sha256=output_sha256.hex(),
        output_bytes=new.stat().st_size,
    )


def _write_plain(
    old: Path, new: Path, patch: Path, *, options: EncodeOptions, progress: Progress, envelope: bytes
) -> Encoded:
    with tempfile.TemporaryFile(dir=patch.absolute().parent) as payload:
        made = encode(old, new, payload, options=options, progress=progress)
        digests = bytes.fromhex(made.base_sha256), bytes.fromhex(made.output_sha256)
        head = write_patch_head(*digests, made.index or b"")
        payload.seek(0)
        with replacing(patch) as file:
            file.append(envelope + head)
            for piece in pieces_of(payload):
                file.append(piece)
    return made
