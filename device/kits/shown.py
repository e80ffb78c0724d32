"""What a machine says of the kits that it found, for people and programs."""

from enum import StrEnum, unique

from protocol.ids import Digest, Millis
from protocol.kits import KitId
from protocol.wire import Message


@unique
class KitState(StrEnum):
    """What became of a kit. Programs compare it; people read the sentence beside it."""

    READING = "reading"  # not judged yet
    UNREADABLE = "unreadable"  # the stick, or a file on it
    REFUSED = "refused"  # not signed by those who may, mixed, damaged, revoked
    EXPIRED = "expired"
    OTHER_PRODUCT = "other-product"
    OTHER_MACHINE = "other-machine"
    OTHER_HARDWARE = "other-hardware"
    DELISTED = "delisted"  # the managers list nothing of it any more
    OLDER = "older"  # than what was committed here
    REFUSED_HERE = "refused-here"  # on evidence, on this machine
    INSTALLED = "installed"  # its newest release for this machine runs
    DAMAGED = "damaged"  # files are missing or wrong on the sticks at hand
    OFFERED = "offered"  # waits for a person's word
    PASSED_OVER = "passed-over"  # another kit, or the server, brings something as good
    WAITING = "waiting"  # the update machine has a reason
    APPLYING = "applying"


class KitShown(Message, omit_defaults=False):
    """A kit.

    Args:
        kit: Its name.
        sticks: Where it lies; none: it is waited for.
        state: See `KitState`.
        sentence: For a person.
        hint: What to do next.
        release: What this machine would take of it, or empty.
        manifest: Of that release.
        expires_ms: 0 while it is not known.
        forced: A technician's request forces it.
        can_apply: A person's word would have it installed.
    """

    kit: KitId
    sticks: tuple[str, ...]
    state: KitState
    sentence: str
    hint: str = ""
    release: str = ""
    manifest: Digest | None = None
    expires_ms: Millis = 0
    forced: bool = False
    can_apply: bool = False


class KitsShown(Message, omit_defaults=False):
    """All of them, sticks that cannot be read, and what was said last of results on sticks."""

    kits: tuple[KitShown, ...] = ()
    troubles: tuple[str, ...] = ()
    results: str = ""
