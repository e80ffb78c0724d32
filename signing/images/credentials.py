"""What `docker login` and `podman login` left for a registry: name and password, or a token that stands for them.

They are held in records that print nothing of them, and are never part of a message.
"""

import base64
import binascii
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from protocol import limits
from protocol.errors import SettingsError, StateError

HELPER_S: Final = 30.0
_TOKEN_NAME: Final = "<token>"  # noqa: S105  (what helpers say instead of a name when the secret is a token)
_NOT_FOUND: Final = b"credentials not found"  # how a helper says that it has nothing for a registry
_HELPER: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_HUB: Final = "docker.io"
_HUB_HOSTS: Final = frozenset({_HUB, "index.docker.io", "registry-1.docker.io"})
_HUB_SERVER: Final = "https://index.docker.io/v1/"  # what it is called where Docker keeps passwords


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


class Logins:
    """Credentials from the files of Docker and Podman, which are of one form.

    Args:
        paths: The first that has some for a registry counts; each may be absent.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths

    @classmethod
    def usual(cls, environment: Mapping[str, str], user: int) -> "Logins":
        """The files that Podman and Docker themselves would read (containers-auth.json(5)).

        Args:
            environment: Of the process.
            user: Whose process it is.
        """
        if named := environment.get("REGISTRY_AUTH_FILE"):
            return cls(Path(named))
        if named := environment.get("DOCKER_CONFIG"):
            return cls(Path(named) / "config.json")
        home = environment.get("HOME", "")
        running = environment.get("XDG_RUNTIME_DIR")
        return cls(
            Path(f"{running}/containers/auth.json" if running else f"/run/containers/{user}/auth.json"),
            Path(environment.get("XDG_CONFIG_HOME") or f"{home}/.config") / "containers/auth.json",
            Path(home) / ".docker/config.json",
        )

    def of(self, host: str, name: str) -> Credentials | None:
        """Of a repository in a registry; None: nobody logged in there.

        Args:
            host: With the port, as it stands in references.
            name: Of the repository; Podman may hold a login for it, or for what stands before a slash in it.

        Raises:
            SettingsError: A file cannot be read.
            StateError: The program that keeps the passwords fails.
        """
        return next((found for path in self._paths if (found := _of_file(path, host, name)) is not None), None)


def _of_file(path: Path, host: str, name: str) -> Credentials | None:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    try:
        config = msgspec.json.decode(data[: limits.MIB + 1], type=_Config)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        # Not the error's own words: they might quote the file.
        raise SettingsError(f"{path}: no file as `docker login` writes it") from error
    registry = _scope(host)
    server = _HUB_SERVER if registry == _HUB else host
    for key, helper in config.cred_helpers.items():
        if _scope(key) == registry:
            return _from_helper(helper, server)
    for scope in _scopes(f"{registry}/{name}"):
        for key, auth in config.auths.items():
            if _scope(key) == scope:
                found = _from_file(auth, path)
                return found or (_from_helper(config.creds_store, key) if config.creds_store else None)
    return _from_helper(config.creds_store, server) if config.creds_store else None


def _scopes(repository: str) -> Iterator[str]:
    """What logins for a repository may be for: itself, each part of it before a slash, at last the registry."""
    while repository:
        yield repository
        repository = repository.rpartition("/")[0]


def _scope(key: str) -> str:
    """What an entry is for: a registry, or part of one. Old entries are addresses, whose paths say nothing."""
    bare = re.sub(r"^https?://", "", key)
    host, slash, path = bare.partition("/")
    host = _HUB if host.lower() in _HUB_HOSTS else host.lower()
    return host if bare != key else f"{host}{slash}{path}".rstrip("/")


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
    program = f"docker-credential-{helper}"
    hint = f"see what it says: echo {server} | {program} get"
    try:
        said = subprocess.run(
            [program, "get"], input=server.encode(), capture_output=True, timeout=HELPER_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StateError(f"{program} cannot be asked: {type(error).__name__}", hint=hint) from None
    if said.returncode:
        if _NOT_FOUND in said.stdout + said.stderr:
            return None
        raise StateError(f"{program} fails with {said.returncode}", hint=hint)
    try:
        answer: Any = json.loads(said.stdout)
        name, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise StateError(f"{program} gives no credentials that can be read", hint=hint) from None
    return Credentials(token=secret) if name == _TOKEN_NAME else Credentials(name, secret)
