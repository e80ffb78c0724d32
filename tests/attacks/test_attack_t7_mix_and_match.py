"""T7: pieces of two genuine states, put together."""

from datetime import UTC, datetime
from itertools import product
from pathlib import Path

from signing.repository import RepositorySet
from tests.fakes.field import PRODUCT, Field, reasons

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def test_attack_t7_no_mixture_of_two_genuine_states_is_trusted(tmp_path: Path) -> None:
    source = Field(tmp_path / "source", NOW)
    house = source.house
    states = []
    for number in (1, 2):
        house.release(f"{number}.0.0", number, b"%d" % number)
        source.serve()
        states.append(dict(source.image_shelf.files))
        source.passes(hours=1)
    old, new = states
    stamp = {"old": old["timestamp.json"], "new": new["timestamp.json"]}
    snapshots = {name: data for name, data in (old | new).items() if "snapshot" in name}
    roles = {name: data for name, data in (old | new).items() if PRODUCT in name}
    assert len(snapshots) == len(roles) == 2

    trusted = 0
    for index, (which, snapshot, role) in enumerate(product(stamp, snapshots, roles)):
        field = Field(tmp_path / str(index), source.now)
        field.house = house
        field.first_roots = source.first_roots
        field.serve()
        # Under every name that could be asked for stand the bytes of the mixture.
        field.image_shelf.files = (
            old
            | new
            | {"timestamp.json": stamp[which]}
            | dict.fromkeys(snapshots, snapshots[snapshot])
            | dict.fromkeys(roles, roles[role])
        )
        verdict = field.contact(serve=False)
        genuine = verdict.may_install
        trusted += genuine
        if not genuine:
            [(what, reason)] = reasons(verdict)
            assert what == "image"
            assert reason in ("metadata", "rollback", "length")
    assert trusted == 2


def test_attack_t7_a_new_role_under_old_top_targets_that_no_snapshot_named_is_refused(tmp_path: Path) -> None:
    field = Field(tmp_path, NOW)
    field.house.release("1.0.0", 1, b"one")
    field.contact()
    field.passes(hours=1)
    old = field.house.image
    field.house.release("2.0.0", 2, b"two")
    field.serve()
    fresh = field.image_shelf.files["3.pest-detector.json"]
    field.house.image = RepositorySet(roots=old.roots, targets=old.targets, delegated=old.delegated)
    field.serve()
    field.image_shelf.files["2.pest-detector.json"] = fresh
    verdict = field.contact(serve=False)
    assert verdict.terms is not None
    assert verdict.terms.role_version == 2
