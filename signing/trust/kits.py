"""A kit that the managers signed, and what is asked of it besides its signature."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from protocol.errors import Reason, Refused
from protocol.kits import AHEAD_DAYS, LIFETIME_DAYS, KitBody


@dataclass(frozen=True)
class SignedKit:
    """A kit whose signature held. Made by `DirectorView.verify_kit`.

    Args:
        body: What was signed.
        expires: Of the object.
        signers: Ids of the keys of the role `kits` whose signatures held.
    """

    body: KitBody
    expires: datetime
    signers: tuple[str, ...]

    @property
    def created(self) -> datetime:
        """When it was made, as it says."""
        return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=self.body.created_ms)

    def check(self, *, folder: str, product: str, device: str, now: datetime, is_sure: bool) -> None:
        """Whether it is for this machine and still good. Checked in this order: the folder's name, product, machine,
        lifetime, creation, expiry.

        Args:
            folder: Name of the folder that it lies in.
            product: That the machine follows.
            device: The machine.
            now: Sure time; where time is not sure, the latest that is known to have passed: that it was made after that
                is believed, so that it expires by its own creation at the earliest.
            is_sure: Whether it is sure time: only then something can be said to be made in time to come.

        Raises:
            Refused: `KIT` (name, lifetime or creation), `WRONG_PRODUCT`, `WRONG_DEVICE`, `EXPIRED`.
        """
        kit = self.body
        if kit.kit != folder:
            raise Refused(
                Reason.KIT,
                f"the kit in the folder {folder!r:.80} is signed as {kit.kit}",
                hint="give the folder back the name of its kit, or have the kit built again",
            )
        if kit.product != product:
            raise Refused(
                Reason.WRONG_PRODUCT,
                f"{kit.kit} is for machines of {kit.product}; this one follows {product}",
                hint=f"ask the release manager for a kit of {product}",
            )
        if kit.machines is not None and device not in kit.machines:
            raise Refused(
                Reason.WRONG_DEVICE,
                f"{kit.kit} is for {len(kit.machines)} named machines, and {device} is not among them",
                hint=f"ask the release manager for a kit that names {device}",
            )
        if not timedelta() < self.expires - self.created <= timedelta(days=LIFETIME_DAYS):
            raise Refused(
                Reason.KIT,
                f"{kit.kit} says it was made at {_shown(self.created)} and is good until {_shown(self.expires)}; "
                f"a kit is good for {LIFETIME_DAYS} days at most",
                hint="have it built again, on a computer whose clock is right",
            )
        if is_sure and self.created > now + timedelta(days=AHEAD_DAYS):
            raise Refused(
                Reason.KIT,
                f"{kit.kit} says it was made at {_shown(self.created)}; here it is {_shown(now)}, and that is sure",
                hint="have it built again, on a computer whose clock is right",
            )
        if max(now, self.created) >= self.expires:
            raise Refused(
                Reason.EXPIRED,
                f"{kit.kit} expired at {_shown(self.expires)}",
                hint="ask the release manager for a new kit",
            )


def _shown(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
