"""How old a manager's key is: since metadata first named it, however often that was signed anew."""

from dataclasses import replace
from datetime import UTC, datetime

from tuf.api.metadata import Root, Targets

from signing import lives
from signing.metadata import parse
from signing.repository import RepositorySet
from tests.fakes.managers import Managers

START = datetime(2020, 1, 1, tzinfo=UTC)


def only_alice_in_the_roots(managers: Managers) -> RepositorySet:
    """Bob and Carol sign for the product alone."""
    root = parse(managers.image.root(), Root, "root")
    for role in ("root", "targets"):
        root.signed.roles[role].keyids = [managers.keys["alice"].public_key.keyid]
    return replace(managers.image, roots={1: root.to_bytes()})


def test_the_key_of_a_manager_who_signs_for_a_product_only_grows_old_and_reaches_its_marks() -> None:
    managers = Managers(START)
    sets = only_alice_in_the_roots(managers)
    carol = managers.keys["carol"].public_key.keyid
    tops, marks = [], {}
    for year in range(2020, 2025):
        managers.now = START.replace(year=year)  # signed anew each year, as `keys due` says
        tops.append(parse(managers.sign(managers.make_image_targets(year)), Targets, "targets.json"))
        since_ms = lives.manager_keys({"image": replace(sets, targets=tops[-1].to_bytes())}, tops)[carol]
        life = lives.key_life("manager-key", "carol", carol, since_ms, "")
        marks[year] = lives.passed(life, managers.now)
    assert marks == {2020: 0, 2021: 0, 2022: 0.5, 2023: 0.5, 2024: 1.0}


def test_a_key_that_came_back_is_as_old_as_its_return() -> None:
    managers = Managers(START)
    sets = only_alice_in_the_roots(managers)
    carol = managers.keys["carol"].public_key.keyid
    tops = []
    for year in range(2020, 2023):
        managers.now = START.replace(year=year)
        top = managers.make_image_targets(year)
        if year == 2021:
            assert top.delegations is not None and top.delegations.roles is not None
            top.delegations.roles["pest-detector"].keyids.remove(carol)
        tops.append(parse(managers.sign(top), Targets, "targets.json"))
    assert lives.manager_keys({"image": sets}, tops)[carol] == START.replace(year=2022).timestamp() * 1000
