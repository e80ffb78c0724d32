"""What managers may propose: unsigned metadata, made by pure functions from what is published.

A proposal is one consistent step of both repositories. Whoever opens it as a signing event (`signing.events`) shows the
difference to every signer; nothing here decides whether it is a good idea.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import msgspec
from securesystemslib.signer import Key
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, TargetFile, Targets

from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.ids import parse_name
from protocol.kits import PermitTerms, Technician, TechniciansTerms, is_permit, permit_path
from protocol.objects import (
    FIELD,
    MANAGERS_ROLES,
    ROLES,
    TECHNICIANS,
    DirectorTerms,
    ImageTerms,
    ProductTerms,
    ReleaseTerms,
)
from protocol.release import ReleaseManifest, manifest_path
from protocol.wire import encode
from signing.metadata import expiry, parse, plain, terms, terms_field
from signing.online_keys import OnlineKeys
from signing.repository import RepositoryKind, RepositorySet, permits_of, releases_of, technicians_of

OFFLINE_TOP: Final = ("root", "targets")


@dataclass(frozen=True)
class Proposal:
    """Unsigned metadata to be signed together.

    Args:
        slug: Short, part of the event's id.
        title: One line for people.
        files: The signed parts by repository and role; `root` and `targets` are TUF's, `technicians` is the
            director's list, other roles are products.
    """

    slug: str
    title: str
    files: Mapping[tuple[RepositoryKind, str], Root | Targets]


@dataclass(frozen=True)
class KeyChange:
    """What a rotation changes; everything left out stays.

    Args:
        replace: New keys by the key id that they replace, in every offline role that has it.
        add: Keys of new managers, for every offline role.
        remove: Key ids that lose every offline role.
        threshold: Of every offline role.
        online: The server's keys.
        sealing_key: The server's, in hexadecimal.
        new_era_of: A product whose release counter starts anew.
    """

    replace: Mapping[str, Key] = field(default_factory=dict)
    add: tuple[Key, ...] = ()
    remove: Collection[str] = ()
    threshold: int | None = None
    online: OnlineKeys | None = None
    sealing_key: str | None = None
    new_era_of: str | None = None


def first(
    product: str,
    keys: Iterable[Key],
    threshold: int,
    online: OnlineKeys,
    now: datetime,
    *,
    sealing_key: str | None = None,
) -> Proposal:
    """Both repositories from nothing, with one product, and an empty list of technicians."""
    managers = tuple(keys)
    files: dict[tuple[RepositoryKind, str], Root | Targets] = {
        ("image", "root"): _root(managers, threshold, online["image"], now),
        ("image", "targets"): _image_targets(product, managers, threshold, now),
        ("image", product): _empty_product(product, now),
        ("director", "root"): _root(managers, threshold, online["director"], now),
        ("director", "targets"): _director_targets(managers, threshold, online["director"], sealing_key, now),
        ("director", TECHNICIANS): _empty_list(now),
    }
    return Proposal(f"init-{product}", f"create both repositories, with the product {product}", files)


def add_product(image: RepositorySet, product: str, keys: Iterable[Key], threshold: int, now: datetime) -> Proposal:
    """One product more.

    Raises:
        StateError: It exists.
    """
    top = _next(parse(image.targets, Targets, "targets.json").signed, now, "targets")
    delegations = _delegations(top)
    if product in (delegations.roles or {}):
        raise StateError(f"the product {product} exists already")
    _delegate(delegations, product, tuple(keys), threshold)
    return Proposal(
        f"add-{product}",
        f"add the product {product}",
        {("image", "targets"): top, ("image", product): _empty_product(product, now)},
    )


def add_kits(director: RepositorySet, sealing_key: str | None, now: datetime) -> Proposal:
    """Field kits for a director from before there were any: its managers' roles, and an empty list of technicians.

    Args:
        director: What is published.
        sealing_key: The server's; None leaves what is there.
        now: Aware.

    Raises:
        StateError: It has them.
    """
    check_without_kits(director)
    top = _next(parse(director.targets, Targets, "targets.json").signed, now, "targets")
    root = parse(director.root(), Root, "root").signed
    managers = tuple(root.keys[keyid] for keyid in root.roles["targets"].keyids)
    for role in MANAGERS_ROLES:
        _delegate(_delegations(top), role, managers, root.roles["targets"].threshold, paths=[])
    _set_sealing_key(top, sealing_key)
    files: dict[tuple[RepositoryKind, str], Root | Targets] = {
        ("director", "targets"): top,
        ("director", TECHNICIANS): _empty_list(now),
    }
    return Proposal("kits", "delegate field kits and technicians to the managers", files)


def check_without_kits(director: RepositorySet) -> None:
    """Raises: StateError: The director has the managers' roles already."""
    if TECHNICIANS in director.delegated:
        raise StateError("the director delegates to kits and technicians already")


