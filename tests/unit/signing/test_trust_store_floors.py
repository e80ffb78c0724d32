"""Version floors: numbers that go down by key rotation only, and only when no old signature could count any more."""

from hypothesis import given
from hypothesis import strategies as st

from signing.trust_store import KeyedFloor, MemoryFloors

KEYS = st.frozensets(st.sampled_from("abcdef"), min_size=1, max_size=5)


def test_a_floor_never_goes_down_under_one_key_set() -> None:
    floors = MemoryFloors()
    floor = KeyedFloor(floors, "image/targets", ["a", "b", "c"], 2)
    for version in (3, 7, 5):
        floor.rise(version)
    assert floor.value() == 7


def test_a_floor_is_kept_while_the_threshold_can_be_met_by_old_keys() -> None:
    floors = MemoryFloors()
    KeyedFloor(floors, "x", ["a", "b", "c"], 2).rise(9)
    assert KeyedFloor(floors, "x", ["a", "b", "d"], 2).value() == 9
    assert KeyedFloor(floors, "x", ["a", "d", "e"], 2).value() == 0
    assert KeyedFloor(floors, "x", ["d", "e", "f"], 2).value() == 0


def test_roles_and_repositories_have_floors_of_their_own() -> None:
    floors = MemoryFloors()
    KeyedFloor(floors, "image/timestamp", ["a"], 1).rise(9)
    assert KeyedFloor(floors, "image/snapshot", ["a"], 1).value() == 0
    assert KeyedFloor(floors, "director/timestamp", ["a"], 1).value() == 0


def test_a_threshold_that_no_keys_meet_has_no_floor_and_no_error() -> None:
    assert KeyedFloor(MemoryFloors(), "x", ["a"], 2).value() == 0
    assert KeyedFloor(MemoryFloors(), "x", [], 1).value() == 0


@given(st.lists(st.tuples(KEYS, st.integers(1, 4), st.integers(1, 50)), max_size=6), KEYS, st.integers(1, 4))
def test_no_set_of_old_signatures_that_still_counts_is_ever_below_the_floor(
    history: list[tuple[frozenset[str], int, int]], keys: frozenset[str], threshold: int
) -> None:
    floors = MemoryFloors()
    for old, old_threshold, version in history:
        KeyedFloor(floors, "x", old, old_threshold).rise(version)
    floor = KeyedFloor(floors, "x", keys, threshold).value()
    # What some old key set signed at its highest version may be replayed below it by as many keys as are left.
    for old, _, version in history:
        if len(old & keys) >= threshold:
            assert floor >= version
    if all(not (old & keys) for old, _, _ in history):
        assert floor == 0


def test_writing_the_same_floor_again_writes_nothing() -> None:
    class Counting(MemoryFloors):
        writes = 0

        def rise(self, name: str, value: int) -> None:
            self.writes += 1
            super().rise(name, value)

    floors = Counting()
    floor = KeyedFloor(floors, "x", ["a", "b"], 1)
    floor.rise(4)
    floor.rise(4)
    floor.rise(3)
    assert floors.writes == 2
