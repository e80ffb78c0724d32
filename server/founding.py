"""`headland-server init`: makes what a server needs once, and only what is missing. Keys are never replaced."""

import contextlib
import ipaddress
import json
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from securesystemslib.signer import SecretsHandler

from protocol.errors import SettingsError, StateError
from protocol.settings import parse_settings
from server import authorities
from server.authorities import Authorities
from server.ca import ensure_server_certificate
from server.clock import NowMs, as_datetime
from server.keyring import Keyring, ensure_sealing_key, make_keys
from server.settings import FIRST_SETTINGS, SETTINGS_FILE, ServerSettings, read_settings
from server.storage.catalog import Catalog
from server.storage.fleet import CHANGES
from server.tokens import new_secret, secret_sha256
from signing import durable
from signing.locks import held

OPERATOR_TOKEN_LIFETIME = timedelta(days=365)
HOST_NAME: Final = re.compile(
    r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*\.?"
)


@dataclass(frozen=True)
class Layout:
    """Where things lie in the state folder."""

    state: Path

    @property
    def ca(self) -> Path:
        """The CA's certificate and key."""
        return self.state / "ca"

    @property
    def tls(self) -> Path:
        """The listeners' certificate and key."""
        return self.state / "tls"

    @property
    def keys(self) -> Path:
        """Online keys."""
        return self.state / "keys"

    @property
    def scratch(self) -> Path:
        """Spools; emptied at start."""
        return self.state / "scratch"

    @property
    def operator(self) -> Path:
        """What the manager's tool needs to find and trust this server."""
        return self.state / "operator.json"

    @property
    def online_keys(self) -> Path:
        """Public halves of the online keys."""
        return self.state / "online-keys.json"

    @property
    def run(self) -> Path:
        """Where a running server listens."""
        return self.state / "run.json"

    @property
    def lock(self) -> Path:
        """Held by the server that runs on this folder."""
        return self.state / "lock"

    @property
    def restored(self) -> Path:
        """Left by `headland-server restore` for the first start after it."""
        return self.state / "restored.json"

    @property
    def starts(self) -> Path:
        """How often it started: held against the catalog's own count to notice a restored backup."""
        return self.state / "starts"


@dataclass(frozen=True)
class FirstAnswers:
    """What a person may choose at `init`; later it stands in `server.toml`."""

    device_host: str
    device_port: int
    names: tuple[str, ...]
    operator_host: str
    operator_port: int


def found(state: Path, answers: FirstAnswers, now_ms: NowMs, secrets: SecretsHandler) -> Layout:
    """Makes the state folder complete; what is there stays as it is. Also beside a server that runs on it.

    Raises:
        SettingsError: `server.toml` is there and wrong.
        StateError: The catalog is of another version, and a server runs on it.
    """
    layout = Layout(state)
    durable.make_dir(layout.state)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold(layout))
            beside = False
        except StateError:
            beside = True
        _complete(layout, answers, now_ms, secrets, beside=beside)
    return layout


def _complete(layout: Layout, answers: FirstAnswers, now_ms: NowMs, secrets: SecretsHandler, *, beside: bool) -> None:
    """`beside` a server nothing is swept, for it may be writing that very moment, and the catalog stays as it is."""
    state = layout.state
    for folder in (layout.state, layout.ca, layout.tls, layout.keys, layout.scratch):
        durable.make_dir(folder)
        if not beside:
            durable.sweep(folder)
    settings_file = state / SETTINGS_FILE
    if not settings_file.exists():
        text = FIRST_SETTINGS.format(
            device_host=answers.device_host,
            device_port=answers.device_port,
            names=json.dumps(list(answers.names)),
            operator_host=answers.operator_host,
            operator_port=answers.operator_port,
        )
        # Read before it is kept: a wrong answer must not leave a file behind that later answers do not change.
        certificate_names(parse_settings(text, ServerSettings, source=SETTINGS_FILE))
        durable.write(settings_file, text.encode(), mode=0o644)
    settings = read_settings(state)
    now = as_datetime(now_ms())
    authorities.found(layout.ca, now, timedelta(days=settings.lifetimes.ca_days))
    held = authorities.load(layout.ca)
    ensure_server_certificate(held.current, layout.tls, certificate_names(settings), now, held.links_pem)
    make_keys(layout.keys, settings.online_keys)
    export_keys(layout, open_keys(layout, settings, secrets))
    catalog = Catalog(catalog_url(settings, state), migrate=not beside)
    try:
        prepare_catalog(catalog)
        _operator_file(layout, catalog, settings, held, now_ms())
    finally:
        catalog.close()


def open_layout(state: Path) -> Layout:
    """The layout of a folder that `init` made.

    Raises:
        StateError: It was not.
    """
    layout = Layout(state)
    if not (layout.ca / "ca.pem").exists() or not layout.operator.exists():
        raise StateError(f"{state} is not a server's state folder", hint="`headland-server init --state DIR` makes one")
    return layout