def set_technicians(director: RepositorySet, technicians: Iterable[Technician], title: str, now: datetime) -> Proposal:
    """Replaces the list of technicians; entries that have ended are left out.

    Raises:
        StateError: The director has no list yet.
        Refused: `METADATA`: one name or key stands for two.
    """
    signed = _next(technicians_role(director), now, TECHNICIANS)
    said = technicians_of(signed)
    named = tuple(sorted(technicians, key=lambda each: each.name))
    signed.unrecognized_fields.update(terms_field(msgspec.structs.replace(said, technicians=named)))
    _drop_ended(signed, now)
    technicians_of(signed)
    return Proposal("technicians", title, {("director", TECHNICIANS): signed})


def grant_permit(image: RepositorySet, product: str, permit: PermitTerms, now: datetime) -> Proposal:
    """Lets one machine go back to a release, once. `signing.repository.accept` takes it for a listed one only.

    Raises:
        Refused: `METADATA`: it would be good for too long.
    """
    signed = _next(product_role(image, product), now, product)
    path = permit_path(product, permit.permit)
    target = TargetFile.from_data(path, encode(permit), ["sha256"])
    target.unrecognized_fields["custom"] = plain(permit)
    signed.targets[path] = target
    permits_of(product, signed)
    title = f"permit {permit.device} to go back to {product} {permit.release}"
    return Proposal(f"{product}-permit", title, {("image", product): signed})


def withdraw_permit(image: RepositorySet, product: str, permit: str, now: datetime) -> Proposal:
    """Takes a permit back, for machines that have not used it when they hear of it.

    Args:
        image: What is published.
        product: Whose.
        permit: Its id, or enough of its beginning.
        now: Aware.

    Raises:
        StateError: No such permit, or several.
    """
    present = product_role(image, product)
    found = [each for each in permits_of(product, present) if each.permit.startswith(permit)]
    if len(found) != 1:
        raise StateError(f"{len(found)} permits of {product} begin with {permit!r:.40}", hint="`headland permit list`")
    signed = _next(present, now, product)
    signed.targets.pop(permit_path(product, found[0].permit), None)
    title = f"withdraw the permit of {found[0].device} to go back to {product} {found[0].release}"
    return Proposal(f"{product}-permit", title, {("image", product): signed})


def list_release(image: RepositorySet, manifest: ReleaseManifest, manifest_bytes: bytes, now: datetime) -> Proposal:
    """One release more in its product's role."""
    product = manifest.product
    signed = _next(product_role(image, product), now, product)
    path = manifest_path(product, manifest.version)
    target = TargetFile.from_data(path, manifest_bytes, ["sha256"])
    target.unrecognized_fields["custom"] = plain(
        ReleaseTerms(
            kind="release", version=manifest.version, release_counter=manifest.release_counter, era=manifest.era
        )
    )
    signed.targets[path] = target
    return Proposal(
        f"{product}-{manifest.version}"[:56].lower(),
        f"release {product} {manifest.version}",
        {("image", product): signed},
    )


