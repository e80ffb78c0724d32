"""Streams of weights: what comes out is what went in, and training that moved along few directions costs little."""

import lzma

import numpy as np
import pytest

from protocol.delta.alone import open_alone
from protocol.delta.floats import open_differences
from protocol.delta.integers import open_integers
from protocol.delta.lanes import BitReader, Bits, LaneReader, Table
from protocol.delta.lowrank import BF16, F16, F32, I32, FloatForm, add
from protocol.errors import Refused
from server.delta.floats import encode_alone, encode_differences
from server.delta.integers import encode_integers
from server.delta.lanes import BitWriter, LaneWriter
from server.delta.lowrank import Matrix

FORMS = {"fp32": F32, "fp16": F16, "bf16": BF16, "int32": I32}
ROWS, COLUMNS = 96, 80


def strange_words(form: FloatForm, count: int) -> np.ndarray:
    """Infinities, NaNs, zeros of both signs, denormals, and every other kind of word."""
    words = np.random.default_rng(3).integers(0, 1 << form.bits, count, dtype=np.uint64).astype(form.word)
    top, infinity = 1 << (form.bits - 1), form.exponent_mask << form.mantissa
    special = [0, top, infinity, infinity | top, infinity | 1, (1 << form.bits) - 1, 1, top | 1]
    words[: len(special)] = np.array(special[:count], np.uint64).astype(form.word)
    return words


