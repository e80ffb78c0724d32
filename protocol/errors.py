"""The errors that every room speaks: what a person reads, what a program gets, and whether trying again helps.

Two trees, as they need opposite answers. `LinkError`: the link or the other side failed; try again when `retryable`.
`Refused`: the bytes are bad or hostile, or a rule forbids them; trying the same bytes again is never right. Beside
them stand `SettingsError` (a person wrote something that we do not understand) and `StateError` (the request does not
fit the state of things, and the message says which). Exit codes stand on the classes and are part of the contract.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum, unique
from typing import ClassVar, Final


class HeadlandError(Exception):
    """Root of all errors raised on purpose.

    Args:
        message: One sentence for a person: what failed, with the facts.
        hint: What to do next, or empty when there is nothing to do.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@contextmanager
def said_of(what: str) -> Iterator[None]:
    """Puts before the message of an error of ours what it is about: `container sprayer: ...`."""
    try:
        yield
    except HeadlandError as error:
        error.message = f"{what}: {error.message}"
        error.args = (error.message,)
        raise


class SettingsError(HeadlandError):
    """A settings file or a release description is wrong; the message names file, line and the nearest right name."""

    exit_code = 3


class LinkError(HeadlandError):
    """The link or the other side failed. The same request may succeed later when `retryable`."""

    exit_code = 5

    def __init__(self, message: str, *, retryable: bool = True, status: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable
        self.status = status


class StateError(HeadlandError):
    """What was asked for does not fit the present state: not found, exists already, not permitted now."""

    exit_code = 6


@unique
class Reason(StrEnum):
    """Why something was refused. Stable: stored, reported, shown, and compared by programs."""

    # Metadata
    SIGNATURE = "signature"  # unsigned, wrong key, or below the threshold
    EXPIRED = "expired"
    ROLLBACK = "rollback"  # an older version than one seen
    METADATA = "metadata"  # malformed, mixed, or over a limit
    TIME = "time"  # a time statement that is old, replayed or for another device
    # The install rule
    DELISTED = "delisted"
    NOT_LISTED = "not-listed"
    WRONG_DEVICE = "wrong-device"
    WRONG_PRODUCT = "wrong-product"
    WRONG_HARDWARE = "wrong-hardware"
    COUNTER_FLOOR = "counter-floor"
    PRODUCT_FLOOR = "product-floor"
    REFUSED_BEFORE = "refused-before"
    # Field kits
    NOT_DELEGATED = "not-delegated"  # the managers have not said yet whose kits a machine takes
    KIT = "kit"  # not named as its folder, or good for longer than a kit may be
    TECHNICIAN = "technician"  # not in the list, not for this machine, or without the right to force
    FORCE = "force"  # a request to force of another moment, machine or offer
    # Content
    HASH = "hash"
    LENGTH = "length"
    LIMIT = "limit"  # a bound of ours: window, ratio, count, depth
    BUDGET = "budget"  # more bytes over the air than were allowed: it waits, nothing is wrong with it
    MANIFEST = "manifest"
    MEDIA_TYPE = "media-type"
    EXTERNAL_DATA = "external-data"
    # CHECK
    MODEL_LOAD = "model-load"
    MODEL_CRASH = "model-crash"
    MODEL_SHAPE = "model-shape"
    GOLDEN = "golden"
    BOUNDS = "bounds"  # memory or latency over what the manifest allows
    IMAGE = "image"  # a config that does not fit its layers, or asks for what is not granted
    # TRIAL
    TRIAL_CRASH = "trial-crash"
    TRIAL_LATENCY = "trial-latency"
    TRIAL_ERRORS = "trial-errors"
    TRIAL_GOLDEN = "trial-golden"
    TRIAL_CONTAINER = "trial-container"  # it does not start, ended, is unhealthy, or sees another model
    TRIAL_UNFINISHED = "trial-unfinished"
    # Results
    BATCH = "batch"
    RECEIPT = "receipt"
    CONFLICT = "conflict"
    # People and machines at the door
    TOKEN = "token"  # noqa: S105  (a reason's name, no secret)
    CERTIFICATE = "certificate"
    REVOKED = "revoked"
    CLONE = "clone"


HINTS: Final[dict[Reason, str]] = {
    Reason.SIGNATURE: "check who signed: `headland release show` lists the signatures and the threshold",
    Reason.EXPIRED: "the role needs a new signature: `headland keys due` lists what expires",
    Reason.ROLLBACK: "the source is older than what was seen before; if the server was restored, push the files again",
    Reason.DELISTED: "build and sign a release with a higher counter",
    Reason.NOT_LISTED: "the managers have not signed this release for the product: `headland release list`",
    Reason.COUNTER_FLOOR: "build the release again with a higher counter",
    Reason.REFUSED_BEFORE: "this machine refused it on evidence; `headland-device status` says why",
    Reason.NOT_DELEGATED: "the release manager signs who may make kits: `headland keys kits`",
    Reason.BUDGET: "it goes on by itself on another link or day, or with a rollout of a larger `--budget`",
    Reason.TOKEN: "ask for a new token: `headland device token`",
    Reason.REVOKED: "this machine was revoked; enrol it anew with a fresh state folder",
}


class Refused(HeadlandError):  # noqa: N818  (a verdict, not a mishap: it reads `raise Refused(...)`)
    """Bad or hostile bytes, or a rule that forbids them: what runs stays untouched, the reason is kept and reported.

    Args:
        reason: The stable code.
        message: The facts for a person.
    """

    exit_code = 4

    def __init__(self, reason: Reason, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint or HINTS.get(reason, ""))
        self.reason = reason