def delist(image: RepositorySet, product: str, versions: Collection[str], floor: int | None, now: datetime) -> Proposal:
    """Takes releases from the list, and may raise the floor of the product's counters.

    Raises:
        StateError: A version that is not listed, or a floor that goes down or stays.
    """
    signed = _next(product_role(image, product), now, product)
    for version in versions:
        if signed.targets.pop(manifest_path(product, version), None) is None:
            listed = ", ".join(release.version for release in releases_of(product, signed)) or "none"
            raise StateError(f"{product} {version} is not listed; listed: {listed}")
    for permit in permits_of(product, signed):
        if permit.release in versions:  # it stands in for a counter, never for the listing
            del signed.targets[permit_path(product, permit.permit)]
    if floor is not None:
        present = terms(signed, ProductTerms, f"{product}.json")
        if floor <= present.floor:
            raise StateError(f"the floor of {product} is {present.floor}; it only rises")
        signed.unrecognized_fields.update(terms_field(msgspec.structs.replace(present, floor=floor)))
    what = ", ".join(versions) or f"all below counter {floor}"
    return Proposal(f"{product}-delist", f"delist {product} {what}", {("image", product): signed})


def set_interlocks(
    image: RepositorySet, product: str, signals: Collection[str], skippable: Collection[str], now: datetime
) -> Proposal:
    """Replaces the machine signals that must be off before any release of the product is activated.

    Args:
        image: What is published.
        product: Whose.
        signals: The interlocks.
        skippable: Signals, these or others, in spite of which a technician may activate what they force.
        now: Aware.

    Raises:
        StateError: They are so already, or too many.
        Refused: `METADATA`: a name that no signal can have.
    """
    signed = _next(product_role(image, product), now, product)
    present = terms(signed, ProductTerms, f"{product}.json")
    wanted = _signals(signals)
    changed = msgspec.structs.replace(present, interlocks=wanted, skippable=_signals(skippable))
    if changed == present:
        raise StateError(f"the interlocks of {product} are {', '.join(wanted) or 'none'} already")
    signed.unrecognized_fields.update(terms_field(changed))
    title = f"interlocks of {product}: {', '.join(wanted) or 'none'}"
    if changed.skippable:
        title += f"; technicians may skip {', '.join(changed.skippable)}"
    return Proposal(f"{product}-interlocks", title, {("image", product): signed})


def resign(
    sets: Mapping[RepositoryKind, RepositorySet], roles: Collection[tuple[RepositoryKind, str]], now: datetime
) -> Proposal:
    """The same content with a new expiry, for roles that come to the end of their lifetime."""
    files: dict[tuple[RepositoryKind, str], Root | Targets] = {}
    for kind, role in roles:
        files[kind, role] = _next(_present(sets[kind], role), now, role)
    names = ", ".join(f"{kind} {role}" for kind, role in files)
    return Proposal("resign", f"sign again: {names}", files)


def change_keys(sets: Mapping[RepositoryKind, RepositorySet], change: KeyChange, now: datetime) -> Proposal:
    """Rotates keys, thresholds, the server's keys or an era through all roles that they concern.

    What the new keys would no longer vouch for is signed again with the same content.

    Raises:
        StateError: Nothing changes, or a threshold that its keys cannot meet.
    """
    files: dict[tuple[RepositoryKind, str], Root | Targets] = {}
    for kind, published in sets.items():
        root = _changed(parse(published.root(), Root, "root").signed, now, "root", _root_edits(kind, change))
        if root is not None:
            files[kind, "root"] = root
        top_now = parse(published.targets, Targets, "targets.json")
        top = _changed(top_now.signed, now, "targets", _targets_edits(kind, change))
        delegator = root or parse(published.root(), Root, "root").signed
        if top is None and not _vouches(delegator, "targets", top_now):
            top = _next(top_now.signed, now, "targets")
        if top is not None:
            files[kind, "targets"] = top
        for role, data in published.delegated.items():
            metadata = parse(data, Targets, f"{role}.json")
            if not _vouches(top or top_now.signed, role, metadata):
                files[kind, role] = _next(metadata.signed, now, role)
    if not files:
        raise StateError("these keys and thresholds are in force already")
    _check_thresholds(files)
    return Proposal("keys", "change keys", files)


def product_role(image: RepositorySet, product: str) -> Targets:
    """The signed part of a product's role.

    Raises:
        StateError: No such product.
    """
    if product not in image.delegated:
        known = ", ".join(sorted(image.delegated)) or "none"
        raise StateError(f"no product {product!r}; known: {known}", hint=f"`headland keys init --product {product}`")
    return parse(image.delegated[product], Targets, f"{product}.json").signed


