"""A machine's trust without processes: both repositories of `Managers`, a real judge, clocks that a test sets.

field = Field(tmp_path, now)
verdict = field.contact()                      # an honest server's answer, judged
field.house.release("1.0.0", 1, b"...")        # the managers act; the server serves it from the next contact on
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, MetaFile, Snapshot, Timestamp

from device.clock import Moment
from device.trust.judge import Judge, Sources
from device.trust.port import KitVerdict, Verdict
from protocol.kits import KIT_FILE, KitBody, KitRelease
from protocol.messages import SyncAnswer
from protocol.objects import AssignmentBody, ClockBody, Payload, ReceiptsBody, ReportedBody, TransferPlan
from signing.durable import Disk
from signing.trust_store import DirectorStore, ImageStore, MemoryFloors
from tests.fakes.kits import sign_kit
from tests.fakes.managers import NAMES, Managers
from tests.fakes.repository_server import Shelf

DEVICE = "tractor-1"
PRODUCT = "pest-detector"
NONCE = "0" * 32


class Notes:
    """The state database's facts, in memory."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.writes = 0

    def get(self, key: str) -> bytes | None:
        return self.values.get(key)

    def put(self, key: str, value: bytes) -> None:
        self.values[key] = value
        self.writes += 1


@dataclass
class Field:
    """One machine, its server and their time."""

    folder: Path
    now: datetime
    house: Managers = field(init=False)
    disk: Disk = field(default_factory=Disk)

    def __post_init__(self) -> None:
        self.house = Managers(self.now)
        self.first_roots = {"image": self.house.image.roots[1], "director": self.house.director.roots[1]}
        self.built_ms = ms(self.now) - 30 * 86_400_000
        self.floors = MemoryFloors()
        self.notes = Notes()
        self.image_shelf = Shelf()
        self.director_shelf = Shelf()
        self.boot_id = "boot-1"
        self.boot_ms = 10_000
        self.wall_off = timedelta()

    def judge(self) -> Judge:
        """A fresh process, so to speak: all it knows is in folder, floors and notes."""
        return Judge(
            device=DEVICE,
            product=PRODUCT,
            image=ImageStore(
                self.folder / "image", self.first_roots["image"], self.floors, product=PRODUCT, disk=self.disk
            ),
            director=DirectorStore(self.folder / "director", self.first_roots["director"], self.floors, disk=self.disk),
            sources=Sources(image=self.image_shelf, director=self.director_shelf),
            facts=self.notes,
            here=self.here,
            built_ms=self.built_ms,
        )

    def here(self) -> Moment:
        return Moment(boot_id=self.boot_id, boot_ms=self.boot_ms, wall_ms=ms(self.now + self.wall_off))

    def passes(self, **time: float) -> None:
        """True time goes by, for the machine too."""
        step = timedelta(**time)
        self.now += step
        self.house.now = self.now
        self.boot_ms += int(step.total_seconds() * 1000)

    def reboots(self) -> None:
        self.boot_id += "+"
        self.boot_ms = 5_000

    def serve(self) -> None:
        """The server renders what the managers published last."""
        self.image_shelf.files = self.house.render("image", self.now)
        self.director_shelf.files = self.house.render("director", self.now)

    def hostile(self, kind: str, roles: Mapping[str, tuple[int, bytes]], *, version: int | None = None) -> None:
        """Whoever holds the server and its online keys serves these files, whatever they are."""
        keys = self.house.online[kind]
        current = self.house.image if kind == "image" else self.house.director
        files = {f"{number}.root.json": data for number, data in current.roots.items()}
        number = version or int(self.now.timestamp())
        expires = self.now + timedelta(days=7)
        snapshot = Snapshot(version=number, expires=expires, meta={})
        for role, (role_version, data) in roles.items():
            files[f"{role_version}.{role}.json"] = data
            snapshot.meta[f"{role}.json"] = MetaFile.from_data(role_version, data, ["sha256"])
        shot: Metadata[Any] = Metadata(snapshot)
        shot.sign(keys["snapshot"])
        files[f"{number}.snapshot.json"] = shot.to_bytes()
        meta = MetaFile.from_data(number, shot.to_bytes(), ["sha256"])
        stamp: Metadata[Any] = Metadata(Timestamp(version=number, expires=expires, snapshot_meta=meta))
        stamp.sign(keys["timestamp"])
        files["timestamp.json"] = stamp.to_bytes()
        (self.image_shelf if kind == "image" else self.director_shelf).files = files

    def answer(self, **changes: Any) -> SyncAnswer:
        """What the server says at this moment. `changes` replace fields."""
        said: dict[str, Any] = {
            "contact_id": "1" * 32,
            "sync_token": "2" * 32,
            "generation": "3" * 32,
            "time": self.time(),
            "image_timestamp": self.image_shelf.files["timestamp.json"].decode(),
            "director_timestamp": self.director_shelf.files["timestamp.json"].decode(),
        }
        return SyncAnswer(**(said | changes))

    def contact(self, *, serve: bool = True, asked_ago_s: float = 0.0, **changes: Any) -> Verdict:
        """One contact, judged. `serve=False`: the server's files stay as they are."""
        if serve:
            self.serve()
        self.image_shelf.asked.clear()
        self.director_shelf.asked.clear()
        return self.judge().judge(self.answer(**changes), NONCE, self.boot_ms / 1000 - asked_ago_s)

    def kit(
        self,
        name: str = "kit-spring",
        *,
        days: float = 180.0,
        by: Iterable[str] = NAMES[:2],
        created: datetime | None = None,
        files: Mapping[str, Mapping[str, bytes]] | None = None,
        above: str = "kits",
        **changes: Any,
    ) -> Path:
        """The metadata of a kit, as it lies on the machine's disk once it was copied from a stick: what the managers
        have published, rendered now.

        Args:
            name: The folder's, and the kit's unless `changes` says another.
            days: From its creation to its expiry.
            by: Managers who sign it.
            created: What it says of that.
            files: By repository, in place of what is published.
            above: Folder of the machine's that it is put in.
            changes: Replace fields of the body.
        """
        at = created or self.now
        folder = self.folder / above / name
        shutil.rmtree(folder, ignore_errors=True)
        for repository, data in {
            "image": self.house.render("image", self.now),
            "director": self.house.render("director", self.now),
            **(files or {}),
        }.items():
            (folder / repository).mkdir(parents=True)
            for file, content in data.items():
                (folder / repository / file).write_bytes(content)
        fields = {
            "kit": name,
            "product": PRODUCT,
            "created_ms": ms(at),
            "releases": (KitRelease(release="1.0.0", manifest=Payload(sha256="a" * 64, length_bytes=1), steps=()),),
        } | changes
        keys = [self.house.keys[manager] for manager in by]
        expires = (at + timedelta(days=days)).replace(microsecond=0)
        (folder / KIT_FILE).write_bytes(sign_kit(KitBody(**fields), keys, expires))
        return folder

    def bring(self, folder: Path) -> KitVerdict:
        """The machine judges a kit, with what it trusts so far, or with nothing but its first roots."""
        return self.judge().judge_kit(folder)

    def trusted(self) -> dict[str, Any]:
        """All that the machine's trust keeps, to compare."""
        kept = {
            str(path.relative_to(self.folder)): path.read_bytes()
            for name in ("image", "director")
            for path in sorted((self.folder / name).rglob("*"))
            if path.is_file()
        }
        return kept | dict(self.floors._values) | self.notes.values

    def time(self, at: datetime | None = None, **changes: Any) -> str:
        body = {"device": DEVICE, "nonce": NONCE, "time_ms": ms(at or self.now)} | changes
        return self.house.object(ClockBody(**body), at or self.now)

    def assignment(
        self,
        manifest: str = "a" * 64,
        *,
        length: int = 10,
        days: float = 1.0,
        version: int | None = None,
        **changes: Any,
    ) -> str:
        body = {
            "device": DEVICE,
            "product": PRODUCT,
            "rollout": "spring",
            "release": "1.0.0",
            "manifest": Payload(sha256=manifest, length_bytes=length),
            "plan": TransferPlan(steps=(), full_bytes=0),
        } | changes
        return self.house.object(AssignmentBody(**body), self.now, version=version, days=days)

    def reported(self, **changes: Any) -> str:
        body = {"device": DEVICE, "nonce": NONCE, "manifest": "a" * 64, "release": "1.0.0"} | changes
        return self.house.object(ReportedBody(**body), self.now)

    def receipts(self, **changes: Any) -> str:
        body = {"device": DEVICE, "epoch": "4" * 32, "generation": "3" * 32} | changes
        return self.house.object(ReceiptsBody(**body), self.now)


def ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def reasons(verdict: Verdict) -> Sequence[tuple[str, str]]:
    return [(complaint.what, complaint.reason.value) for complaint in verdict.complaints]
