"""Gzip files of other programs than zlib come out of what they hold and of a recipe of a few bytes."""

import gzip
import io
import random
import shutil
import subprocess
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from protocol.delta.deflate_read import DYNAMIC, FIXED, STORED, DeflateReader, Ints
from protocol.delta.deflate_write import BlockWriter
from protocol.delta.envelope import GzipRecipe, read_envelope
from protocol.delta.recompress import TokenQueue, recompress, tokens_of_zlib
from protocol.errors import Reason, Refused
from server.delta.applying import apply_patch
from server.delta.gzip_file import deflate, find_recipe
from tests.unit.server.delta.test_archives_compressed import patched, silent


def written(words: int) -> bytes:
    """Words of a small language."""
    chance = random.Random(11)
    known = [bytes(chance.choices(b"etaoinshrdlu", k=length)) for length in (3, 4, 5, 7, 9) for _ in range(90)]
    return b" ".join(chance.choices(known, k=words))


TEXT = written(60_000)
NOISE = random.Random(12).randbytes(120_000)
CONTENT = TEXT[:150_000] + bytes(200_000) + NOISE + TEXT[140_000:]


class Memory:
    """Bytes as `protocol.delta.base.Base`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length_bytes = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def found(folder: Path, packed: bytes, content: bytes) -> GzipRecipe | None:
    """The recipe, which was seen to give the file."""
    (folder / "packed").write_bytes(packed)
    (folder / "content").write_bytes(content)
    recipe = find_recipe(folder / "packed", folder / "content")
    if recipe is not None:
        assert b"".join(deflate(recipe, folder / "content")) == packed
    return recipe


def whole(body: bytes, content: bytes) -> bytes:
    """A gzip file."""
    tail = zlib.crc32(content).to_bytes(4, "little") + len(content).to_bytes(4, "little")
    return b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + body + tail


def gnu(data: bytes, *options: str) -> bytes:
    """What GNU gzip makes of it."""
    program = shutil.which("gzip")
    if program is None or b"Free Software" not in subprocess.check_output([program, "--version"]):
        pytest.skip("no GNU gzip here")
    return subprocess.run([program, "-n", "-c", *options], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("level", range(1, 10))
def test_what_gnu_gzip_wrote_is_made_again_at_each_level(tmp_path: Path, level: int) -> None:
    recipe = found(tmp_path, gnu(CONTENT, f"-{level}"), CONTENT)
    assert recipe is not None
    assert not recipe.plain
    assert recipe.body.level == level or level in (7, 8)  # which choose as 9 does here
    assert recipe.body.guesses
    assert len(recipe.body.edits) + len(recipe.body.blocks) < 150


def test_text_of_gnu_gzip_takes_next_to_nothing(tmp_path: Path) -> None:
    recipe = found(tmp_path, gnu(TEXT), TEXT)
    assert recipe is not None
    assert len(recipe.body.edits) + len(recipe.body.blocks) <= 4


def test_blocks_that_restart_now_and_then_are_told(tmp_path: Path) -> None:
    packed = gnu(TEXT, "--rsyncable")
    recipe = found(tmp_path, packed, TEXT)
    assert recipe is not None
    assert len(recipe.body.edits) + len(recipe.body.blocks) < len(packed) / 100


@pytest.mark.parametrize("content", [b"", b"a", b"ab" * 40_000, NOISE[:70_000]])
def test_small_and_odd_contents_of_gnu_gzip_come_out(tmp_path: Path, content: bytes) -> None:
    assert found(tmp_path, gnu(content), content) is not None


def test_a_layer_of_gnu_gzip_is_patched_by_what_it_holds(tmp_path: Path) -> None:
    old, new = TEXT, TEXT[:60_000] + b"changed" + TEXT[60_000:]
    patch = patched(tmp_path, gnu(old), gnu(new))
    assert patch.stat().st_size < 150


def divided(content: bytes, sizes: list[tuple[int, int]], *, changed: bool) -> bytes:
    """zlib's tokens in other blocks: kind and tokens of each; the last one takes what is left."""
    queue = TokenQueue(tokens_of_zlib(Memory(content), 6, 8))
    writer = BlockWriter()
    at = 0
    for number, (kind, size) in enumerate(sizes):
        last = number == len(sizes) - 1
        lengths, values = queue.take(10**9 if last else size)
        if changed and kind != STORED:
            lengths, values = literal(lengths, values, at, content)
        text = int(lengths.sum())
        if kind == STORED:
            writer.store(content[at : at + text], last=last)
        else:
            writer.write(kind, lengths, values, last=last)
        at += text
    return writer.finish()


def literal(lengths: Ints, values: Ints, at: int, content: bytes) -> tuple[Ints, Ints]:
    """The same text, its tenth match as literals."""
    places = np.flatnonzero(lengths > 1)
    if places.size < 10:
        return lengths, values
    place = int(places[9])
    start = at + int(lengths[:place].sum())
    text = np.frombuffer(content[start : start + int(lengths[place])], np.uint8)
    front, behind = slice(None, place), slice(place + 1, None)
    return (
        np.concatenate((lengths[front], np.ones(text.size, lengths.dtype), lengths[behind])),
        np.concatenate((values[front], text.astype(values.dtype), values[behind])),
    )


