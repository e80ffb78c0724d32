"""The image repository as a machine of one product sees it: is a release genuine, and does the newest role list it?"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tuf.api.metadata import Root, Targets

from protocol.errors import Reason, Refused
from protocol.ids import Digest
from protocol.kits import PermitTerms
from protocol.objects import ImageTerms, ProductTerms
from signing.durable import DISK, Disk
from signing.metadata import terms
from signing.repository import ListedRelease, permits_of, releases_of
from signing.trust.floors import Floors, KeyedFloor
from signing.trust.keys import check_keys
from signing.trust.source import Offered, Source
from signing.trust.store import Trusted, TrustStore


@dataclass(frozen=True)
class ImageView:
    """What the newest trusted image repository says of one product.

    Args:
        role_version: Of the product's role.
        era: Of the product, from the top targets.
        floor: Of the product's release counters.
        listed: By the manifest's digest.
        versions: By role.
        interlocks: Machine signals that must be off before anything of the product is activated.
        skippable: Those of all signals that a technician who forces may leave on.
        permits: For all machines, expired ones too.
    """

    role_version: int
    era: int
    floor: int
    listed: Mapping[Digest, ListedRelease]
    versions: Mapping[str, int]
    interlocks: tuple[str, ...] = ()
    skippable: tuple[str, ...] = ()
    permits: tuple[PermitTerms, ...] = ()


class ImageStore:
    """Trusts the image repository for one product. Arguments as `TrustStore`."""

    def __init__(self, folder: Path, first_root: bytes, floors: Floors, *, product: str, disk: Disk = DISK) -> None:
        self._product = product
        self._floors = floors
        self._store = TrustStore("image", folder, first_root, floors, inspect=self._inspect, disk=disk)

    def refresh(self, source: Source, now: datetime) -> ImageView:
        """As `TrustStore.refresh`, with the product's role.

        Raises:
            LinkError: As there.
            Refused: As there; `WRONG_PRODUCT` when the role is another product's; `ROLLBACK` when an era went down.
        """
        trusted = self._store.refresh(source, now, (self._product,))
        return self._view(trusted, trusted.delegated[self._product], rise=True)

    def peek(self, source: Source, now: datetime) -> ImageView:
        """As `TrustStore.peek`, and otherwise as `refresh`."""
        trusted = self._store.peek(source, (self._product,), now=now)
        return self._view(trusted, trusted.delegated[self._product], rise=False)

    def beside(self, source: Source) -> Offered:
        """As `TrustStore.beside`."""
        return self._store.beside(source, (self._product,))

    def stored(self) -> ImageView | None:
        """The newest stored view, expired or not; None before the first refresh.

        Raises:
            Refused: There is not even a valid root.
        """
        trusted = self._store.stored((self._product,))
        role = trusted.delegated.get(self._product)
        return self._view(trusted, role, rise=False) if role is not None else None

    def timestamp(self) -> bytes:
        """The stored timestamp, exact bytes; empty before the first refresh."""
        return self._store.timestamp()

    def recover_floors(self) -> None:
        """As `TrustStore.recover_floors`, with the product's era and counter."""
        trusted = self._store.recover_floors((self._product,))
        role = trusted.delegated.get(self._product)
        if role is not None:
            self._view(trusted, role, rise=True)

    def versions(self) -> Mapping[str, int]:
        """Versions of all that is stored, by role."""
        return self._store.stored((self._product,)).versions

    def _view(self, trusted: Trusted, role: Targets, *, rise: bool) -> ImageView:
        assert trusted.targets is not None, "a delegated role is only trusted through the top targets"
        era = _eras(trusted.targets).get(self._product, 0)
        keys = trusted.root.get_delegated_role("targets")
        era_floor = KeyedFloor(self._floors, f"image/era/{self._product}", keys.keyids, keys.threshold)
        if era < era_floor.value():
            raise Refused(Reason.ROLLBACK, f"image: era {era} of {self._product} after era {era_floor.value()}")
        said = terms(role, ProductTerms, f"{self._product}.json")
        keys = trusted.targets.get_delegated_role(self._product)
        # A new era restarts the counters, and their floor with them: the era is part of the floor's name.
        floor = KeyedFloor(self._floors, f"image/counter/{self._product}/{era}", keys.keyids, keys.threshold)
        if rise:
            era_floor.rise(era)
            floor.rise(said.floor)
        return ImageView(
            role_version=role.version,
            era=era,
            floor=max(said.floor, floor.value()),
            interlocks=said.interlocks,
            skippable=said.skippable,
            permits=permits_of(self._product, role),
            listed={release.manifest_sha256: release for release in releases_of(self._product, role)},
            versions=trusted.versions,
        )

    def _inspect(self, role: str, signed: Root | Targets) -> None:
        check_keys("image", signed)
        if isinstance(signed, Root):
            return
        if role == "targets":
            _eras(signed)
        elif role == self._product:
            said = terms(signed, ProductTerms, f"{role}.json")
            if said.product != role:
                raise Refused(Reason.WRONG_PRODUCT, f"image: {role}.json is the role of {said.product}")
            releases_of(role, signed)
            permits_of(role, signed)


def _eras(targets: Targets) -> Mapping[str, int]:
    return terms(targets, ImageTerms, "image/targets.json").eras
