"""How a registry lets us in: what its 401 asks for (Basic, or a token of its token service), answered for reading only.

Credentials go to the registry, or to the token service that it names: the same host, or one of the same parent domain
(`registry.example.org` and `auth.example.org`), over https; in the open only within this computer.
Any other token service is asked without them, as one asks for a public image.
"""

import re
import ssl
from collections.abc import Callable
from typing import Final
from urllib.parse import urlencode

import msgspec

from protocol import limits
from protocol.errors import LinkError, Reason, Refused, StateError
from signing.images.credentials import Credentials
from signing.images.http import Origin, Url, ask, parse_url, read_whole

CHALLENGE_BYTES: Final = 8 * limits.KIB
TOKEN_BYTES: Final = 256 * limits.KIB
CLIENT: Final = "headland"
_SCHEME: Final = re.compile(r"(?:^|,)\s*(Basic|Bearer)\s+", re.IGNORECASE)
_PARAMETER: Final = re.compile(r'([a-z_]+)\s*=\s*"([^"\\]*)"', re.IGNORECASE)
_TOKEN: Final = re.compile(r"^[\x21-\x7e]+\Z")


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


class Login:
    """What to show a registry.

    Args:
        registry: Whom all of it is for.
        address: Of the registry, as people write it.
        name: Of the repository that is to be read.
        credentials: Gives those of the registry; asked only when the registry wants some.
        tls: As `http.ask`.
    """

    def __init__(
        self,
        registry: Origin,
        address: str,
        name: str,
        credentials: Callable[[], Credentials | None],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._registry = registry
        self._address = address
        self._name = name
        self._credentials = credentials
        self._tls = tls
        self.header: str | None = None
        """The value of `Authorization`; for the registry only."""
        self.hint = f"log in: `docker login {address}` or `podman login {address}`"
        """What to do when the registry does not let us in."""

    def answer(self, challenge: str) -> None:
        """Answers a 401.

        Args:
            challenge: Its `WWW-Authenticate`.

        Raises:
            StateError: It wants what we do not have.
            Refused: `LIMIT`: its token service is nothing that is asked.
            LinkError: Its token service does not answer.
        """
        ways = _read(challenge)
        known = self._credentials()
        if known is not None:
            self.hint = f"log in under a name that may read it: `docker login {self._address}`"
        if "bearer" in ways:
            self.header = f"Bearer {self._token(ways['bearer'], known)}"
        elif "basic" in ways and known is not None and known.password:
            if self._registry.scheme != "https" and not self._registry.is_local:
                raise self._refused("wants a password over a connection that everybody can read")
            self.header = known.basic()
        else:
            raise self._refused(f"wants a login, and here is none for {self._name}")

    def _token(self, said: dict[str, str], known: Credentials | None) -> str:
        realm = parse_url(said.get("realm", ""))
        if realm.origin.scheme != "https" and not self._same_plain_host(realm.origin):
            raise Refused(Reason.LIMIT, f"{self._address} names a token service that is not https: {realm}")
        withheld = known is not None and not self._may_know(realm.origin)
        if withheld:
            known = None
        # The scope is ours, not the challenge's: nobody gets more than reading this image out of us.
        asked = {"service": said.get("service", ""), "scope": f"repository:{self._name}:pull"}
        headers: dict[str, str] = {}
        body = None
        if known is not None and known.token:
            form = {**asked, "grant_type": "refresh_token", "client_id": CLIENT, "refresh_token": known.token}
            body = urlencode(form).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        else:
            realm = Url(realm.origin, f"{realm.target}{'&' if '?' in realm.target else '?'}{urlencode(asked)}")
            if known is not None:
                headers["Authorization"] = known.basic()
        with ask(realm, headers, body=body, tls=self._tls) as answer:
            if answer.status >= 500 or answer.status == 429:
                raise LinkError(f"{realm}: the token service answers {answer.status}", status=answer.status)
            if answer.status != 200:
                text = f"is not satisfied: its token service, {realm.origin}, answers {answer.status}"
                if withheld:
                    self.hint = "take it from an engine or an archive: `docker pull`, then engine:NAME"
                    text += "; it was not told the password, as it is not of the registry's domain"
                raise self._refused(text)
            data = read_whole(answer.body, TOKEN_BYTES, str(realm))
        try:
            read = msgspec.json.decode(data, type=_Token)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise Refused(Reason.LIMIT, f"{realm}: the token service gives no token") from None
        token = read.token or read.access_token
        if not _TOKEN.match(token):
            raise Refused(Reason.LIMIT, f"{realm}: the token service gives no token")
        return token

    def _may_know(self, service: Origin) -> bool:
        """Whether a token service may see the credentials of the registry."""
        own = self._registry.host
        if service.scheme != "https":
            return service.host == own and service.is_local
        if service.host == own:
            return True
        parent = own.partition(".")[2]
        if "." not in parent or own.replace(".", "").isdigit():  # `org` is no parent, nor is half an address
            parent = own
        return service.host == parent or service.host.endswith(f".{parent}")

    def _same_plain_host(self, service: Origin) -> bool:
        return self._registry.scheme == "http" and (service.host == self._registry.host or service.is_local)

    def _refused(self, why: str) -> StateError:
        return StateError(f"the registry {self._address} {why}", hint=self.hint)


def _read(challenge: str) -> dict[str, dict[str, str]]:
    """The parameters of each scheme that a registry accepts, both in lower case."""
    found: dict[str, dict[str, str]] = {}
    text = challenge[:CHALLENGE_BYTES]
    starts = list(_SCHEME.finditer(text))
    ends = [*(start.start() for start in starts[1:]), len(text)][: len(starts)]
    for start, end in zip(starts, ends, strict=True):
        parameters = {name.lower(): value for name, value in _PARAMETER.findall(text[start.end() : end])}
        found.setdefault(start[1].lower(), parameters)
    return found
