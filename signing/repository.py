"""The publish side of a repository: judge what managers signed, and wrap it in the online roles.

`accept` is the server's gate and the manager's rehearsal, one rule for both: what the tool would push, the server
takes. `render_online` gives every file that devices fetch. Both are pure: bytes in, bytes out, the time as an argument.
The verify side, with floors and durable state, is `signing.trust_store`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from securesystemslib.signer import Signer
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import DelegatedRole, Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.ids import Count, Digest, Length, ProductName, Version, digest, is_digest, parse_product
from protocol.kits import (
    AHEAD_DAYS,
    LIST_LIFETIME_DAYS,
    PERMIT_DAYS,
    PermitTerms,
    TechniciansTerms,
    is_permit,
    permit_path,
)
from protocol.objects import MANAGERS_ROLES, ROLES, TECHNICIANS, DirectorTerms, ImageTerms, ProductTerms, ReleaseTerms
from protocol.release import manifest_path
from protocol.wire import Message, decode, encode
from signing.metadata import expiry, parse, shared_public_keys, terms

RepositoryKind = Literal["image", "director"]

ROOT_FILE: Final = re.compile(r"^([1-9][0-9]{0,8})\.root\.json\Z")
DIRECTOR_ROLES: Final = frozenset(ROLES.values())


@dataclass(frozen=True)
class RepositorySet:
    """The offline-signed metadata of one repository, as the exact bytes that were signed.

    Args:
        roots: By version, from 1 without a gap: kept for ever, a machine that slept walks all of them.
        targets: The top targets.
        delegated: The metadata of each product's role, by role; of the director, that of `technicians`, unless the
            managers do not delegate to it yet. Its other roles sign objects.
    """

    roots: Mapping[int, bytes]
    targets: bytes
    delegated: Mapping[str, bytes]

    def root(self) -> bytes:
        """The newest root."""
        return self.roots[max(self.roots)]

    def files(self) -> dict[str, bytes]:
        """All files under the names that `accept` takes: what `push --again` sends."""
        named = {f"{version}.root.json": data for version, data in sorted(self.roots.items())}
        named["targets.json"] = self.targets
        return named | {f"{role}.json": data for role, data in sorted(self.delegated.items())}


class ListedRelease(Message):
    """A release that the product's role lists, from the signed metadata alone."""

    product: ProductName
    version: Version
    release_counter: Count
    era: Count
    manifest_sha256: Digest
    length_bytes: Length  # of the manifest


def accept(
    kind: RepositoryKind,
    current: RepositorySet | None,
    files: Mapping[str, bytes],
    now: datetime,
    *,
    returning: bool = False,
) -> RepositorySet:
    """Judges offline-signed files on top of what is published, all or nothing.

    The root chain is walked (each root signed by the threshold of the one before and of its own, versions rising by
    one), targets is held against the newest root and each product's role against targets. Versions rise strictly; the
    same bytes again are fine. Nothing new may have expired. Eras and product floors never go down, and a product once
    delegated stays, and so do the director's roles of managers (a snapshot must go on naming them: TUF client workflow
    5.5.5).

    Args:
        kind: Which repository.
        current: What is published; None before the first time.
        files: By name: `N.root.json`, `targets.json`, `PRODUCT.json`, the director's `technicians.json`; all but the
            first unversioned.
        now: Aware.
        returning: The files were published before, and come back to a server that lost them: one that has expired
            since is taken as well, for what follows is signed on top of it.

    Returns:
        The new state; equal to `current` when nothing is new.

    Raises:
        Refused: `SIGNATURE`, `ROLLBACK`, `EXPIRED`, or `METADATA` and `LIMIT` for what is malformed or too large.
    """
    made_by = None if returning else now
    if returning:
        now = datetime.min.replace(tzinfo=UTC)
    roots, targets, delegated = _sort(kind, files)
    chain = _accept_roots(dict(current.roots) if current else {}, roots, now)
    newest = parse(chain[max(chain)], Root, f"{max(chain)}.root.json").signed
    top_bytes, top = _accept_targets(kind, current, targets, newest, now)
    check = _check_director if kind == "director" else _check_image
    judges = check(top.signed, current, made_by)
    unknown = set(delegated) - set(judges)
    if unknown:
        raise Refused(Reason.METADATA, f"targets delegates to no role {sorted(unknown)[0]!r}")
    accepted: dict[str, bytes] = {}
    for role, judge in judges.items():
        old = current.delegated.get(role) if current else None
        accepted[role] = _accept_delegated(role, old, delegated.get(role), top.signed, judge=judge, now=now)
    return RepositorySet(roots=chain, targets=top_bytes, delegated=accepted)


