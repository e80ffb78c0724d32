"""Alice, Bob and Carol with both repositories in memory: real keys, real signatures, no passphrases and no disk.

house = Managers(now)                       # pest-detector, 2 of 3, everything signed and accepted
house.release("1.0.0", 1, manifest_bytes)   # listed in house.image from now on
files = house.render("image", now)          # what a server would serve
text = house.object(ClockBody(...), now)    # a director's object, signed by the role of its kind
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, TargetFile, Targets

from protocol.kits import PermitTerms, Technician, TechniciansTerms, permit_path
from protocol.objects import (
    KITS,
    MANAGERS_ROLES,
    ROLES,
    TECHNICIANS,
    DirectorTerms,
    ImageTerms,
    ObjectBody,
    ProductTerms,
    ReleaseTerms,
)
from protocol.release import manifest_path
from protocol.wire import encode
from signing.metadata import expiry, parse, plain, terms, terms_field
from signing.objects import sign_object
from signing.online_keys import ONLINE_ROLES
from signing.repository import RepositoryKind, accept, render_online

NAMES = ("alice", "bob", "carol")


class Managers:
    """Three managers, the server's online keys, and what they have published.

    `image` and `director` are always what a server accepted last. Methods that make files return the bytes and, unless
    `publish` is False, put them through `accept` first. With `kits` False the director is one from before there were
    field kits.
    """

    def __init__(self, now: datetime, product: str = "pest-detector", threshold: int = 2, *, kits: bool = True) -> None:
        self.now = now
        self.kits = kits
        self.sealing_key: str | None = None  # of all top targets of the director that are made from now on
        self.product = product
        self.threshold = threshold
        self.kit_makers: tuple[str, ...] = NAMES  # who may sign kits, by the next top targets of the director
        self.interlocks: tuple[str, ...] = ()  # of every product role that is made from now on
        self.skippable: tuple[str, ...] = ()  # likewise
        self.keys: dict[str, Signer] = {name: CryptoSigner.generate_ed25519() for name in NAMES}
        self.online: dict[str, dict[str, Signer]] = {
            kind: {role: CryptoSigner.generate_ed25519() for role in roles} for kind, roles in ONLINE_ROLES.items()
        }
        self.image = accept(
            "image",
            None,
            {
                "1.root.json": self.sign(self.make_root("image", 1)),
                "targets.json": self.sign(self.make_image_targets(1)),
                f"{product}.json": self.sign(self.make_product(1)),
            },
            now,
        )
        self.director = accept(
            "director",
            None,
            {
                "1.root.json": self.sign(self.make_root("director", 1)),
                "targets.json": self.sign(self.make_director_targets(1)),
                **({f"{TECHNICIANS}.json": self.sign(self.make_technicians(1))} if kits else {}),
            },
            now,
        )

    # What is signed, before it is.

    def make_root(self, kind: RepositoryKind, version: int, managers: Iterable[str] = NAMES) -> Root:
        root = Root(version=version, expires=expiry(self.now, "root"), consistent_snapshot=True)
        for role in ("root", "targets"):
            for name in managers:
                root.add_key(self.keys[name].public_key, role)
            root.roles[role].threshold = self.threshold
        for role in ("snapshot", "timestamp"):
            root.add_key(self.online[kind][role].public_key, role)
        return root

    def make_image_targets(self, version: int, eras: dict[str, int] | None = None) -> Targets:
        keys = {self.keys[name].public_key.keyid: self.keys[name].public_key for name in NAMES}
        role = DelegatedRole(
            self.product,
            list(keys),
            self.threshold,
            terminating=True,
            paths=[f"{self.product}/*", f"{self.product}/*/*"],
        )
        return Targets(
            version=version,
            expires=expiry(self.now, "targets"),
            delegations=Delegations(keys, {self.product: role}),
            unrecognized_fields=terms_field(ImageTerms(kind="image", eras=eras or {})),
        )

    def make_director_targets(self, version: int) -> Targets:
        keys = {role: self.online["director"][role].public_key for role in ROLES.values()}
        roles = {role: DelegatedRole(role, [key.keyid], 1, terminating=True, paths=[]) for role, key in keys.items()}
        managers = [self.keys[name].public_key for name in NAMES] if self.kits else []
        for role in MANAGERS_ROLES if self.kits else ():
            names = self.kit_makers if role == KITS else NAMES
            keyids = [self.keys[name].public_key.keyid for name in names]
            roles[role] = DelegatedRole(role, keyids, min(self.threshold, len(keyids)), True, [])
        return Targets(
            version=version,
            expires=expiry(self.now, "targets"),
            delegations=Delegations({key.keyid: key for key in (*keys.values(), *managers)}, roles),
            unrecognized_fields=terms_field(DirectorTerms(kind="director", sealing_key=self.sealing_key)),
        )

    def make_technicians(self, version: int, technicians: Iterable[Technician] = (), days: float = 60.0) -> Targets:
        said = TechniciansTerms(kind="technicians", created_ms=_ms(self.now), technicians=tuple(technicians))
        expires = (self.now + timedelta(days=days)).replace(microsecond=0)
        return Targets(version=version, expires=expires, unrecognized_fields=terms_field(said))

    def make_product(
        self, version: int, releases: dict[str, TargetFile] | None = None, floor: int = 0, product: str | None = None
    ) -> Targets:
        return Targets(
            version=version,
            expires=expiry(self.now, "product"),
            targets=releases or {},
            unrecognized_fields=terms_field(
                ProductTerms(
                    kind="product",
                    product=product or self.product,
                    floor=floor,
                    interlocks=self.interlocks,
                    skippable=self.skippable,
                )
            ),
        )

    # Signing and publishing.

    def sign(self, signed: Root | Targets, by: Iterable[str] = NAMES[:2]) -> bytes:
        metadata: Metadata[Any] = Metadata(signed)
        for name in by:
            metadata.sign(self.keys[name], append=True)
        return metadata.to_bytes()

    def current_product(self) -> Targets:
        return parse(self.image.delegated[self.product], Targets, self.product).signed

    def release(
        self,
        version: str,
        counter: int,
        manifest: bytes,
        *,
        era: int = 0,
        floor: int | None = None,
        by: Iterable[str] = NAMES[:2],
        publish: bool = True,
    ) -> bytes:
        """Lists one release more in the product's role."""
        old = self.current_product()
        path = manifest_path(self.product, version)
        target = TargetFile.from_data(path, manifest, ["sha256"])
        custom = ReleaseTerms(kind="release", version=version, release_counter=counter, era=era)
        target.unrecognized_fields["custom"] = plain(custom)
        new_floor = terms(old, ProductTerms, "").floor if floor is None else floor
        return self._product_bytes({**old.targets, path: target}, new_floor, by, publish)

    def delist(
        self, version: str, *, floor: int | None = None, by: Iterable[str] = NAMES[:2], publish: bool = True
    ) -> bytes:
        """Takes a release from the list."""
        old = self.current_product()
        left = {path: target for path, target in old.targets.items() if path != manifest_path(self.product, version)}
        new_floor = terms(old, ProductTerms, "").floor if floor is None else floor
        return self._product_bytes(left, new_floor, by, publish)

    def permit(self, permit: PermitTerms, *, by: Iterable[str] = NAMES[:2], publish: bool = True) -> bytes:
        """One permit more in the product's role."""
        old = self.current_product()
        path = permit_path(self.product, permit.permit)
        target = TargetFile.from_data(path, encode(permit), ["sha256"])
        target.unrecognized_fields["custom"] = plain(permit)
        return self._product_bytes({**old.targets, path: target}, terms(old, ProductTerms, "").floor, by, publish)

    def technicians(
        self, *technicians: Technician, days: float = 60.0, by: Iterable[str] = NAMES[:2], publish: bool = True
    ) -> bytes:
        """A new list, the whole of it."""
        version = parse(self.director.delegated[TECHNICIANS], Targets, TECHNICIANS).signed.version + 1
        data = self.sign(self.make_technicians(version, technicians, days), by)
        if publish:
            self._accept("director", {f"{TECHNICIANS}.json": data})
        return data

    def rotate_online(self, kind: RepositoryKind, *roles: str) -> None:
        """New keys for online roles: a new root, and for the director's object roles new top targets."""
        for role in roles:
            self.online[kind][role] = CryptoSigner.generate_ed25519()
        self.delegate_online(kind, *roles)

    def delegate_online(self, kind: RepositoryKind, *roles: str) -> None:
        """Delegates these roles to the keys in `online`."""
        current = self.image if kind == "image" else self.director
        files: dict[str, bytes] = {}
        if {"snapshot", "timestamp"} & set(roles):
            number = max(current.roots) + 1
            files[f"{number}.root.json"] = self.sign(self.make_root(kind, number))
        if set(ROLES.values()) & set(roles):
            number = parse(current.targets, Targets, "targets").signed.version + 1
            files["targets.json"] = self.sign(self.make_director_targets(number))
        self._accept(kind, files)

    def resign(self) -> None:
        """The same content with new expiries: roots, top targets and the product's role."""
        self.delegate_online("director", "timestamp", "clock")
        self.delegate_online("image", "timestamp")
        self.era(0)
        product = self.current_product()
        self._product_bytes(dict(product.targets), terms(product, ProductTerms, "").floor, NAMES[:2], True)

    def era(self, era: int) -> None:
        """Starts a new era of the product."""
        number = parse(self.image.targets, Targets, "targets").signed.version + 1
        self._accept("image", {"targets.json": self.sign(self.make_image_targets(number, {self.product: era}))})

    def render(self, kind: RepositoryKind, now: datetime | None = None, version: int | None = None) -> dict[str, bytes]:
        """Every file that a server would serve, online roles signed at `now`; their version is its unix seconds."""
        at = now or self.now
        keys = self.online[kind]
        current = self.image if kind == "image" else self.director
        return render_online(current, keys["snapshot"], keys["timestamp"], version or int(at.timestamp()), at)

    def object(self, body: ObjectBody, now: datetime, *, version: int | None = None, days: float = 1.0) -> str:
        """A director's object, signed by the role of its kind."""
        kind = body.__struct_config__.tag
        signer = self.online["director"][ROLES[str(kind)]]
        return sign_object(body, signer, version or int(now.timestamp()), now + timedelta(days=days))

    def _product_bytes(self, releases: dict[str, TargetFile], floor: int, by: Iterable[str], publish: bool) -> bytes:
        data = self.sign(self.make_product(self.current_product().version + 1, releases, floor), by)
        if publish:
            self._accept("image", {f"{self.product}.json": data})
        return data

    def _accept(self, kind: RepositoryKind, files: dict[str, bytes]) -> None:
        if kind == "image":
            self.image = accept(kind, self.image, files, self.now)
        else:
            self.director = accept(kind, self.director, files, self.now)


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