def trained(noise: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A matrix of weights before and after training that moved it along two directions."""
    chance = np.random.default_rng(seed)
    old = chance.standard_normal((ROWS, COLUMNS)) * 0.05
    moved = chance.standard_normal((ROWS, 2)) @ chance.standard_normal((2, COLUMNS)) * 1e-3
    return old, old + moved + chance.standard_normal(old.shape) * noise


def apply_floats(form: FloatForm, coded: bytes, old: bytes) -> bytes:
    return b"".join(open_differences(form, memoryview(coded), len(old), ([old], [old])))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("count", [1, 7, 255, 256, 3000, 70_000])
def test_every_word_comes_out_as_it_went_in(name: str, count: int) -> None:
    form = FORMS[name]
    old, new = strange_words(form, count), strange_words(form, count)[::-1].copy()
    new[count // 2 :] = old[count // 2 :]
    matrices = [Matrix(0, count // 50, 50)] if count > 50 and form is not I32 else []
    assert apply_floats(form, encode_differences(form, old.tobytes(), new.tobytes(), matrices), old.tobytes()) == (
        new.tobytes()
    )


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("count", [1, 300, 70_000])
def test_words_alone_come_out_as_they_went_in(name: str, count: int) -> None:
    form = FORMS[name]
    new = strange_words(form, count).tobytes()
    assert b"".join(open_alone(form, memoryview(encode_alone(form, new)), len(new))) == new


@pytest.mark.parametrize("spread", [0.0, 0.2, 3.0, 60.0])
def test_integers_come_out_as_they_went_in(spread: float) -> None:
    chance = np.random.default_rng(5)
    old = chance.integers(0, 256, 300_000).astype(np.uint8)
    new = (old + np.rint(chance.standard_normal(old.size) * spread).astype(np.int64)).astype(np.uint8)
    coded = encode_integers(old.tobytes(), new.tobytes(), [Matrix(0, 1000, 300)])
    assert b"".join(open_integers(memoryview(coded), old.size, [old[:1000].tobytes(), old[1000:].tobytes()])) == (
        new.tobytes()
    )
    if spread == 0.2:
        assert len(coded) < 0.8 * len(lzma.compress((new - old).tobytes()))


def test_what_moved_along_two_directions_takes_a_fraction_of_what_noise_takes() -> None:
    old, new = (part.astype("<f4") for part in trained(noise=1e-6))
    shaped = encode_differences(F32, old.tobytes(), new.tobytes(), [Matrix(0, ROWS, COLUMNS)])
    flat = encode_differences(F32, old.tobytes(), new.tobytes(), [])
    assert len(shaped) < 0.75 * len(flat)
    assert len(flat) < len(lzma.compress(new.tobytes()))
    assert apply_floats(F32, shaped, old.tobytes()) == new.tobytes()


def test_noise_alone_is_not_taken_for_directions() -> None:
    chance = np.random.default_rng(2)
    old = (chance.standard_normal((ROWS, COLUMNS)) * 0.05).astype("<f4")
    new = (old + chance.standard_normal(old.shape) * 1e-3).astype("<f4")
    shaped = encode_differences(F32, old.tobytes(), new.tobytes(), [Matrix(0, ROWS, COLUMNS)])
    assert len(shaped) <= len(encode_differences(F32, old.tobytes(), new.tobytes(), [])) + 2


@pytest.mark.parametrize(("form", "kind"), [(F32, "<f4"), (F16, "<f2")])
def test_a_sum_in_integers_is_the_sum_in_reals_to_the_last_place(form: FloatForm, kind: str) -> None:
    chance = np.random.default_rng(7)
    old = (chance.standard_normal(20_000) * 0.05).astype(kind)
    units = np.rint(chance.standard_normal(old.size) * 4000).astype(np.int64)
    shift = 20
    near = np.abs(units) * 2.0**-shift < 32 * np.abs(old.astype(np.float64))  # further sums are cut
    total = add(form, old.view(form.word).astype(np.int64), units, shift)
    expected = (old.astype(np.float64) + units * 2.0**-shift).astype(kind).view(form.word).astype(np.int64)
    assert np.abs(total - expected)[near].max() <= 1


def test_a_sum_never_makes_an_infinity_and_leaves_one_alone() -> None:
    words = np.array([0x7F800000, 0x7FC00001, 0x7F7FFFFF], np.int64)
    assert add(F32, words, np.full(3, 1 << 37, np.int64), -90).tolist() == words.tolist()


def test_a_first_mean_that_its_type_does_not_hold_is_refused() -> None:
    with pytest.raises(Refused):
        apply_floats(F16, bytes((0, 128, 4, 0, 0, 4, 0, 0, 1, 0)), bytes(2))


def test_lanes_carry_bits_for_nothing_and_tell_when_a_stream_was_cut() -> None:
    chance = np.random.default_rng(4)
    contexts = chance.integers(0, 3, (50, 16))
    symbols = (chance.random((50, 16)) * (contexts + 2) * 3).astype(np.uint8)
    flags = (chance.random((50, 16)) < 0.01).astype(np.uint8)
    numbers, widths = chance.integers(0, 1 << 30, 40).astype(np.uint32), np.full(40, 30, np.int64)

    def code(coder: LaneWriter | LaneReader, give: bool) -> list[np.ndarray]:
        table, bits = Table(3, 12), Bits(3)
        found = []
        for step in range(50):
            where = contexts[step].astype(np.intp)
            found.append(coder.code(table, where, symbols[step] if give else None))
            found.append(coder.code(bits, where, flags[step] if give else None))
        return found

    writer, plain = LaneWriter(16), BitWriter()
    code(writer, True)
    plain.code(widths, numbers)
    hidden, rest = plain.finish(16)
    coded = writer.finish(hidden)
    reader = LaneReader(coded, 16)
    assert np.array_equal(np.array(code(reader, False)[::2]), symbols)
    assert np.array_equal(BitReader(reader.finish(), rest).code(widths), numbers)
    with pytest.raises(Refused):
        code(LaneReader(coded[:-2], 16), False)
    with pytest.raises(Refused):
        BitReader(hidden, rest[:-1]).code(widths)


def test_sums_about_zero_that_moved_by_little_take_little() -> None:
    chance = np.random.default_rng(8)
    old = chance.integers(-3, 4, 4000).astype("<i4")
    new = (old + chance.integers(0, 2, old.size)).astype("<i4")
    coded = encode_differences(I32, old.tobytes(), new.tobytes(), [])
    assert len(coded) < old.size / 8 * 1.2
    assert apply_floats(I32, coded, old.tobytes()) == new.tobytes()
