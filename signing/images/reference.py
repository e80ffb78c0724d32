"""How a release description names an image: `oci:FOLDER[:NAME]`, `archive:FILE`, `engine:NAME`,
`registry:HOST[:PORT]/NAME[:TAG|@sha256:DIGEST]` (`registry+http:` for one without TLS)."""

import re
from typing import Final, Literal, NamedTuple

from protocol.errors import SettingsError

Kind = Literal["oci", "archive", "engine", "registry", "registry+http"]
KINDS: Final[tuple[Kind, ...]] = ("oci", "archive", "engine", "registry", "registry+http")
EXAMPLE: Final = "oci:FOLDER[:NAME], archive:FILE, engine:NAME, registry:HOST/NAME:TAG or registry:HOST/NAME@sha256:..."

_REGISTRY: Final = re.compile(
    r"^(?P<host>[A-Za-z0-9.-]{1,253}|\[[0-9a-fA-F:]{2,39}\])(?::(?P<port>[0-9]{1,5}))?"
    r"/(?P<name>[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*){0,15})"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?\Z"
)


class Reference(NamedTuple):
    """Where an image is, taken apart as far as its kind says."""

    kind: Kind
    rest: str


class RegistryReference(NamedTuple):
    """An image in a registry. Of tag and digest, the digest counts. Hosts are in lower case, and without brackets."""

    host: str
    port: int | None
    name: str
    tag: str
    digest: str

    @property
    def address(self) -> str:
        """Host and port, as they stand in references and in logins."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


def parse_reference(text: str) -> Reference:
    """Reads the kind.

    Raises:
        SettingsError: There is no such kind, or nothing behind it that could be a name.
    """
    kind, colon, rest = text.partition(":")
    for known in KINDS:
        if kind == known and colon and rest and rest.isprintable():
            return Reference(known, rest)
    raise SettingsError(f"image {text!r:.200}: cannot be looked for", hint=f"write {EXAMPLE}")


def check_reference(text: str) -> None:
    """Whether something can be looked for.

    Raises:
        SettingsError: No.
    """
    reference = parse_reference(text)
    if reference.kind in ("registry", "registry+http"):
        parse_registry(reference.rest)


def parse_registry(text: str) -> RegistryReference:
    """Reads what stands behind `registry:`.

    Raises:
        SettingsError: Not so spelt.
    """
    found = _REGISTRY.match(text) if len(text) <= 1024 else None
    port = int(found["port"]) if found is not None and found["port"] else None
    if found is None or (port is not None and not 0 < port <= 65535):
        why = "; names are in lower case" if _REGISTRY.match(text.lower()) else ""
        raise SettingsError(f"registry:{text!r:.200}: is no image{why}", hint=f"write {EXAMPLE}")
    host = found["host"]
    if port is None and host.lower() != "localhost" and not {".", ":"} & set(host):
        hub = f"of Docker's registry it is registry:docker.io/{text}"
        raise SettingsError(f"registry:{text!r:.200}: {host!r} is no host: it has neither a dot nor a port", hint=hub)
    return RegistryReference(
        found["host"].strip("[]").lower(), port, found["name"], found["tag"] or "latest", found["digest"] or ""
    )