@pytest.mark.parametrize("changed", [False, True])
def test_any_division_and_a_few_other_tokens_come_out(tmp_path: Path, changed: bool) -> None:
    sizes = [(STORED, 900), (DYNAMIC, 700), (STORED, 0), (FIXED, 0), (FIXED, 30), (DYNAMIC, 40_000), (DYNAMIC, 1)]
    content = NOISE[:1000] + CONTENT
    for end in ([(DYNAMIC, 0)], [(FIXED, 10**9), (STORED, 0)]):
        packed = whole(divided(content, sizes + end, changed=changed), content)
        assert gzip.decompress(packed) == content
        recipe = found(tmp_path, packed, content)
        assert recipe is not None
        assert len(recipe.body.edits) + len(recipe.body.blocks) < 300


def test_tokens_of_another_algorithm_are_left_alone(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    assert found(tmp_path, whole(packer.compress(TEXT) + packer.flush(), TEXT), TEXT) is None
    assert found(tmp_path, gzip.compress(TEXT) + gzip.compress(b"another member"), TEXT) is None


def test_a_stream_of_countless_blocks_is_left_alone(tmp_path: Path) -> None:
    packed = whole(divided(TEXT, [(FIXED, 0)] * 3000 + [(DYNAMIC, 0)], changed=False), TEXT)
    assert gzip.decompress(packed) == TEXT
    assert found(tmp_path, packed, TEXT) is None


def test_a_damaged_recipe_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    text = TEXT[:40_000]
    packed = whole(divided(text, [(DYNAMIC, 700), (FIXED, 30), (DYNAMIC, 0)], changed=True), text)
    patch = patched(tmp_path, gzip.compress(text[:-9], 1), packed)  # otherwise the compressed bytes resemble each other
    data = patch.read_bytes()
    envelope = read_envelope(io.BytesIO(data))
    assert envelope is not None
    assert envelope.recipe is not None
    assert not envelope.recipe.plain
    assert data[envelope.length_bytes :].startswith(b"HLD1")
    for place in range(4, envelope.length_bytes):
        patch.write_bytes(data[:place])
        with pytest.raises(Refused):
            apply_patch(tmp_path / "old", patch, tmp_path / "other", progress=silent)
        patch.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            apply_patch(tmp_path / "old", patch, tmp_path / "other", progress=silent)
        except Refused:
            assert not (tmp_path / "other").exists()
        else:  # what was damaged did not matter
            assert (tmp_path / "other").read_bytes() == packed
            (tmp_path / "other").unlink()


@pytest.mark.parametrize("seed", range(6))
def test_all_of_any_stream_is_read_in_any_pieces(seed: int) -> None:
    chance = random.Random(seed)
    packer = zlib.compressobj(chance.randrange(10), zlib.DEFLATED, -15, chance.randrange(1, 10), chance.randrange(5))
    flushes = [zlib.Z_NO_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_PARTIAL_FLUSH, zlib.Z_BLOCK]
    content = TEXT[:30_000] + bytes(3000) + NOISE[:40_000] + TEXT[20_000:50_000]
    packed = b""
    at = 0
    while at < len(content):
        step = chance.randrange(1, 30_000)
        packed += packer.compress(content[at : at + step]) + packer.flush(chance.choice(flushes))
        at += step
    packed += packer.flush()
    cuts = [0, *sorted(chance.randrange(len(packed)) for _ in range(20)), len(packed)]
    reader = DeflateReader([packed[cut:end] for cut, end in pairwise(cuts)] + [b"behind"])
    text = bytearray()
    for part in reader.parts():
        for length, value in zip(part.lengths.tolist(), part.values.tolist(), strict=True):
            if length == 1:
                text.append(value)
            elif value >= length:
                text += text[-value:][:length]
            else:
                text += (text[-value:] * (length // value + 1))[:length]
    assert text == content
    assert reader.bytes_read == len(packed)
    with pytest.raises(Refused):
        for _ in DeflateReader([packed[: len(packed) // 2]]).parts():
            pass


@pytest.mark.parametrize("strategy", [zlib.Z_FIXED, zlib.Z_DEFAULT_STRATEGY])
def test_a_stream_is_read_to_its_end_wherever_its_blocks_and_pieces_end(strategy: int) -> None:
    for length in range(20_000, 26_000, 100):
        packer = zlib.compressobj(1, zlib.DEFLATED, -15, 3, strategy)
        packed = packer.compress(TEXT[:length]) + packer.flush()
        for step in (1 << 16, 5000 + length % 97):
            reader = DeflateReader(packed[at : at + step] for at in range(0, len(packed), step))
            assert sum(int(part.lengths.sum()) for part in reader.parts()) == length
            assert reader.bytes_read == len(packed)


def test_what_the_recipe_of_another_content_gives_is_refused_or_other_bytes(tmp_path: Path) -> None:
    recipe = found(tmp_path, whole(divided(TEXT, [(STORED, 900), (DYNAMIC, 0)], changed=True), TEXT), TEXT)
    assert recipe is not None
    with pytest.raises(Refused) as refused:
        b"".join(recompress(recipe.body, Memory(b"short")))
    assert refused.value.reason in (Reason.LENGTH, Reason.METADATA)


def test_what_cannot_be_made_anew_is_made_of_the_old_compressed_bytes(tmp_path: Path) -> None:
    def huffman(data: bytes) -> bytes:
        packer = zlib.compressobj(9, zlib.DEFLATED, 31, 9, zlib.Z_HUFFMAN_ONLY)
        return packer.compress(data) + packer.flush()

    old, new = huffman(TEXT[:200_000]), huffman(TEXT[:200_000] + b"more")
    patch = patched(tmp_path, old, new)
    assert read_envelope(io.BytesIO(patch.read_bytes())) is None
    assert patch.stat().st_size < len(new) / 3
