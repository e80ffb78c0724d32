"""What a server says a kit needs: `POST /api/v1/kits/plan`, asked and answered."""

from typing import Annotated

import msgspec

from protocol import limits
from protocol.ids import Count, DeviceId, Digest, Name, ProductName, Version
from protocol.objects import Payload, Step
from protocol.wire import Message


class KitQuestion(Message):
    """Which machines, and what they should be able to install.

    Args:
        product: Of all releases.
        releases: Listed versions; the newest when empty.
        machines: By name.
        groups: Their machines, as they are now. Neither machines nor groups: every machine of the product.
    """

    product: ProductName
    releases: Annotated[tuple[Version, ...], msgspec.Meta(max_length=limits.KIT_RELEASES)] = ()
    machines: Annotated[tuple[DeviceId, ...], msgspec.Meta(max_length=limits.KIT_MACHINES)] = ()
    groups: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] = ()


class OfferedStep(Message):
    """A way to an artifact, and how many of the machines would go it, as far as the server knows."""

    step: Step
    machines: Count = 0


class OfferedRelease(Message, omit_defaults=False):
    """A release of the answer.

    Args:
        waiting: Artifacts whose payload is still being made.
        unsuited: Machines that it does not fit, and why.
    """

    release: Version
    manifest: Payload
    steps: tuple[OfferedStep, ...]
    waiting: tuple[Digest, ...] = ()
    unsuited: dict[str, str] = {}


class KitOffer(Message, omit_defaults=False):
    """The answer.

    Args:
        machines: The named ones and those of the groups; None: every machine.
        known: How many machines the steps were made for.
        unseen: Machines whose hardware the server does not know: for them every variant is in.
    """

    product: ProductName
    machines: tuple[DeviceId, ...] | None
    releases: tuple[OfferedRelease, ...]
    known: Count = 0
    unseen: tuple[DeviceId, ...] = ()