def hold(layout: Layout) -> AbstractContextManager[None]:
    """Holds the folder against a second server.

    Two servers on one catalog would each count starts, empty the other's spools and sign timestamps of their own. Ports
    do not keep them apart: with port 0, or after an edit of `server.toml`, both would listen.

    Raises:
        StateError: Another server runs on it.
    """
    return held(
        layout.lock,
        StateError(
            f"another server runs on {layout.state}", hint=f"`headland-server status --state {layout.state}` says where"
        ),
    )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def open_keys(layout: Layout, settings: ServerSettings, secrets: SecretsHandler) -> Keyring:
    """All online signers, and the keys that open sealed results: the first of these is made where there is none."""
    ensure_sealing_key(layout.keys)
    return Keyring(layout.keys, settings.online_keys, secrets)


def export_keys(layout: Layout, keyring: Keyring) -> None:
    """Brings `online-keys.json` up to date."""
    wanted = keyring.wanted()
    if not layout.online_keys.exists() or layout.online_keys.read_bytes() != wanted:
        durable.write(layout.online_keys, wanted, mode=0o644)


def catalog_url(settings: ServerSettings, state: Path) -> str:
    """The SQLAlchemy URL of the catalog."""
    return settings.storage.catalog or f"sqlite:///{(state / 'catalog.db').absolute()}"


def certificate_names(settings: ServerSettings) -> tuple[str, ...]:
    """All names under which the server is reached.

    Raises:
        SettingsError: One is neither a host name nor an address, so that no certificate could stand for it.
    """
    names = tuple(dict.fromkeys((*settings.devices.names, *settings.operators.names)))
    for name in names:
        if not _is_address(name) and not HOST_NAME.fullmatch(name):
            raise SettingsError(
                f"{SETTINGS_FILE}: {name!r} is neither a host name nor an IP address",
                hint="names are such as farm.example or 10.0.0.1, without scheme and port",
            )
    return names


def prepare_catalog(catalog: Catalog) -> None:
    """Draws the catalog's own secrets and begins its counts, once."""
    with catalog.write() as session:
        if session.facts.get("generation") is None:
            session.facts.put("generation", secret_sha256(new_secret())[:32])
        if session.facts.get("sync_secret") is None:
            session.facts.put("sync_secret", secret_sha256(new_secret()))
        if session.facts.get(CHANGES) is None:
            session.facts.put(CHANGES, 0)  # there, so that it can be locked


def write_operator_url(layout: Layout, url: str) -> None:
    """Brings the address in `operator.json` up to date: a port may be chosen at each start."""
    _update_operator(layout, "url", url)


def write_operator_ca(layout: Layout, trusted_pem: str) -> None:
    """Brings the CAs in `operator.json` up to date."""
    _update_operator(layout, "ca_pem", trusted_pem)


def _update_operator(layout: Layout, name: str, value: str) -> None:
    """Who took the secret away after the start keeps it away, and what is no such file waits for `init`."""
    content = _kept_operator(layout)
    if content and content.get(name) != value:
        durable.write(layout.operator, json.dumps({**content, name: value}, indent=2).encode() + b"\n")


def _kept_operator(layout: Layout) -> dict[str, object]:
    """What `operator.json` says; nothing, when it is away or was edited wrong."""
    try:
        content = json.loads(layout.operator.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _operator_file(layout: Layout, catalog: Catalog, settings: ServerSettings, held: Authorities, now_ms: int) -> None:
    kept = _kept_operator(layout)
    if kept:
        with catalog.read() as session:
            known = session.tokens.operator(secret_sha256(str(kept.get("token", ""))), now_ms) is not None
            newest = {token.name: token for token in session.tokens.operators()}.get("operator")
        # Past half its life it is made anew; the old one goes on until its end, so that no tool stands outside.
        half_ms = OPERATOR_TOKEN_LIFETIME // timedelta(milliseconds=2)
        if known and newest is not None and now_ms - newest.created_ms < half_ms:
            return
    token = new_secret()
    host = settings.operators.names[0] if settings.operators.names else settings.operators.host
    with catalog.write() as session:
        expires_ms = now_ms + OPERATOR_TOKEN_LIFETIME // timedelta(milliseconds=1)
        session.tokens.add_operator(secret_sha256(token), "operator", now_ms, expires_ms)
        session.events.add(now_ms, "operator-token-made", what="operator")
    # The catalog first: a token in the file that the catalog does not know is made anew by the next `init`.
    content = {"url": f"https://{host}:{settings.operators.port}", "ca_pem": held.trusted_pem, "token": token}
    durable.write(layout.operator, json.dumps(content, indent=2).encode() + b"\n")