def render_online(
    published: RepositorySet, snapshot: Signer, timestamp: Signer, version: int, now: datetime
) -> dict[str, bytes]:
    """Every file that devices may fetch, the online roles signed anew.

    Args:
        published: From `accept`.
        snapshot: The online key of that role.
        timestamp: Likewise.
        version: Of both online roles: above the last one, so that a restored server jumps ahead.
        now: When they are signed; they live as `signing.metadata.LIFETIMES` says.

    Returns:
        By name: every `N.root.json`, `V.targets.json`, `V.PRODUCT.json` (director: `V.technicians.json`),
        `V.snapshot.json`, `timestamp.json`.

    Raises:
        StateError: The newest root does not name these keys for these roles.
    """
    root = parse(published.root(), Root, "root").signed
    for role, signer in (("snapshot", snapshot), ("timestamp", timestamp)):
        if signer.public_key.keyid not in root.roles[role].keyids:
            raise StateError(
                f"the root does not name this server's key {signer.public_key.keyid[:12]} for {role}",
                hint="the managers delegate to the server's keys with `headland keys rotate --online online-keys.json`",
            )
    files = {f"{number}.root.json": data for number, data in published.roots.items()}
    meta: dict[str, MetaFile] = {}
    for role, data in {"targets": published.targets, **published.delegated}.items():
        number = parse(data, Targets, f"{role}.json").signed.version
        files[f"{number}.{role}.json"] = data
        meta[f"{role}.json"] = MetaFile.from_data(number, data, ["sha256"])
    shot = Metadata(Snapshot(version=version, expires=expiry(now, "snapshot"), meta=meta))
    shot.sign(snapshot)
    shot_bytes = shot.to_bytes()
    files[f"{version}.snapshot.json"] = shot_bytes
    stamp = Metadata(
        Timestamp(
            version=version,
            expires=expiry(now, "timestamp"),
            snapshot_meta=MetaFile.from_data(version, shot_bytes, ["sha256"]),
        )
    )
    stamp.sign(timestamp)
    files["timestamp.json"] = stamp.to_bytes()
    return files


def read_release_list(published: RepositorySet, product: str) -> tuple[ListedRelease, ...]:
    """What the product's current role lists, by era and counter.

    Raises:
        StateError: No such product.
    """
    if product not in published.delegated:
        known = ", ".join(sorted(published.delegated)) or "none"
        raise StateError(f"no product {product!r} is published; known: {known}")
    signed = parse(published.delegated[product], Targets, f"{product}.json").signed
    return releases_of(product, signed)


def releases_of(product: str, signed: Targets) -> tuple[ListedRelease, ...]:
    """The releases in the signed part of a product's role, by era and counter.

    Raises:
        Refused: `METADATA`: a target that is neither a release nor a permit of this product, or two releases with one
            counter.
    """
    found = [_release(product, path, signed) for path, target in signed.targets.items() if not is_permit(target.custom)]
    # Two of one version cannot be: the version is the target's path.
    if len({(release.era, release.release_counter) for release in found}) != len(found):
        raise Refused(Reason.METADATA, f"{product}.json lists two releases of one counter")
    return tuple(sorted(found, key=lambda release: (release.era, release.release_counter)))


