"""T8: older genuine metadata replayed, also after a power cut brought the metadata folder back in an older state."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from signing.repository import RepositorySet
from tests.fakes.field import PRODUCT, Field, reasons

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def field(tmp_path: Path) -> Field:
    field = Field(tmp_path / "trust", NOW)
    field.house.release("1.0.0", 1, b"one")
    field.contact()
    return field


def nothing(field: Field, old: Path) -> None:
    """No cut."""


def folder_came_back_older(field: Field, old: Path) -> None:
    shutil.rmtree(field.folder)
    shutil.copytree(old, field.folder)


def folder_lost(field: Field, old: Path) -> None:
    shutil.rmtree(field.folder)


def files_torn(field: Field, old: Path) -> None:
    for path in field.folder.rglob("*.json"):
        path.write_bytes(path.read_bytes()[:100])


CUTS = [nothing, folder_came_back_older, folder_lost, files_torn]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", ["image", "director"])
def test_attack_t8_older_files_are_refused_after_any_cut(
    field: Field, tmp_path: Path, kind: str, cut: Callable[[Field, Path], None]
) -> None:
    shutil.copytree(field.folder, tmp_path / "old")
    old_image, old_director = dict(field.image_shelf.files), dict(field.director_shelf.files)
    field.passes(hours=1)
    field.house.release("1.1.0", 2, b"two")
    field.contact()
    cut(field, tmp_path / "old")
    field.serve()
    shelf = field.image_shelf if kind == "image" else field.director_shelf
    shelf.files = old_image if kind == "image" else old_director
    verdict = field.contact(serve=False)
    assert (kind, "rollback") in reasons(verdict)
    assert not verdict.may_install
    verdict = field.contact()
    assert (reasons(verdict), verdict.may_install) == ([], True)
    assert verdict.terms is not None
    assert len(verdict.terms.listed) == 2


@pytest.mark.parametrize("cut", CUTS)
def test_attack_t8_an_older_role_under_fresh_online_signatures_is_refused(
    field: Field, tmp_path: Path, cut: Callable[[Field, Path], None]
) -> None:
    shutil.copytree(field.folder, tmp_path / "old")
    old = field.house.image
    field.passes(hours=1)
    field.house.delist("1.0.0")
    field.contact()
    field.passes(hours=1)
    new = field.house.image
    cut(field, tmp_path / "old")
    # The attacker holds snapshot and timestamp keys: everything but the managers' role is fresh.
    field.house.image = RepositorySet(roots=new.roots, targets=new.targets, delegated=old.delegated)
    verdict = field.contact()
    assert [what for what, _ in reasons(verdict)] == ["image"]
    assert not verdict.may_install
    assert verdict.terms is None or verdict.terms.listed == {}


def test_attack_t8_an_older_assignment_is_refused_and_the_same_one_is_a_retry(field: Field) -> None:
    field.serve()
    old = field.assignment("a" * 64)
    field.passes(minutes=1)
    new = field.assignment("b" * 64)
    assert field.contact(assignment=new).assignment is not None
    assert reasons(field.contact(assignment=old)) == [("assignment", "rollback")]
    assert field.contact(assignment=new).assignment is not None


def test_attack_t8_an_assignment_expires(field: Field) -> None:
    field.serve()
    old = field.assignment(days=1)
    field.passes(days=2)
    assert reasons(field.contact(assignment=old)) == [("assignment", "expired")]


@pytest.mark.parametrize("cut", CUTS)
def test_attack_t8_an_older_root_chain_is_refused(
    field: Field, tmp_path: Path, cut: Callable[[Field, Path], None]
) -> None:
    shutil.copytree(field.folder, tmp_path / "old")
    field.passes(hours=1)
    field.house.rotate_online("image", "timestamp", "snapshot")
    field.contact()
    field.passes(hours=1)
    cut(field, tmp_path / "old")
    field.serve()
    del field.image_shelf.files["2.root.json"]
    verdict = field.contact(serve=False)
    if cut is nothing:
        assert verdict.may_install
    else:
        assert reasons(verdict) == [("image", "rollback")]
        assert not verdict.may_install


def test_attack_t8_the_product_role_is_named_in_its_floor_so_that_products_do_not_share_one(field: Field) -> None:
    names = {name.split("/")[1] for name in field.floors._values if name.startswith("image/")}
    assert {"root", "timestamp", "snapshot", "targets", PRODUCT} <= names