def technicians_role(director: RepositorySet) -> Targets:
    """The signed part of the list of technicians.

    Raises:
        StateError: The director is from before there were field kits.
    """
    if TECHNICIANS not in director.delegated:
        raise StateError("the director delegates to no technicians yet", hint="`headland keys kits` proposes it")
    return parse(director.delegated[TECHNICIANS], Targets, f"{TECHNICIANS}.json").signed


def _root(managers: tuple[Key, ...], threshold: int, online: Mapping[str, Key], now: datetime) -> Root:
    root = Root(version=1, expires=expiry(now, "root"), consistent_snapshot=True)
    for role in OFFLINE_TOP:
        for key in managers:
            root.add_key(key, role)
        root.roles[role].threshold = threshold
    for role in ("snapshot", "timestamp"):
        root.add_key(online[role], role)
    return root


def _image_targets(product: str, managers: tuple[Key, ...], threshold: int, now: datetime) -> Targets:
    delegations = Delegations({}, {})
    _delegate(delegations, product, managers, threshold)
    return Targets(
        version=1,
        expires=expiry(now, "targets"),
        delegations=delegations,
        unrecognized_fields=terms_field(ImageTerms(kind="image")),
    )


def _director_targets(
    managers: tuple[Key, ...], threshold: int, online: Mapping[str, Key], sealing_key: str | None, now: datetime
) -> Targets:
    delegations = Delegations({}, {})
    for role in sorted(ROLES.values()):
        key = online[role]
        delegations.keys[key.keyid] = key
        assert delegations.roles is not None
        delegations.roles[role] = DelegatedRole(role, [key.keyid], 1, terminating=True, paths=[])
    for role in MANAGERS_ROLES:
        _delegate(delegations, role, managers, threshold, paths=[])
    return Targets(
        version=1,
        expires=expiry(now, "targets"),
        delegations=delegations,
        unrecognized_fields=terms_field(DirectorTerms(kind="director", sealing_key=sealing_key)),
    )


def _empty_product(product: str, now: datetime) -> Targets:
    said = ProductTerms(kind="product", product=product)
    return Targets(version=1, expires=expiry(now, product), unrecognized_fields=terms_field(said))


def _empty_list(now: datetime) -> Targets:
    said = TechniciansTerms(kind="technicians", created_ms=_ms(now))
    return Targets(version=1, expires=expiry(now, TECHNICIANS), unrecognized_fields=terms_field(said))


def _delegate(
    delegations: Delegations,
    role: str,
    managers: tuple[Key, ...],
    threshold: int,
    *,
    paths: list[str] | None = None,
) -> None:
    """Delegates to managers; the paths are a product's own unless others are named."""
    for key in managers:
        delegations.keys[key.keyid] = key
    assert delegations.roles is not None
    delegations.roles[role] = DelegatedRole(
        role,
        [key.keyid for key in managers],
        threshold,
        terminating=True,
        paths=[f"{role}/*", f"{role}/*/*"] if paths is None else paths,
    )


def _delegations(top: Targets) -> Delegations:
    if top.delegations is None:
        raise Refused(Reason.METADATA, "targets.json delegates to nobody")
    return top.delegations


def _present(published: RepositorySet, role: str) -> Root | Targets:
    if role == "root":
        return parse(published.root(), Root, "root").signed
    if role == "targets":
        return parse(published.targets, Targets, "targets.json").signed
    return technicians_role(published) if role == TECHNICIANS else product_role(published, role)


def _next(signed: Any, now: datetime, role: str) -> Any:
    """The same content, one version on, with a whole lifetime before it."""
    following = copy.deepcopy(signed)
    following.version += 1
    following.expires = expiry(now, role)
    if role not in OFFLINE_TOP:
        _drop_ended(following, now)
    return following