def permits_of(product: str, signed: Targets, made_by: datetime | None = None) -> tuple[PermitTerms, ...]:
    """The permits in the signed part of a product's role, by id, those that expired since included.

    Whether the role lists the release still is not looked at here: a permit stands in for a counter, never for that.

    Args:
        product: Whose role it is.
        signed: The role.
        made_by: A sure time: what was made after it, by more than clocks differ, is refused. None: there is none.

    Raises:
        Refused: `METADATA`: one of another path, with another hash, good for longer than `PERMIT_DAYS`, or not made
            yet.
    """
    found = []
    for path, target in sorted(signed.targets.items()):
        if not is_permit(target.custom):
            continue
        permit = decode(encode(target.custom), PermitTerms, limit=limits.METADATA_BYTES)
        content = encode(permit)
        if (
            path != permit_path(product, permit.permit)
            or target.hashes.get("sha256") != digest(content)
            or target.length != len(content)
        ):
            raise Refused(Reason.METADATA, f"{product}.json: {path!r:.120} is not the permit that it says it is")
        what = f"{product}.json: the permit {permit.permit}"
        _check_lifetime(permit.created_ms, permit.expires_ms, PERMIT_DAYS, what, made_by)
        found.append(permit)
    return tuple(found)


def technicians_of(signed: Targets, made_by: datetime | None = None) -> TechniciansTerms:
    """The list in the signed part of the director's role `technicians`. Whether it has expired is not looked at.

    Args:
        signed: The role.
        made_by: As in `permits_of`.

    Raises:
        Refused: `METADATA`: malformed, good for longer than `LIST_LIFETIME_DAYS`, not made yet, or one name or key
            stands twice.
    """
    what = f"{TECHNICIANS}.json"
    said = terms(signed, TechniciansTerms, what)
    if signed.targets or signed.delegations is not None:
        raise Refused(Reason.METADATA, f"{what} names files or delegates; it is a list and nothing else")
    _check_lifetime(said.created_ms, int(signed.expires.timestamp() * 1000), LIST_LIFETIME_DAYS, what, made_by)
    for field in ("name", "public_key"):
        if len({getattr(each, field) for each in said.technicians}) != len(said.technicians):
            raise Refused(Reason.METADATA, f"{what}: one {field.replace('_', ' ')} stands for two technicians")
    return said


def roles_with_metadata(kind: RepositoryKind, top: Targets) -> tuple[str, ...]:
    """The delegated roles whose metadata is published beside these top targets; the director's others sign objects."""
    return tuple(role for role in _roles(top) if kind == "image" or role == TECHNICIANS)


def _check_lifetime(created_ms: int, expires_ms: int, days: int, what: str, made_by: datetime | None) -> None:
    if made_by is not None and created_ms > (made_by + timedelta(days=AHEAD_DAYS)).timestamp() * 1000:
        raise Refused(
            Reason.METADATA,
            f"{what} says it was made at a time that is still to come, and would be good for as much longer",
            hint="have it proposed again, on a computer whose clock is right",
        )
    if expires_ms - created_ms > timedelta(days=days) // timedelta(milliseconds=1):
        raise Refused(Reason.METADATA, f"{what} would be good for more than {days} days")


def _release(product: str, path: str, signed: Targets) -> ListedRelease:
    target = signed.targets[path]
    listed = decode(encode(target.custom), ReleaseTerms, limit=limits.METADATA_BYTES)
    sha256 = target.hashes.get("sha256", "")
    if path != manifest_path(product, listed.version) or not is_digest(sha256):
        raise Refused(Reason.METADATA, f"{product}.json lists {path!r:.120}, which is no release of {product}")
    if target.length > limits.MANIFEST_BYTES:
        raise Refused(Reason.LIMIT, f"{path}: a manifest of {target.length} bytes")
    return ListedRelease(
        product=product,
        version=listed.version,
        release_counter=listed.release_counter,
        era=listed.era,
        manifest_sha256=sha256,
        length_bytes=target.length,
    )


def _sort(kind: RepositoryKind, files: Mapping[str, bytes]) -> tuple[dict[int, bytes], bytes | None, dict[str, bytes]]:
    roots: dict[int, bytes] = {}
    delegated: dict[str, bytes] = {}
    for name, data in files.items():
        found = ROOT_FILE.match(name)
        if found:
            roots[int(found.group(1))] = data
        elif name != "targets.json":
            if not name.endswith(".json") or (kind == "director" and name != f"{TECHNICIANS}.json"):
                raise Refused(Reason.METADATA, f"{name!r:.80} is no offline file of the {kind} repository")
            role = name.removesuffix(".json")
            delegated[role if kind == "director" else parse_product(role)] = data
    return roots, files.get("targets.json"), delegated


