"""Looking for how matrices of weights moved: judged nearly as exactly as it is predicted, and given up early."""

import gc
import weakref

import numpy as np
import pytest

from protocol.delta.lowrank import BF16, F16, F32, Change, FloatForm, predict
from server.delta.directions import directions, rounded
from server.delta.judging import FloatJudge, IntegerJudge, Judge
from server.delta.lowrank import PRECISIONS, RANKS, Matrix, Search, find_changes
from server.delta.remembering import HELD, by_digest

ROWS, COLUMNS = 160, 120


def words(form: FloatForm, numbers: np.ndarray) -> np.ndarray:
    if form is BF16:
        return (numbers.astype(np.float32).view(np.uint32) + 0x8000 >> 16).astype(np.uint16).ravel()
    return numbers.astype(f"<f{form.bits // 8}").view(form.word).ravel()


def low(chance: np.random.Generator, rank: int, size: float) -> np.ndarray:
    return size * chance.standard_normal((ROWS, rank)) @ chance.standard_normal((rank, COLUMNS))


class Counting:
    def __init__(self, judge: Judge) -> None:
        self.calls = 0
        self._judge = judge

    def bits(self, change: Change | None) -> float:
        self.calls += 1
        return self._judge.bits(change)


@pytest.mark.parametrize("form", [F32, F16, BF16])
def test_what_floats_take_is_judged_as_if_it_were_predicted_exactly(form: FloatForm) -> None:
    chance = np.random.default_rng(21)
    weights = chance.standard_normal((ROWS, COLUMNS)) * 0.05
    step = low(chance, 2, 2e-3)
    old, new = words(form, weights), words(form, weights + step + chance.standard_normal(step.shape) * 1e-3)
    change = rounded(*directions(step, 2), 9)
    assert change is not None
    expected = predict(form, old, 0, [change]).astype(form.word)
    exact = FloatJudge(form, expected, new, ROWS, COLUMNS).bits(None)
    assert FloatJudge(form, old, new, ROWS, COLUMNS).bits(change) == pytest.approx(exact, rel=0.03)
    assert exact < 0.97 * FloatJudge(form, old, new, ROWS, COLUMNS).bits(None)


def test_what_integers_take_is_judged_by_what_is_left_of_them() -> None:
    chance = np.random.default_rng(22)
    left, right = (chance.integers(-2, 3, (1, side)).astype(np.int32) for side in (ROWS, COLUMNS))
    change = Change(0, ROWS, COLUMNS, 1, 6, left * 8, right * 8)  # whole units
    rest = chance.integers(-1, 2, (ROWS, COLUMNS))
    judge = IntegerJudge((rest + left.T @ right).astype(np.int8).ravel(), ROWS, COLUMNS)
    assert judge.bits(change) == IntegerJudge(rest.astype(np.int8).ravel(), ROWS, COLUMNS).bits(None)


def test_a_few_followed_directions_explain_what_the_strongest_do() -> None:
    chance = np.random.default_rng(23)
    moved = low(chance, 3, 1.0) + chance.standard_normal((ROWS, COLUMNS))
    left, weights, right = directions(moved, 4)
    exact = np.linalg.svd(moved, compute_uv=False)
    assert weights[:3] == pytest.approx(exact[:3], rel=1e-3)
    assert np.square(moved - (left * weights) @ right).sum() < 1.02 * np.square(exact[4:]).sum()


def test_many_directions_are_found_when_they_pay() -> None:
    chance = np.random.default_rng(24)
    old = chance.standard_normal((ROWS, COLUMNS)) * 0.05
    new = old + low(chance, 8, 1e-3) + chance.standard_normal(old.shape) * 1e-6
    (change,) = find_changes(F32, words(F32, old), words(F32, new), [Matrix(0, ROWS, COLUMNS)])
    assert change.rank == 8


def test_a_merged_adapter_is_told_finer_than_its_factors_have_bits() -> None:
    chance = np.random.default_rng(27)
    old = (chance.standard_normal((ROWS, COLUMNS)) * 0.05).astype(np.float32)
    old_words, new_words = words(F32, old), words(F32, old + low(chance, 2, 1e-3).astype(np.float32))
    (change,) = find_changes(F32, old_words, new_words, [Matrix(0, ROWS, COLUMNS)])
    off = np.abs(predict(F32, old_words, 0, [change]) - new_words.astype(np.int64))
    assert np.median(off) <= 2


def test_noise_is_given_up_with_its_first_direction() -> None:
    chance = np.random.default_rng(25)
    old = chance.standard_normal((ROWS, COLUMNS)) * 0.05
    moved = chance.standard_normal(old.shape) * 1e-3
    judge = Counting(FloatJudge(F32, words(F32, old), words(F32, old + moved), ROWS, COLUMNS))
    assert Search(judge, RANKS, PRECISIONS).best(moved) is None
    assert judge.calls <= 3


def test_matrices_of_infinities_are_left_alone() -> None:
    old = np.full(ROWS * COLUMNS, 0x7F800000, np.uint32)
    new = np.full(ROWS * COLUMNS, 0x7F7FFFFF, np.uint32)
    assert find_changes(F32, old, new, [Matrix(0, ROWS, COLUMNS)]) == []


def test_largest_floats_are_judged_without_a_warning() -> None:
    chance = np.random.default_rng(26)
    for form, most in ((F32, 3e38), (F16, 6e4), (BF16, 3e38)):
        old, new = (words(form, chance.choice([-most, most], (ROWS, COLUMNS))) for _ in range(2))
        find_changes(form, old, new, [Matrix(0, ROWS, COLUMNS)])


def test_what_was_found_is_remembered_without_the_arrays() -> None:
    calls = []

    @by_digest(lambda found: 0)
    def find(array: np.ndarray, rows: int) -> int:
        calls.append(rows)
        return len(calls)

    array = np.arange(12, dtype=np.int8)
    gone = weakref.ref(array)
    assert find(array, 3) == find(array.copy(), 3) == 1
    assert find(array, 4) == 2
    assert find(array.view(np.uint8), 3) == 3
    assert find(array[::-1], 3) == 4
    assert find(array, 3) == 1
    del array
    gc.collect()
    assert gone() is None


def test_no_more_is_remembered_than_may_be_held() -> None:
    calls = []

    @by_digest(lambda found: HELD // 2)
    def find(number: int) -> int:
        calls.append(number)
        return number

    for number in (1, 2, 2, 3, 2, 1):
        assert find(number) == number
    assert calls == [1, 2, 3, 1]
