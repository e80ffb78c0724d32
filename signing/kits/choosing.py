"""Which folder of a stick a build writes to: one that was begun for the very same, or a new one. Nothing is written.

A stick is anybody's, and so is a draft on it: it may say that it was made in ten years. So a file that lies there
counts for nothing but the signatures in it, and for these only when they are managers' and hold for exactly the bytes
that this build would have signed at that file's own moment. Everything else is put aside, except a kit that machines
still take: that one stays, and the new one gets a folder of its own.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from protocol import limits
from protocol.errors import Refused, StateError
from protocol.ids import digest
from protocol.kits import AHEAD_DAYS, KITS_FOLDER
from protocol.wire import encode
from signing.kits.kit_file import KitObject, drop_what_does_not_hold, kit_keys, read_kit
from signing.kits.preparing import Prepared
from signing.stick import StickFolder, stick_folder

NAME_SALTS: Final = 16


@dataclass(frozen=True)
class Chosen:
    """Where the kit goes.

    Args:
        stick: Where it is mounted.
        name: Of the kit's folder on it.
        kit: To be written; with the signatures that lie there for it.
        goes_on: Its file lies there already, as it is to be.
        word: What a person should know of what lies there; may be empty.
    """

    stick: Path
    name: str
    kit: KitObject
    goes_on: bool = False
    word: str = ""

    @property
    def path(self) -> Path:
        """Of the folder, for people."""
        return self.stick / KITS_FOLDER / self.name


def choose(out: Path, prepared: Prepared) -> Chosen:
    """Looks at what lies on a stick.

    Raises:
        StateError: Too many kits for the same lie there.
        OSError: The stick cannot be read, or its folder of kits is no folder.
    """
    try:
        with stick_folder(out) as root, root.below(KITS_FOLDER) as kits:
            return _choose(out, kits, prepared)
    except FileNotFoundError:
        name = _new_name(prepared, _mark(prepared, 0))
        return Chosen(out, name, prepared.kit(name))


def _choose(out: Path, kits: StickFolder, prepared: Prepared) -> Chosen:
    free: Chosen | None = None
    stays = ""
    lying = kits.names()
    for salt in range(NAME_SALTS):
        mark = _mark(prepared, salt)
        begun = [each for each in lying if each.startswith(_stem(prepared)) and each.endswith(f"-{mark}")]
        for name in begun[: limits.KITS_LOOKED_AT]:
            found = _found(kits, name)
            if found is None:
                free = free or Chosen(out, name, prepared.kit(name))
                continue
            kit, is_draft = found
            aside = f"what lies in {name} is put aside, with its signatures: it says something else, or is too old"
            aside = aside if kit.metadata.signatures else ""
            drop_what_does_not_hold(kit, prepared.director)
            if _is_carried(kit, name, prepared):
                word = f"it goes on with {name}, made at {_shown(kit)}, and keeps its signatures"
                return Chosen(out, name, kit, goes_on=True, word=word)
            threshold, _ = kit_keys(prepared.director)
            if not is_draft and len(kit.metadata.signatures) >= threshold and kit.expires > prepared.created:
                stays = f"{name}, made at {_shown(kit)}, stays as it is; remove it when it is not needed any more"
            else:
                free = free or Chosen(out, name, prepared.kit(name), word=aside)
        name = _new_name(prepared, mark)
        if name not in lying:
            free = free or Chosen(out, name, prepared.kit(name), word=stays)
        if not begun:
            break
    if free is None:
        raise StateError("many other kits for the same lie there", hint="remove those that are not needed any more")
    return free


def _is_carried(kit: KitObject, name: str, prepared: Prepared) -> bool:
    """Whether a manager signed exactly this, and it is in the first half of its life: after that it is made anew."""
    age = timedelta(milliseconds=prepared.created_ms - kit.body.created_ms)
    return (
        bool(kit.metadata.signatures)
        and -timedelta(days=AHEAD_DAYS) <= age < timedelta(days=prepared.request.days) / 2
        and kit.metadata.signed_bytes == prepared.kit(name, kit.body.created_ms).metadata.signed_bytes
    )


def _found(kits: StickFolder, name: str) -> tuple[KitObject, bool] | None:
    """What lies there of this name. A file that nobody can read as a kit is none."""
    try:
        with kits.below(name) as folder:
            return read_kit(folder)
    except (FileNotFoundError, Refused):
        return None


def _mark(prepared: Prepared, salt: int) -> str:
    request = prepared.request
    releases = [release.manifest.sha256 for release in prepared.plan.releases]
    what = [prepared.offer.product, releases, prepared.offer.machines, request.conditions, request.days, salt]
    return digest(encode(what))[:4]


def _new_name(prepared: Prepared, mark: str) -> str:
    return f"{_stem(prepared)}{prepared.created:%Y%m%d}-{mark}"


def _stem(prepared: Prepared) -> str:
    return f"kit-{prepared.offer.product[:44].rstrip('-._')}-"


def _shown(kit: KitObject) -> str:
    return f"{datetime.fromtimestamp(kit.body.created_ms // 1000, UTC):%Y-%m-%d %H:%M} UTC"