def _accept_roots(chain: dict[int, bytes], offered: Mapping[int, bytes], now: datetime) -> dict[int, bytes]:
    fresh = False
    for version, data in sorted(offered.items()):
        if version in chain:
            if chain[version] != data:
                raise Refused(Reason.ROLLBACK, f"{version}.root.json is published with other bytes")
            continue
        if version != len(chain) + 1:
            raise Refused(Reason.METADATA, f"{version}.root.json without {len(chain) + 1}.root.json before it")
        old = parse(chain[version - 1], Root, f"{version - 1}.root.json").signed if chain else None
        _check_root(parse(data, Root, f"{version}.root.json"), old, version)
        chain[version] = data
        fresh = True
    if not chain:
        raise Refused(Reason.METADATA, "nothing is published yet, and there is no 1.root.json")
    if fresh:
        # Only the newest must be fresh: machines walk expired ones on the way (TUF client workflow 5.3.10).
        newest = parse(chain[len(chain)], Root, "root").signed
        _check_expiry(newest, f"{len(chain)}.root.json", now)
    return chain


def _check_root(metadata: Metadata[Root], old: Root | None, version: int) -> None:
    what = f"{version}.root.json"
    root = metadata.signed
    if root.version != version:
        raise Refused(Reason.METADATA, f"{what} says that it is version {root.version}")
    if not root.consistent_snapshot:
        raise Refused(Reason.METADATA, f"{what}: consistent snapshots are required")
    for role in root.roles:
        if shared_public_keys(root.keys[keyid] for keyid in root.roles[role].keyids if keyid in root.keys):
            raise Refused(Reason.SIGNATURE, f"{what}: one public key stands for {role} under two key ids")
    for delegator in (old, root):
        if delegator is not None:
            _verify(delegator, "root", metadata, what)


def _accept_targets(
    kind: RepositoryKind, current: RepositorySet | None, data: bytes | None, root: Root, now: datetime
) -> tuple[bytes, Metadata[Targets]]:
    old = parse(current.targets, Targets, "targets.json") if current else None
    if data is None or (current is not None and data == current.targets):
        if current is None or old is None:
            raise Refused(Reason.METADATA, "nothing is published yet, and there is no targets.json")
        # A new root may have taken the keys away that signed it.
        _verify(root, "targets", old, "targets.json")
        return current.targets, old
    metadata = parse(data, Targets, "targets.json")
    _verify(root, "targets", metadata, "targets.json")
    _check_rise(metadata.signed, old.signed if old else None, "targets.json")
    _check_expiry(metadata.signed, "targets.json", now)
    if metadata.signed.targets:
        raise Refused(Reason.METADATA, f"the {kind} repository's targets.json names files; only products' roles do")
    return data, metadata


def _accept_delegated(
    role: str, old: bytes | None, data: bytes | None, top: Targets, *, judge: "_Judge", now: datetime
) -> bytes:
    what = f"{role}.json"
    if data is None or data == old:
        if old is None:
            raise Refused(Reason.METADATA, f"targets delegates to {role}, and there is no {what}")
        # New targets may have taken the keys away that signed it.
        _verify(top, role, parse(old, Targets, what), what)
        return old
    metadata = parse(data, Targets, what)
    _verify(top, role, metadata, what)
    before = parse(old, Targets, what).signed if old is not None else None
    _check_rise(metadata.signed, before, what)
    _check_expiry(metadata.signed, what, now)
    judge(metadata.signed, before)
    return data


_Judge = Callable[[Targets, Targets | None], None]
"""Looks at what a delegated role says, and at what it said before."""


def _judge_product(product: str, era: int, made_by: datetime | None) -> _Judge:
    what = f"{product}.json"

    def judge(signed: Targets, before: Targets | None) -> None:
        said = terms(signed, ProductTerms, what)
        if said.product != product:
            raise Refused(Reason.WRONG_PRODUCT, f"{what} is the role of {said.product}")
        if before is not None and said.floor < terms(before, ProductTerms, what).floor:
            raise Refused(Reason.ROLLBACK, f"{what} lowers the product's floor to {said.floor}")
        if signed.delegations is not None:
            raise Refused(Reason.METADATA, f"{what} delegates further; a product's role may not")
        listed = set()
        for release in releases_of(product, signed):
            if release.era > era:
                raise Refused(
                    Reason.METADATA, f"{what} lists a release of era {release.era}, which targets does not name"
                )
            listed.add((release.version, release.manifest_sha256))
        for permit in permits_of(product, signed, made_by):
            if (permit.release, permit.manifest) not in listed:
                raise Refused(
                    Reason.METADATA, f"{what} permits {permit.device} to go back to {permit.release}, and lists no such"
                )

    return judge