def _drop_ended(signed: Targets, now: datetime) -> None:
    """Takes out of a delegated role what has ended: permits of a product, entries of the list of technicians.

    The list is as old as its newest signature: what was looked at and signed again begins anew.
    """
    now_ms = _ms(now)
    signed.targets = {
        path: target
        for path, target in signed.targets.items()
        if not is_permit(target.custom) or target.custom["expires_ms"] > now_ms
    }
    said = signed.unrecognized_fields[FIELD]
    if said["kind"] == TECHNICIANS:
        listing = terms(signed, TechniciansTerms, TECHNICIANS)
        left = tuple(each for each in listing.technicians if each.expires_ms > now_ms)
        changed = msgspec.structs.replace(listing, created_ms=now_ms, technicians=left)
        signed.unrecognized_fields.update(terms_field(changed))


def _signals(names: Collection[str]) -> tuple[str, ...]:
    found = tuple(sorted({parse_name(name, "signal") for name in names}))
    if len(found) > limits.INTERLOCKS:
        raise StateError(f"at most {limits.INTERLOCKS} signals")
    return found


def _set_sealing_key(top: Targets, sealing_key: str | None) -> None:
    if sealing_key is not None:
        said = terms(top, DirectorTerms, "targets.json")
        top.unrecognized_fields.update(terms_field(msgspec.structs.replace(said, sealing_key=sealing_key)))


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _changed(signed: Any, now: datetime, role: str, edit: Callable[[Any], None]) -> Any:
    """The next version after `edit`; None when the edit changes nothing."""
    following = copy.deepcopy(signed)
    edit(following)
    return _next(following, now, role) if following != signed else None


def _root_edits(kind: RepositoryKind, change: KeyChange) -> Callable[[Root], None]:
    def edit(root: Root) -> None:
        for role in OFFLINE_TOP:
            _edit_keys(root, role, root.roles[role].keyids, change)
            if change.threshold is not None:
                root.roles[role].threshold = change.threshold
        for role in ("snapshot", "timestamp"):
            _edit_online(root, role, root.roles[role].keyids, change, kind)

    return edit


def _targets_edits(kind: RepositoryKind, change: KeyChange) -> Callable[[Targets], None]:
    def edit(top: Targets) -> None:
        for name, role in (_delegations(top).roles or {}).items():
            if kind == "director" and name not in MANAGERS_ROLES:
                _edit_online(top, name, role.keyids, change, kind)
                continue
            _edit_keys(top, name, role.keyids, change)
            if change.threshold is not None:
                role.threshold = change.threshold
        if kind == "director":
            _set_sealing_key(top, change.sealing_key)
        if kind == "image" and change.new_era_of is not None:
            if change.new_era_of not in (_delegations(top).roles or {}):
                raise StateError(f"no product {change.new_era_of!r}")
            eras = terms(top, ImageTerms, "targets.json").eras
            eras = {**eras, change.new_era_of: eras.get(change.new_era_of, 0) + 1}
            top.unrecognized_fields.update(terms_field(ImageTerms(kind="image", eras=eras)))

    return edit


def _edit_keys(delegator: Root | Targets, role: str, keyids: Iterable[str], change: KeyChange) -> None:
    for keyid in list(keyids):
        if keyid in change.replace:
            delegator.revoke_key(keyid, role)
            delegator.add_key(change.replace[keyid], role)
        elif keyid in change.remove:
            delegator.revoke_key(keyid, role)
    for key in change.add:
        delegator.add_key(key, role)


def _edit_online(
    delegator: Root | Targets, role: str, keyids: Iterable[str], change: KeyChange, kind: RepositoryKind
) -> None:
    if change.online is None:
        return
    key = change.online[kind][role]
    for keyid in list(keyids):
        if keyid != key.keyid:
            delegator.revoke_key(keyid, role)
    delegator.add_key(key, role)


def _vouches(delegator: Root | Targets, role: str, metadata: Metadata[Targets]) -> bool:
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError:
        return False
    return True


def _check_thresholds(files: Mapping[tuple[RepositoryKind, str], Root | Targets]) -> None:
    for signed in files.values():
        roles: Mapping[str, Any] = {}
        if isinstance(signed, Root):
            roles = signed.roles
        elif signed.delegations is not None:
            roles = signed.delegations.roles or {}
        for name, role in roles.items():
            if not 1 <= role.threshold <= len(role.keyids):
                raise StateError(f"{name} would need {role.threshold} signatures of {len(role.keyids)} managers")
