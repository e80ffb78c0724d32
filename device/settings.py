"""Everything that a person may set in `device.toml`, in one strict record. An unknown key is refused with its line."""

from pathlib import Path
from typing import Annotated, Final

import msgspec

from device.containers.settings import ContainerSettings
from device.desk.pairing import PageSettings
from device.inference.settings import InferenceSettings
from device.kits.settings import KitSettings
from device.outbox.room import LanePolicy, Policies, WhenFull
from device.transfer.fetch import TransferSettings
from device.update.world import UpdateSettings
from protocol import limits
from protocol.errors import StateError
from protocol.ids import Length, Name
from protocol.messages import UNMETERED
from protocol.objects import Budget
from protocol.settings import Settings, parse_settings

SETTINGS_BYTES: Final = limits.MIB
Seconds = Annotated[float, msgspec.Meta(gt=0, le=7 * 86400)]


class ServerSettings(Settings):
    """`[server]`: how often to ask.

    Args:
        url: Asked instead of the server that the machine enrolled with; empty keeps that one.
        poll_min_s: Contacts are never closer than this, whatever the server asks for.
        poll_max_s: Nor further apart.
        retry_first_s: Wait after the first contact that failed; it doubles.
        retry_longest_s: The longest wait after failures.
    """

    url: str = ""
    poll_min_s: Seconds = 5.0
    poll_max_s: Seconds = 3600.0
    retry_first_s: Seconds = 2.0
    retry_longest_s: Seconds = 120.0


class LaneSettings(Settings):
    """`[outbox.alarms]`, `[outbox.results]`: what a lane gives up, each row counted.

    Args:
        when_full: Which rows go when the outbox is full: `drop-oldest`; `drop-newest`; or `keep-one-in`, which of the
            oldest rows keeps one in `keep_one_in`, and drops the oldest once nothing else is left.
        keep_one_in: See there.
        ttl_s: Rows that are surely older are dropped; 0 keeps them.
    """

    when_full: WhenFull = "drop-oldest"
    keep_one_in: Annotated[int, msgspec.Meta(ge=2, le=1000)] = 10
    ttl_s: Annotated[float, msgspec.Meta(ge=0, le=10 * 366 * 86400)] = 0.0

    def policy(self) -> LanePolicy:
        """As the outbox takes it."""
        return LanePolicy(when_full=self.when_full, keep_one_in=self.keep_one_in, ttl_s=self.ttl_s)


class OutboxSettings(Settings):
    """`[outbox]`: results on their way.

    Args:
        budget_bytes: What `outbox.db` may take on the disk; receipted rows go first, then results, alarms last.
        alarms: Of that lane.
        results: Of that lane.
    """

    budget_bytes: Annotated[int, msgspec.Meta(ge=limits.MIB)] = 512 * limits.MIB
    alarms: LaneSettings = LaneSettings()
    results: LaneSettings = LaneSettings()

    def policies(self) -> Policies:
        """By lane."""
        return {"alarms": self.alarms.policy(), "results": self.results.policy()}


class StoreSettings(Settings):
    """`[store]`: releases on the disk.

    Args:
        budget_bytes: What they may take together; 0 leaves it to the disk.
        keep_free_bytes: Always left free on the disk for everything else.
    """

    budget_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    keep_free_bytes: Annotated[int, msgspec.Meta(ge=0)] = 64 * limits.MIB


class LinkSettings(Settings):
    """`[link]`: what the machine speaks to the server over.

    Args:
        kind: `ethernet`, `wifi`, `cellular`, `satellite` or a name of your own: budgets name it.
        rate_kib_s: What it is good for; 0 measures it.
    """

    kind: Name = UNMETERED
    rate_kib_s: Annotated[int, msgspec.Meta(ge=0)] = 0


class BudgetSettings(Settings):
    """`[budget]`: what updates may take over the air, beside what a rollout allows: the smaller one holds.

    Args:
        release_bytes: For one release; -1 does not limit, 0 lets nothing travel.
        day_bytes: A day, by kind of link; a kind that is not named has no limit.
    """

    release_bytes: Annotated[int, msgspec.Meta(ge=-1, le=1 << 53)] = -1
    day_bytes: dict[Name, Length] = {}

    def limits(self) -> Budget:
        """As they stand beside a signed budget."""
        return Budget(release_bytes=self.release_bytes if self.release_bytes >= 0 else None, day_bytes=self.day_bytes)


class MachineSettings(Settings):
    """`[machine]`: what the machine is.

    Args:
        hardware: Tags that releases ask for, such as `jetson-orin`.
        signals: A folder of machine signals: `driving` is off while the file `driving` there holds `0`.
    """

    hardware: tuple[Name, ...] = ()
    signals: str = ""


class DeviceSettings(Settings):
    """The whole file."""

    inference: InferenceSettings = InferenceSettings()
    server: ServerSettings = ServerSettings()
    outbox: OutboxSettings = OutboxSettings()
    store: StoreSettings = StoreSettings()
    transfer: TransferSettings = TransferSettings()
    link: LinkSettings = LinkSettings()
    budget: BudgetSettings = BudgetSettings()
    update: UpdateSettings = UpdateSettings()
    machine: MachineSettings = MachineSettings()
    kits: KitSettings = KitSettings()
    page: PageSettings = PageSettings()
    containers: ContainerSettings = ContainerSettings()


def load(path: Path) -> DeviceSettings:
    """Reads the settings; blocking.

    Raises:
        SettingsError: Unknown key, wrong value or no TOML: with the line and the nearest right name.
        StateError: There is no such file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(SETTINGS_BYTES)
    except FileNotFoundError as error:
        raise StateError(
            f"{path} is missing", hint="headland-device enroll writes one; or write it by hand, see device/README.md"
        ) from error
    return parse_settings(data.decode("utf-8", errors="replace"), DeviceSettings, source=str(path))
