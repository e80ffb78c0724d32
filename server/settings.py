"""The server's settings: read once, in the composition root, into one frozen record."""

from pathlib import Path
from typing import Annotated, Final

import msgspec

from protocol.errors import SettingsError
from protocol.ids import Length, Name
from protocol.settings import Settings, parse_settings

SETTINGS_FILE: Final = "server.toml"
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
"""0 lets the system choose; `run.json` says which port it became."""


class DeviceListener(Settings):
    """Where machines come in. `names` stand in the certificate; the first is what enrolment tokens point at."""

    host: str = "0.0.0.0"  # noqa: S104  (machines come from outside; the handshake asks who they are)
    port: Port = 8443
    names: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("localhost",)
    url: str = ""  # what tokens say instead, where machines reach the server through another name or port


class OperatorListener(Settings):
    """Where people and their tools come in."""

    host: str = "127.0.0.1"
    port: Port = 8444
    names: tuple[str, ...] = ("localhost", "127.0.0.1")


class Storage(Settings):
    """Where things are kept: empty means in the state folder."""

    catalog: str = ""  # an SQLAlchemy URL: postgresql+psycopg://user@host/name
    blobs: str = ""  # a path, or s3://bucket/prefix, gs://..., az://...


class Contact(Settings):
    """How often machines call."""

    poll_s: Annotated[float, msgspec.Meta(gt=0, le=7 * 86400)] = 60.0
    busy_poll_s: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 5.0  # while something is being made ready for it


class Lifetimes(Settings):
    """How long what the server signs is good for."""

    ca_days: Annotated[int, msgspec.Meta(ge=30, le=36500)] = 3650  # of a new CA; at 80 % the server makes the next
    device_certificate_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 730
    token_hours: Annotated[float, msgspec.Meta(gt=0, le=24)] = 24.0
    assignment_days: Annotated[float, msgspec.Meta(gt=0, le=90)] = 14.0
    resign_after_s: Annotated[float, msgspec.Meta(gt=0, le=3 * 86400)] = 86400.0  # snapshot and timestamp, signed anew


class Retention(Settings):
    """How long what only people read is kept. Results stay for ever, and counts stay exact whatever goes."""

    events_days: Annotated[float, msgspec.Meta(ge=1)] = 1095.0  # the audit trail
    reports_days: Annotated[float, msgspec.Meta(ge=1)] = 365.0  # machines' statuses, alerts and loss records


class Transfers(Settings):
    """How payloads are made."""

    compression_level: Annotated[int, msgspec.Meta(ge=1, le=22)] = 19


class Patches(Settings):
    """Making patches: in a child process, so that a hungry or endless one harms nobody else."""

    processes: Annotated[int, msgspec.Meta(ge=0, le=256)] = 1  # cores one may take; 0: another server makes them
    nice: Annotated[int, msgspec.Meta(ge=0, le=19)] = 10  # machines are answered first
    memory_mib: Annotated[int, msgspec.Meta(ge=256)] = 1024  # of each of its processes; a windowed encoder needs less
    seconds: Annotated[float, msgspec.Meta(ge=1)] = 900.0  # then it codes more simply; after twice that it is killed
    bases: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 8  # for each artifact, those that most machines hold
    withdraw_after: Annotated[int, msgspec.Meta(ge=1)] = 2  # machines on which it failed: one may have bad memory
    keep_days: Annotated[float, msgspec.Meta(ge=1)] = 30.0  # after nobody wanted it any more


class DefaultBudget(Settings):
    """Bytes over the air that a rollout allows each machine when it does not say so itself. Left out: no limit."""

    release_bytes: Length | None = None
    day_bytes: dict[Name, Length] = {}  # by the kind of link


class OnlineKey(Settings):
    """An online key that is not a file here: any securesystemslib URI, with the file of its public half."""

    uri: str
    public: str  # JSON: a TUF key with its `keyid`, as in online-keys.json
    next_uri: str = ""  # the key that replaces it as soon as the managers' metadata names it
    next_public: str = ""


class ServerSettings(Settings):
    """All of `server.toml`."""

    devices: DeviceListener = DeviceListener()
    operators: OperatorListener = OperatorListener()
    storage: Storage = Storage()
    contact: Contact = Contact()
    lifetimes: Lifetimes = Lifetimes()
    retention: Retention = Retention()
    transfers: Transfers = Transfers()
    patches: Patches = Patches()
    budget: DefaultBudget = DefaultBudget()
    online_keys: dict[str, OnlineKey] = {}  # by `director.clock`, `image.snapshot`, ...


FIRST_SETTINGS: Final = """\
# Headland server. An unknown key is refused with its line; what is left out has the value shown here.

[devices]              # where machines come in (TLS with client certificates)
host = "{device_host}"
port = {device_port}
names = {names}        # stand in the certificate; enrolment tokens point at the first

[operators]            # where people and their tools come in (TLS, bearer tokens)
host = "{operator_host}"
port = {operator_port}

[contact]
poll_s = 60.0          # how often machines call
"""


def read_settings(state: Path) -> ServerSettings:
    """Reads `STATE/server.toml`.

    Raises:
        SettingsError: It is missing or wrong; an unknown key comes with its line and the nearest right name.
    """
    path = state / SETTINGS_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SettingsError(f"{path} is missing", hint="`headland-server init --state DIR` makes it") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: cannot be read as text: {error}", hint="save it as UTF-8") from error
    return parse_settings(text, ServerSettings, source=SETTINGS_FILE)
