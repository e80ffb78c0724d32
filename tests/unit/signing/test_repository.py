"""What the server's gate takes and what it refuses, and what it renders from it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner, Signature, SSlibKey
from tuf.api.metadata import DelegatedRole, Metadata, Snapshot, TargetFile, Targets, Timestamp

from protocol.errors import Reason, Refused, StateError
from protocol.kits import PermitTerms, Technician, permit_path
from protocol.limits import MANIFEST_BYTES
from protocol.objects import ClockBody, ProductTerms
from protocol.wire import encode
from signing.metadata import parse, plain, terms_field
from signing.repository import RepositorySet, accept, permits_of, read_release_list, render_online, technicians_of
from tests.fakes.managers import Managers

NOW = datetime(2026, 5, 4, 8, 0, tzinfo=UTC)
PRODUCT = "pest-detector"


@pytest.fixture
def house() -> Managers:
    house = Managers(NOW)
    house.release("1.0.0", 1, b"{}")
    return house


def refused(reason: Reason, act: Callable[[], object]) -> str:
    with pytest.raises(Refused) as error:
        act()
    assert error.value.reason == reason, error.value.message
    return error.value.message


def offer(house: Managers, now: datetime = NOW, **files: bytes) -> RepositorySet:
    """Offers image files: `targets`, `product`, or `root_N`."""
    names = {"targets": "targets.json", "product": f"{PRODUCT}.json"}
    named = {names.get(key, f"{key.removeprefix('root_')}.root.json"): data for key, data in files.items()}
    return accept("image", house.image, named, now)


def test_what_the_managers_published_is_served_as_the_exact_bytes(house: Managers) -> None:
    served = house.render("image", version=42)
    assert set(served) == {
        *("1.root.json", "1.targets.json", f"2.{PRODUCT}.json", "42.snapshot.json", "timestamp.json"),
    }
    assert served[f"2.{PRODUCT}.json"] == house.image.delegated[PRODUCT]
    assert served["1.root.json"] == house.image.roots[1]


def test_the_snapshot_names_every_file_with_its_hash(house: Managers) -> None:
    served = house.render("image", version=42)
    snapshot = parse(served["42.snapshot.json"], Snapshot, "").signed
    for name, entry in snapshot.meta.items():
        entry.verify_length_and_hashes(served[f"{entry.version}.{name}"])
    stamp = parse(served["timestamp.json"], Timestamp, "").signed
    stamp.snapshot_meta.verify_length_and_hashes(served["42.snapshot.json"])
    assert stamp.version == 42
    assert stamp.expires == snapshot.expires == NOW + timedelta(days=7)


def test_a_server_whose_keys_the_root_does_not_name_renders_nothing(house: Managers) -> None:
    stranger = CryptoSigner.generate_ed25519()
    with pytest.raises(StateError, match="root does not name"):
        render_online(house.image, stranger, house.online["image"]["timestamp"], 1, NOW)


def test_the_release_list_tells_counter_and_manifest(house: Managers) -> None:
    house.release("1.1.0", 2, b"{ }")
    assert [(r.version, r.release_counter, r.length_bytes) for r in read_release_list(house.image, PRODUCT)] == [
        ("1.0.0", 1, 2),
        ("1.1.0", 2, 3),
    ]
    house.delist("1.0.0")
    assert [r.version for r in read_release_list(house.image, PRODUCT)] == ["1.1.0"]
    with pytest.raises(StateError):
        read_release_list(house.image, "weed-finder")


def test_the_same_files_again_change_nothing(house: Managers) -> None:
    assert accept("image", house.image, house.image.files(), NOW) == house.image
    assert accept("director", house.director, house.director.files(), NOW) == house.director


def test_a_server_with_nothing_takes_everything_at_once(house: Managers) -> None:
    house.rotate_online("image", "timestamp")
    house.rotate_online("image", "snapshot")
    assert accept("image", None, house.image.files(), NOW) == house.image


def test_an_older_role_is_a_rollback(house: Managers) -> None:
    old = house.image.delegated[PRODUCT]
    house.release("1.1.0", 2, b"{ }")
    refused(Reason.ROLLBACK, lambda: offer(house, product=old))


def test_another_role_of_the_same_version_is_a_rollback(house: Managers) -> None:
    other = house.sign(house.make_product(2))
    refused(Reason.ROLLBACK, lambda: offer(house, product=other))


def test_older_targets_and_another_root_of_a_version_are_rollbacks(house: Managers) -> None:
    house.era(1)
    refused(Reason.ROLLBACK, lambda: offer(house, targets=house.sign(house.make_image_targets(1))))
    house.threshold = 1
    refused(Reason.ROLLBACK, lambda: offer(house, root_1=house.sign(house.make_root("image", 1))))


def test_expired_metadata_is_not_published(house: Managers) -> None:
    data = house.release("1.1.0", 2, b"{ }", publish=False)
    offer(house, NOW + timedelta(days=179), product=data)
    refused(Reason.EXPIRED, lambda: offer(house, NOW + timedelta(days=181), product=data))


def test_what_expired_since_it_was_published_does_not_stop_the_rest(house: Managers) -> None:
    late = NOW + timedelta(days=200)
    house.now = late
    targets = house.sign(house.make_image_targets(2))
    assert offer(house, late, targets=targets).targets == targets


def test_a_product_role_that_says_another_product_is_refused(house: Managers) -> None:
    data = house.sign(house.make_product(3, product="weed-finder"))
    refused(Reason.WRONG_PRODUCT, lambda: offer(house, product=data))


def test_a_role_that_nobody_delegated_to_is_refused(house: Managers) -> None:
    data = house.sign(house.make_product(1, product="weed-finder"))
    refused(Reason.METADATA, lambda: accept("image", house.image, {"weed-finder.json": data}, NOW))


def test_a_floor_or_an_era_that_goes_down_is_refused(house: Managers) -> None:
    house.delist("1.0.0", floor=5)
    data = house.release("1.1.0", 6, b"{ }", floor=4, publish=False)
    refused(Reason.ROLLBACK, lambda: offer(house, product=data))
    house.era(2)
    lower = house.sign(house.make_image_targets(3, {PRODUCT: 1}))
    refused(Reason.ROLLBACK, lambda: offer(house, targets=lower))
    none = house.sign(house.make_image_targets(3))
    refused(Reason.ROLLBACK, lambda: offer(house, targets=none))


def test_a_release_of_an_era_that_targets_does_not_name_is_refused(house: Managers) -> None:
    data = house.release("1.1.0", 2, b"{ }", era=1, publish=False)
    refused(Reason.METADATA, lambda: offer(house, product=data))


def test_a_product_cannot_vanish(house: Managers) -> None:
    top = house.make_image_targets(2)
    assert top.delegations is not None
    top.delegations.roles = {}
    refused(Reason.METADATA, lambda: offer(house, targets=house.sign(top)))


@pytest.mark.parametrize("paths", [["*"], ["*/*"], ["weed-finder/*", "pest-detector/*"], []])
def test_a_delegation_beyond_the_products_own_paths_is_refused(house: Managers, paths: list[str]) -> None:
    top = house.make_image_targets(2)
    assert top.delegations is not None and top.delegations.roles is not None
    old = top.delegations.roles[PRODUCT]
    top.delegations.roles[PRODUCT] = DelegatedRole(PRODUCT, old.keyids, 2, True, paths)
    refused(Reason.METADATA, lambda: offer(house, targets=house.sign(top)))


@pytest.mark.parametrize("path", ["pest-detector/releases/9.9.9.json", "weed-finder/releases/1.1.0.json", "x", "../x"])
def test_a_target_that_is_not_a_release_of_the_product_is_refused(house: Managers, path: str) -> None:
    target = TargetFile.from_data(path, b"{}", ["sha256"])
    target.unrecognized_fields["custom"] = {"kind": "release", "version": "1.1.0", "release_counter": 2}
    data = house.sign(house.make_product(3, {path: target}))
    refused(Reason.METADATA, lambda: offer(house, product=data))


def test_a_target_without_terms_is_refused(house: Managers) -> None:
    path = f"{PRODUCT}/releases/1.1.0.json"
    data = house.sign(house.make_product(3, {path: TargetFile.from_data(path, b"{}", ["sha256"])}))
    refused(Reason.METADATA, lambda: offer(house, product=data))


def test_two_releases_with_one_counter_are_refused(house: Managers) -> None:
    data = house.release("1.1.0", 1, b"{ }", publish=False)
    refused(Reason.METADATA, lambda: offer(house, product=data))


def test_a_root_that_skips_a_version_is_refused(house: Managers) -> None:
    refused(Reason.METADATA, lambda: offer(house, root_3=house.sign(house.make_root("image", 3))))


def test_a_root_that_lies_about_its_version_is_refused(house: Managers) -> None:
    refused(Reason.METADATA, lambda: offer(house, root_2=house.sign(house.make_root("image", 3))))


def test_a_root_without_consistent_snapshots_is_refused(house: Managers) -> None:
    root = house.make_root("image", 2)
    root.consistent_snapshot = False
    refused(Reason.METADATA, lambda: offer(house, root_2=house.sign(root)))


def test_a_root_that_takes_away_the_keys_of_targets_needs_targets_anew(house: Managers) -> None:
    house.keys["dora"] = CryptoSigner.generate_ed25519()
    root = house.sign(house.make_root("image", 2, ("carol", "dora")), ("alice", "bob", "carol", "dora"))
    refused(Reason.SIGNATURE, lambda: offer(house, root_2=root))
    targets = house.sign(house.make_image_targets(2), ("carol", "dora"))
    assert offer(house, root_2=root, targets=targets).targets == targets


def test_only_the_newest_root_must_be_fresh(house: Managers) -> None:
    house.rotate_online("image", "timestamp")
    early = house.image.files()
    late = NOW + timedelta(days=300)
    house.now = late
    house.rotate_online("image", "timestamp")
    targets = house.sign(house.make_image_targets(2))
    product = house.sign(house.make_product(3))
    later = NOW + timedelta(days=400)
    files = early | house.image.files() | {"targets.json": targets, f"{PRODUCT}.json": product}
    assert max(accept("image", None, files, later).roots) == 3


@pytest.mark.parametrize(
    "name", ["snapshot.json", "root.json", "0.root.json", "../targets.json", "targets", "clock.json"]
)
def test_a_file_that_managers_do_not_sign_is_refused(house: Managers, name: str) -> None:
    refused(Reason.METADATA, lambda: accept("image", house.image, {name: house.image.targets}, NOW))
    refused(Reason.METADATA, lambda: accept("director", house.director, {name: house.director.targets}, NOW))


def test_one_repositorys_targets_are_not_the_others(house: Managers) -> None:
    house.era(1)
    refused(Reason.METADATA, lambda: accept("director", house.director, {"targets.json": house.image.targets}, NOW))


def test_a_director_without_one_of_its_roles_is_refused(house: Managers) -> None:
    top = house.make_director_targets(2)
    assert top.delegations is not None and top.delegations.roles is not None
    del top.delegations.roles["clock"]
    files = {"targets.json": house.sign(top)}
    refused(Reason.METADATA, lambda: accept("director", house.director, files, NOW))


@pytest.mark.parametrize("files", [{}, {"targets.json": b""}, {"1.root.json": b"{}"}, {"targets.json": b"[" * 100_000}])
def test_nothing_or_nonsense_is_refused(house: Managers, files: dict[str, bytes]) -> None:
    refused(Reason.METADATA, lambda: accept("image", None, files, NOW))


def test_more_than_the_limits_is_refused(house: Managers) -> None:
    refused(Reason.LENGTH, lambda: offer(house, product=b" " * 5_000_001))
    fast = house.make_product(1 << 60)
    refused(Reason.LIMIT, lambda: offer(house, product=house.sign(fast)))


def test_no_flipped_bit_of_a_signed_role_is_published(house: Managers) -> None:
    data = house.release("1.1.0", 2, b"{ }", publish=False)
    for at in range(len(data)):
        broken = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(Refused):
            offer(house, product=broken)


def test_new_keys_of_a_product_need_its_role_anew(house: Managers) -> None:
    house.keys["dora"] = CryptoSigner.generate_ed25519()
    top = house.make_image_targets(2)
    for name in ("alice", "bob"):
        top.revoke_key(house.keys[name].public_key.keyid, PRODUCT)
    top.add_key(house.keys["dora"].public_key, PRODUCT)
    targets = house.sign(top)
    refused(Reason.SIGNATURE, lambda: offer(house, targets=targets))
    product = house.sign(house.make_product(3), ("carol", "dora"))
    assert offer(house, targets=targets, product=product).delegated[PRODUCT] == product


def test_files_stand_only_in_the_roles_of_products(house: Managers) -> None:
    path = f"{PRODUCT}/releases/1.1.0.json"
    for kind, published, top in (
        ("image", house.image, house.make_image_targets(2)),
        ("director", house.director, house.make_director_targets(2)),
    ):
        top.targets[path] = TargetFile.from_data(path, b"{}", ["sha256"])
        files = {"targets.json": house.sign(top)}
        refused(Reason.METADATA, lambda k=kind, p=published, f=files: accept(k, p, f, NOW))


def test_the_directors_roles_have_no_paths(house: Managers) -> None:
    top = house.make_director_targets(2)
    assert top.delegations is not None and top.delegations.roles is not None
    old = top.delegations.roles["clock"]
    top.delegations.roles["clock"] = DelegatedRole("clock", old.keyids, 1, True, ["*"])
    files = {"targets.json": house.sign(top)}
    refused(Reason.METADATA, lambda: accept("director", house.director, files, NOW))


def test_a_products_role_delegates_no_further(house: Managers) -> None:
    role = house.make_product(3)
    role.delegations = house.make_image_targets(1).delegations
    refused(Reason.METADATA, lambda: offer(house, product=house.sign(role)))


def test_a_manifest_that_no_machine_would_read_is_refused(house: Managers) -> None:
    data = house.release("1.1.0", 2, b" " * (MANIFEST_BYTES + 1), publish=False)
    refused(Reason.LIMIT, lambda: offer(house, product=data))


def test_thousands_of_signatures_keys_or_roles_are_refused_before_any_is_verified(house: Managers) -> None:
    role: Metadata[Targets] = Metadata(house.make_product(3))
    role.signatures = {f"{number:064x}": Signature(f"{number:064x}", "00") for number in range(65)}
    refused(Reason.LIMIT, lambda: offer(house, product=role.to_bytes()))
    mine = house.keys["alice"].public_key
    root = house.make_root("image", 2)
    root.keys = {f"{n:064x}": SSlibKey(f"{n:064x}", mine.keytype, mine.scheme, mine.keyval) for n in range(257)}
    root.roles["root"].keyids = list(root.keys)[:3]
    refused(Reason.LIMIT, lambda: offer(house, root_2=Metadata(root).to_bytes()))
    top = house.make_image_targets(2)
    assert top.delegations is not None
    top.delegations.roles = {f"p{n}": DelegatedRole(f"p{n}", [], 1, True, [f"p{n}/*"]) for n in range(257)}
    refused(Reason.LIMIT, lambda: offer(house, targets=Metadata(top).to_bytes()))


def test_an_object_has_its_body_inside_the_signed_bytes(house: Managers) -> None:
    body = ClockBody(device="m1", nonce="0" * 32, time_ms=5)
    metadata: Metadata[Targets] = Metadata.from_bytes(house.object(body, NOW, version=9).encode())
    expected = {"kind": "clock", "device": "m1", "nonce": "0" * 32, "time_ms": 5}
    assert metadata.signed.unrecognized_fields == {"headland": expected}
    assert metadata.signed.version == 9
    parse(house.director.targets, Targets, "").signed.verify_delegate(
        "clock", metadata.signed_bytes, metadata.signatures
    )


def test_terms_survive_as_they_were_written(house: Managers) -> None:
    field = terms_field(ProductTerms(kind="product", product=PRODUCT, floor=3))
    assert field == {"headland": {"kind": "product", "product": PRODUCT, "floor": 3}}


def ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def permit(house: Managers, **changes: object) -> PermitTerms:
    """For tractor-1, back to 1.0.0, for ten days."""
    (release,) = (each for each in read_release_list(house.image, PRODUCT) if each.version == "1.0.0")
    whole = PermitTerms(
        kind="permit",
        permit="ab" * 16,
        device="tractor-1",
        release="1.0.0",
        manifest=release.manifest_sha256,
        created_ms=ms(NOW),
        expires_ms=ms(NOW + timedelta(days=10)),
        reason="the new one sees rust where there is none",
    )
    return msgspec.structs.replace(whole, **changes)


def technician(name: str = "tom", key: str = "1" * 64) -> Technician:
    return Technician(name=name, public_key=key, expires_ms=ms(NOW + timedelta(days=365)), may_force=True)


def test_a_permit_stands_beside_the_releases_and_changes_nothing_of_their_list(house: Managers) -> None:
    before = read_release_list(house.image, PRODUCT)
    house.permit(permit(house))
    assert read_release_list(house.image, PRODUCT) == before
    assert permits_of(PRODUCT, house.current_product()) == (permit(house),)
    house.release("1.1.0", 2, b"{ }")
    assert permits_of(PRODUCT, house.current_product()) == (permit(house),)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"expires_ms": ms(NOW + timedelta(days=30)) + 1}, "more than 30 days"),
        ({"release": "1.1.0"}, "lists no such"),
        ({"manifest": "0" * 64}, "lists no such"),
    ],
)
def test_a_permit_for_too_long_or_for_a_release_that_is_not_listed_is_refused(
    house: Managers, changes: dict[str, object], what: str
) -> None:
    said = refused(Reason.METADATA, lambda: house.permit(permit(house, **changes)))
    assert what in said


def test_what_says_it_was_made_in_time_to_come_is_refused_unless_it_comes_back(house: Managers) -> None:
    """It would be good for longer than its lifetime, by as much."""

    def made(ahead: timedelta) -> tuple[dict[str, bytes], dict[str, bytes]]:
        house.now = NOW + ahead
        mine = permit(house, created_ms=ms(house.now), expires_ms=ms(house.now + timedelta(days=30)))
        files = (
            {f"{PRODUCT}.json": house.permit(mine, publish=False)},
            {"technicians.json": house.technicians(publish=False)},
        )
        house.now = NOW
        return files

    product, listing = made(timedelta(days=1))
    assert accept("image", house.image, product, NOW) != house.image
    assert accept("director", house.director, listing, NOW) != house.director
    product, listing = made(timedelta(days=1, seconds=1))
    assert "still to come" in refused(Reason.METADATA, lambda: accept("image", house.image, product, NOW))
    assert "still to come" in refused(Reason.METADATA, lambda: accept("director", house.director, listing, NOW))
    assert accept("director", house.director, listing, NOW, returning=True) != house.director


def test_a_release_that_a_permit_names_is_delisted_only_with_the_permit(house: Managers) -> None:
    house.permit(permit(house))
    refused(Reason.METADATA, lambda: house.delist("1.0.0"))


@pytest.mark.parametrize("harm", ["path", "hash", "length", "word", "kind"])
def test_a_permit_that_is_not_what_its_target_says_is_refused(house: Managers, harm: str) -> None:
    mine = permit(house)
    path = permit_path(PRODUCT, mine.permit)
    content = encode(mine)
    target = TargetFile.from_data(path, content + (b" " if harm == "hash" else b""), ["sha256"])
    target.length = len(content) + (harm == "length")
    target.unrecognized_fields["custom"] = plain(mine) | {
        "word": {"reason": "another"},
        "kind": {"kind": "pardon"},
    }.get(harm, {})
    role = house.make_product(3, {**house.current_product().targets, "x" + path if harm == "path" else path: target})
    refused(Reason.METADATA, lambda: offer(house, product=house.sign(role)))


def test_the_list_of_technicians_is_published_as_a_products_role_is(house: Managers) -> None:
    house.technicians(technician())
    served = house.render("director", version=42)
    assert served["2.technicians.json"] == house.director.delegated["technicians"]
    parse(served["42.snapshot.json"], Snapshot, "").signed.meta["technicians.json"].verify_length_and_hashes(
        served["2.technicians.json"]
    )
    assert technicians_of(parse(served["2.technicians.json"], Targets, "").signed).technicians == (technician(),)
    assert accept("director", None, house.director.files(), NOW) == house.director


def test_a_list_of_technicians_is_judged_as_a_products_role_is(house: Managers) -> None:
    old = house.director.delegated["technicians"]
    house.technicians(technician())
    refused(Reason.ROLLBACK, lambda: accept("director", house.director, {"technicians.json": old}, NOW))
    refused(Reason.SIGNATURE, lambda: house.technicians(by=("alice",)))
    refused(Reason.EXPIRED, lambda: house.technicians(days=-1))
    assert "more than 90 days" in refused(Reason.METADATA, lambda: house.technicians(days=91))
    house.technicians(days=90)
    for twice in ((technician(), technician(key="2" * 64)), (technician(), technician("tim"))):
        assert "two technicians" in refused(Reason.METADATA, lambda t=twice: house.technicians(*t))
    product = house.make_product(9)
    files = {"technicians.json": house.sign(product)}
    refused(Reason.METADATA, lambda: accept("director", house.director, files, NOW))
    listing = house.make_technicians(9)
    listing.targets["technicians/tom"] = TargetFile.from_data("technicians/tom", b"{}", ["sha256"])
    files = {"technicians.json": house.sign(listing)}
    refused(Reason.METADATA, lambda: accept("director", house.director, files, NOW))


def test_a_director_has_both_roles_of_managers_or_neither_and_keeps_them() -> None:
    before = Managers(NOW, kits=False)
    assert before.director.delegated == {}
    files = {"technicians.json": before.sign(before.make_technicians(1))}
    refused(Reason.METADATA, lambda: accept("director", before.director, files, NOW))
    old = before.make_director_targets(3)
    before.kits = True
    files["targets.json"] = before.sign(before.make_director_targets(2))
    refused(Reason.METADATA, lambda: accept("director", before.director, {"targets.json": files["targets.json"]}, NOW))
    for role in ("kits", "technicians"):
        half = before.make_director_targets(2)
        assert half.delegations is not None and half.delegations.roles is not None
        del half.delegations.roles[role]
        alone = {**files, "targets.json": before.sign(half)}
        refused(Reason.METADATA, lambda f=alone: accept("director", before.director, f, NOW))
    before.director = accept("director", before.director, files, NOW)
    assert set(before.director.delegated) == {"technicians"}
    gone = {"targets.json": before.sign(old)}
    assert "they stay" in refused(Reason.METADATA, lambda: accept("director", before.director, gone, NOW))


def test_new_keys_of_the_directors_list_need_it_anew(house: Managers) -> None:
    house.threshold = 3
    top = house.sign(house.make_director_targets(2))
    refused(Reason.SIGNATURE, lambda: accept("director", house.director, {"targets.json": top}, NOW))
    listing = house.sign(house.make_technicians(2), ("alice", "bob", "carol"))
    files = {"targets.json": top, "technicians.json": listing}
    assert accept("director", house.director, files, NOW).delegated["technicians"] == listing
