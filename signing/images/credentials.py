"""What `docker login` and `podman login` left for a registry: name and password, or a token that stands for them.

They are held in records that print nothing of them, and are never part of a message.
"""

import base64
import binascii
import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from protocol import limits
from protocol.errors import SettingsError, StateError

HELPER_S: Final = 30.0
_TOKEN_NAME: Final = "<token>"  # noqa: S105  (what helpers say instead of a name when the secret is a token)
_HELPER: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_DOCKER_HUB: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True)
class Credentials:
    """Of one registry. `token` stands for name and password at its token service."""

    name: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    def basic(self) -> str:
        """The value of an `Authorization` header."""
        return "Basic " + base64.b64encode(f"{self.name}:{self.password}".encode()).decode()


class _Auth(msgspec.Struct, frozen=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _Config(msgspec.Struct, frozen=True, rename="camel"):
    auths: dict[str, _Auth] = {}
    creds_store: str = ""
    cred_helpers: dict[str, str] = {}


class DockerConfig:
    """Credentials from a Docker config file.

    Args:
        path: Of the file; it may be absent.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def usual(cls, environment: Mapping[str, str]) -> "DockerConfig":
        """The file that Docker itself would read."""
        folder = environment.get("DOCKER_CONFIG") or f"{environment.get('HOME', '')}/.docker"
        return cls(Path(folder) / "config.json")

    def of(self, host: str) -> Credentials | None:
        """Of a registry; None: nobody logged in there.

        Args:
            host: With the port, as it stands in references.

        Raises:
            SettingsError: The file cannot be read.
            StateError: The program that keeps the passwords fails.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SettingsError(f"{self._path}: {error.strerror}") from error
        try:
            config = msgspec.json.decode(data[: limits.MIB + 1], type=_Config)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            # Not the error's own words: they might quote the file.
            raise SettingsError(f"{self._path}: not a Docker config file") from error
        hosts = _DOCKER_HUB if host in _DOCKER_HUB else {host}
        for name, helper in config.cred_helpers.items():
            if _host(name) in hosts:
                return _from_helper(helper, name)
        for name, auth in config.auths.items():
            if _host(name) in hosts:
                found = _from_file(auth, self._path)
                return found or (_from_helper(config.creds_store, name) if config.creds_store else None)
        return _from_helper(config.creds_store, host) if config.creds_store else None


def _host(name: str) -> str:
    """`auths` names hosts, and old ones addresses: `https://index.docker.io/v1/`."""
    return re.sub(r"^https?://", "", name).partition("/")[0]


def _from_file(auth: _Auth, path: Path) -> Credentials | None:
    name, password = auth.username, auth.password
    if auth.auth:
        try:
            name, _, password = base64.b64decode(auth.auth, validate=True).decode().strip("\0").partition(":")
        except (binascii.Error, UnicodeError):
            # Without its cause: that would quote what it could not read.
            raise SettingsError(f"{path}: an `auth` in it is not readable", hint="log in again") from None
    if not (password or auth.identitytoken):
        return None
    return Credentials(name, password, auth.identitytoken)


def _from_helper(helper: str, server: str) -> Credentials | None:
    if not _HELPER.match(helper):
        raise SettingsError(f"{helper!r:.80} cannot name a credential helper")
    try:
        said = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=server.encode(),
            capture_output=True,
            timeout=HELPER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StateError(f"docker-credential-{helper} cannot be asked: {type(error).__name__}") from None
    if said.returncode:
        return None  # its way to say that it has nothing for this registry
    try:
        answer: Any = json.loads(said.stdout)
        name, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise StateError(f"docker-credential-{helper} gives no credentials that can be read") from None
    return Credentials(token=secret) if name == _TOKEN_NAME else Credentials(name, secret)