def _judge_list(made_by: datetime | None) -> _Judge:
    def judge(signed: Targets, before: Targets | None) -> None:
        technicians_of(signed, made_by)

    return judge


def _check_image(top: Targets, current: RepositorySet | None, made_by: datetime | None) -> dict[str, _Judge]:
    """Judges the image's top targets; its roles with metadata of their own, and who judges each."""
    eras = terms(top, ImageTerms, "targets.json").eras
    for role in _roles(top).values():
        product = parse_product(role.name)
        if sorted(role.paths or []) != sorted([f"{product}/*", f"{product}/*/*"]):
            raise Refused(Reason.METADATA, f"targets delegates {role.paths} to {product}, which is not only its own")
    _check_delegated_keys(top)
    if current is not None:
        old = parse(current.targets, Targets, "targets.json").signed
        lost = set(_roles(old)) - set(_roles(top))
        if lost:
            raise Refused(
                Reason.METADATA,
                f"targets no longer delegates to {sorted(lost)[0]}; a product stays, delist its releases",
            )
        for product, era in terms(old, ImageTerms, "targets.json").eras.items():
            if eras.get(product, 0) < era:
                raise Refused(Reason.ROLLBACK, f"targets takes the era of {product} back from {era}")
    return {product: _judge_product(product, eras.get(product, 0), made_by) for product in _roles(top)}


def _check_director(top: Targets, current: RepositorySet | None, made_by: datetime | None) -> dict[str, _Judge]:
    """As `_check_image`. Roles of managers: both, or neither as it was before there were field kits."""
    terms(top, DirectorTerms, "targets.json")
    managers = set(_roles(top)) & set(MANAGERS_ROLES)
    if set(_roles(top)) - managers != DIRECTOR_ROLES or len(managers) not in (0, len(MANAGERS_ROLES)):
        raise Refused(Reason.METADATA, f"the director's targets delegates to {sorted(_roles(top))}")
    if any(role.paths for role in _roles(top).values()):
        raise Refused(Reason.METADATA, "the director's roles sign objects or are lists, and have no paths")
    _check_delegated_keys(top)
    if not managers and current is not None and current.delegated:
        raise Refused(Reason.METADATA, f"targets no longer delegates to {', '.join(MANAGERS_ROLES)}; they stay")
    return {TECHNICIANS: _judge_list(made_by)} if managers else {}


def _check_delegated_keys(top: Targets) -> None:
    keys = top.delegations.keys if top.delegations is not None else {}
    for role in _roles(top).values():
        if shared_public_keys(keys[keyid] for keyid in role.keyids if keyid in keys):
            raise Refused(Reason.SIGNATURE, f"targets: one public key stands for {role.name} under two key ids")


def _roles(top: Targets) -> Mapping[str, DelegatedRole]:
    return (top.delegations.roles or {}) if top.delegations is not None else {}


def _verify(delegator: Root | Targets, role: str, metadata: Metadata[Root] | Metadata[Targets], what: str) -> None:
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError as error:
        raise Refused(Reason.SIGNATURE, f"{what}: {error}") from error
    except ValueError as error:
        raise Refused(Reason.METADATA, f"{what}: {error}") from error


def _check_rise(signed: Targets, old: Targets | None, what: str) -> None:
    if old is not None and signed.version <= old.version:
        raise Refused(Reason.ROLLBACK, f"{what} is version {signed.version}; version {old.version} is published")


def _check_expiry(signed: Root | Targets, what: str, now: datetime) -> None:
    if signed.is_expired(now):
        raise Refused(Reason.EXPIRED, f"{what} expired at {signed.expires:%Y-%m-%d %H:%M} UTC")
