"""The planner's choices, by measured bytes: each test says what a machine holds and can do, and what it is offered."""

from dataclasses import replace

import pytest

from protocol import limits
from protocol.artifact import Artifact
from protocol.ids import digest
from protocol.objects import Step
from server.plan import Means, make_plan
from server.storage.records import Compressed, Pair, Patch

NEW, OLD, OLDER, OTHER = (digest(name) for name in (b"new", b"old", b"older", b"other"))
LENGTH = 9_000_000
FULL = Compressed(NEW, LENGTH, digest(b"full"), 8_000_000, digest(b"full index"), 1_000)
PATCH = Patch(Pair(OLD, NEW, 1), 1, digest(b"patch"), 4_000_000, digest(b"patch index"), 600)
ABLE = Means(codecs=(1,))


def artifact(sha256: str = NEW) -> Artifact:
    return Artifact(sha256=sha256, length_bytes=LENGTH, media_type="application/onnx")


def choose(*patches: Patch, have: tuple[str, ...] = (OLD,), means: Means = ABLE, full: Compressed = FULL) -> Step:
    plan = make_plan([artifact()], have, {NEW: full}, patches, means)
    assert plan is not None
    assert plan.full_bytes == full.payload_bytes + full.index_bytes
    (step,) = plan.steps
    assert plan.travels_bytes() == step.travels_bytes()
    return step


def test_a_patch_from_what_the_machine_holds_travels_instead_of_the_whole() -> None:
    step = choose(PATCH)
    assert (step.method, step.base, step.codec) == ("delta", OLD, 1)
    assert step.travels_bytes() == 4_000_600
    assert step.full_bytes == 8_001_000


def test_what_the_machine_holds_does_not_travel() -> None:
    step = choose(PATCH, have=(OLD, NEW))
    assert (step.method, step.travels_bytes()) == ("have", 0)


def test_of_all_bases_that_the_machine_holds_the_cheapest_is_taken() -> None:
    cheaper = replace(PATCH, pair=Pair(OLDER, NEW, 1), payload=digest(b"2"), payload_bytes=3_999_999)
    cheapest = replace(PATCH, pair=Pair(OTHER, NEW, 1), payload=digest(b"3"), payload_bytes=1)
    assert choose(PATCH, cheaper, cheapest, have=(OLD, OLDER)).base == OLDER
    assert choose(cheaper, PATCH, cheapest, have=(OLD,)).base == OLD
    assert choose(PATCH, have=(OTHER,)).method == "full"


def test_the_index_is_part_of_the_price() -> None:
    unindexed = replace(
        PATCH, pair=Pair(OLDER, NEW, 1), payload=digest(b"2"), payload_bytes=4_000_500, index=None, index_bytes=0
    )
    assert choose(PATCH, unindexed, have=(OLD, OLDER)).base == OLDER


@pytest.mark.parametrize(("payload_bytes", "method"), [(8_000_399, "delta"), (8_000_400, "full"), (9_000_000, "full")])
def test_a_patch_that_is_worse_than_the_whole_loses(payload_bytes: int, method: str) -> None:
    assert choose(replace(PATCH, payload_bytes=payload_bytes)).method == method


def test_a_patch_whose_blob_was_not_kept_is_not_offered() -> None:
    assert choose(replace(PATCH, payload=None, index=None, payload_bytes=10)).method == "full"


def test_an_agent_gets_patches_of_codec_versions_that_it_applies() -> None:
    newer = replace(PATCH, pair=Pair(OLD, NEW, 2), payload=digest(b"2"), payload_bytes=100)
    assert choose(PATCH, newer).codec == 1
    assert choose(PATCH, newer, means=Means(codecs=(1, 2))).codec == 2
    assert choose(PATCH, newer, means=Means()).method == "full"


def test_a_patch_that_failed_on_this_machine_is_never_offered_to_it_again() -> None:
    failed = replace(ABLE, failed={(PATCH.pair.id, PATCH.payload)})
    dearer = replace(PATCH, pair=Pair(OLDER, NEW, 1), payload=digest(b"2"), payload_bytes=5_000_000)
    assert choose(PATCH, means=failed).method == "full"
    assert choose(PATCH, dearer, have=(OLD, OLDER), means=failed).base == OLDER
    made_anew = replace(PATCH, payload=digest(b"made anew"))
    assert choose(made_anew, means=failed).method == "delta"


@pytest.mark.parametrize(("memory_mib", "method"), [(0, "delta"), (127, "full"), (128, "delta")])
def test_a_machine_without_the_memory_gets_the_whole(memory_mib: int, method: str) -> None:
    assert limits.PATCH_MEMORY_MIB == 32
    assert choose(PATCH, means=replace(ABLE, memory_mib=memory_mib)).method == method


def test_a_patch_that_takes_longer_than_the_whole_loses_where_bytes_are_free() -> None:
    slow = replace(ABLE, patch_rate_kib_s=1_000, link_rate_kib_s=10_000)  # 8.8 s to apply, 0.4 s spared
    assert choose(PATCH, means=slow).method == "full"
    assert choose(PATCH, means=replace(slow, link_rate_kib_s=100)).method == "delta"  # 39 s spared
    assert choose(PATCH, means=replace(slow, patch_rate_kib_s=100_000)).method == "delta"
    # Nothing is guessed where one of the two is not known.
    assert choose(PATCH, means=replace(slow, link_rate_kib_s=0)).method == "delta"
    assert choose(PATCH, means=replace(slow, patch_rate_kib_s=0)).method == "delta"


def test_where_a_budget_counts_bytes_the_fewest_win_however_slow() -> None:
    slow = replace(ABLE, patch_rate_kib_s=1, link_rate_kib_s=1_000_000, metered=True)
    assert choose(PATCH, means=slow).method == "delta"


def test_a_transfer_under_way_goes_on_unless_the_other_way_takes_less_than_what_is_left() -> None:
    def begun(count: int) -> Means:
        return replace(ABLE, parts={FULL.payload: count, FULL.index or "": FULL.index_bytes})

    assert choose(PATCH, means=begun(1_000_000)).method == "delta"  # 7 MB left, the patch is 4
    assert choose(PATCH, means=begun(5_000_000)).method == "full"  # 3 MB left
    both = replace(ABLE, parts={**begun(5_000_000).parts, PATCH.payload or "": 3_900_000})
    assert choose(PATCH, means=both).method == "delta"  # and back only where that is less again


def test_a_machine_that_lies_about_its_parts_gets_no_negative_price() -> None:
    said = {PATCH.payload or "": 1 << 50, FULL.payload: FULL.payload_bytes - 100, FULL.index or "": FULL.index_bytes}
    assert choose(PATCH, means=replace(ABLE, parts=said)).method == "full"  # 100 left, and the patch's index is 600


def test_there_is_no_plan_before_the_whole_has_a_price() -> None:
    assert make_plan([artifact(), artifact(OTHER)], (OLD,), {NEW: FULL}, [PATCH], ABLE) is None


def test_each_artifact_of_a_release_is_chosen_for_itself() -> None:
    other = Compressed(OTHER, LENGTH, digest(b"other full"), 700, None, 0)
    plan = make_plan([artifact(), artifact(OTHER)], (OLD,), {NEW: FULL, OTHER: other}, [PATCH], ABLE)
    assert plan is not None
    assert [step.method for step in plan.steps] == ["delta", "full"]
    assert (plan.travels_bytes(), plan.full_bytes) == (4_000_600 + 700, 8_001_000 + 700)
