"""An image in a registry, by the standard HTTP API (OCI distribution): manifests, blobs, redirects, tokens.

https, and plain http only on this computer or where the description says `registry+http:`. A redirect never leads from
https to http. Credentials go to the registry itself and to its token service (`registry_login`), never to where a
redirect leads.
"""

import re
import ssl
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final
from urllib.parse import urljoin

import msgspec

from protocol import limits
from protocol.container import Platform
from protocol.errors import LinkError, Reason, Refused, StateError
from protocol.ids import digest
from signing.images import bounds
from signing.images.content import Blob, Chunks, Found, Say
from signing.images.credentials import Logins
from signing.images.http import Answer, Origin, Url, ask, parse_url, read_whole
from signing.images.manifests import INDEX_TYPES, MANIFEST_TYPES, Descriptor, find_images
from signing.images.reference import RegistryReference
from signing.images.registry_login import Login
from signing.patience import patiently

REDIRECTS: Final = 5
RESUMES: Final = 20  # of one blob, over a link that breaks
_HUB: Final = frozenset({"docker.io", "index.docker.io"})
_HUB_HOST: Final = "registry-1.docker.io"
_LATER: Final = (408, 425, 429)
_ERROR_BYTES: Final = 16 * limits.KIB
_CODE: Final = re.compile(r"^[A-Z_]{1,40}\Z")
_ACCEPTED: Final = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))


class _Error(msgspec.Struct, frozen=True):
    code: str = ""


class _Errors(msgspec.Struct, frozen=True):
    errors: list[_Error] = []


class Registry:
    """The blobs of one repository of a registry. A `Content`.

    Args:
        reference: Of the image.
        plain: http is asked for.
        logins: Where credentials are.
        tls: As `http.ask`.
    """

    def __init__(
        self, reference: RegistryReference, *, plain: bool, logins: Logins, tls: ssl.SSLContext | None = None
    ) -> None:
        hub = reference.host in _HUB
        host = _HUB_HOST if hub else reference.host
        name = f"library/{reference.name}" if hub and "/" not in reference.name else reference.name
        local = Origin("http", host, 0).is_local
        scheme = "http" if plain or local else "https"
        self._origin = Origin(scheme, host, reference.port or (80 if scheme == "http" else 443))
        self._plain = plain
        self._path = f"/v2/{name}"
        self._tls = tls
        self._address = reference.address
        self._login = Login(self._origin, self._address, name, lambda: logins.of(self._address, name), tls)
        self._top = ("", b"")  # what was resolved: it need not be asked for twice

    def resolve(self, reference: RegistryReference) -> Descriptor:
        """What a reference means now.

        Raises:
            Refused: `HASH`: not the bytes of the digest. `LIMIT`.
            StateError: There is no such image, or it may not be read.
            LinkError: No answer.
        """
        asked = reference.digest or reference.tag

        def read() -> tuple[bytes, Mapping[str, str]]:
            with ExitStack() as held:
                answer = self._asked(held, f"{self._path}/manifests/{asked}", {"Accept": _ACCEPTED})
                return read_whole(answer.body, bounds.MANIFEST_BYTES, self._address), answer.headers

        data, headers = patiently(read)
        said = headers.get("docker-content-digest", "")
        kind = headers.get("content-type", "").partition(";")[0].strip()
        self._top = (digest(data), data)
        found = f"sha256:{self._top[0]}"
        for meant in (reference.digest, said if said.startswith("sha256:") else ""):
            if meant and meant != found:
                raise Refused(Reason.HASH, f"the registry answers with the image {found[:19]} for {meant[:19]!r}")
        return Descriptor(media_type=kind, digest=found, size=len(data))

    def has(self, blob: Blob) -> bool:
        """See `Content`: it is found out when it is read."""
        return True

    @contextmanager
    def open(self, blob: Blob, at: int = 0) -> Iterator[Chunks]:
        """See `Content`. A link that breaks is taken up again."""
        if blob.sha256 == self._top[0]:
            yield iter([self._top[1][at:]])
        else:
            yield self._chunks(blob, at)

    def _chunks(self, blob: Blob, at: int) -> Chunks:
        for left in range(RESUMES, -1, -1):
            before = at
            try:
                with self._blob(blob, at) as chunks:
                    for chunk in chunks:
                        at += len(chunk)
                        yield chunk
                    return
            except LinkError as error:
                if not error.retryable or not left or at == before:
                    raise

    @contextmanager
    def _blob(self, blob: Blob, at: int) -> Iterator[Chunks]:
        kind = "manifests" if blob.is_manifest else "blobs"
        wanted = {"Accept": _ACCEPTED} if blob.is_manifest else {}
        if at:
            wanted["Range"] = f"bytes={at}-"
        with self._get(f"{self._path}/{kind}/sha256:{blob.sha256}", wanted) as answer:
            yield answer.body if answer.status == 206 or not at else _behind(answer.body, at)

    @contextmanager
    def _get(self, path: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        with ExitStack() as held:
            yield patiently(lambda: self._asked(held, path, headers))

    def _asked(self, held: ExitStack, path: str, headers: Mapping[str, str]) -> Answer:
        url = Url(self._origin, path)
        logged_in = False
        redirects = 0
        while True:
            known = self._login.header if url.origin == self._origin else None
            sent = {**headers, "Accept-Encoding": "identity", **({"Authorization": known} if known else {})}
            opened = ExitStack()
            answer = opened.enter_context(ask(url, sent, tls=self._tls))
            if answer.status in (200, 206):
                held.enter_context(opened)
                return answer
            with opened:
                if answer.status == 401 and url.origin == self._origin and not logged_in:
                    self._login.answer(answer.headers.get("www-authenticate", ""))
                    logged_in = True
                elif answer.status in (301, 302, 303, 307, 308):
                    redirects += 1
                    if redirects > REDIRECTS:
                        raise Refused(Reason.LIMIT, f"{self._origin} redirects more than {REDIRECTS} times")
                    url = self._followed(url, answer.headers.get("location", ""))
                else:
                    raise self._error(answer, url)

    def _followed(self, url: Url, location: str) -> Url:
        target = parse_url(urljoin(f"{url.origin.scheme}://{url.origin}{url.target}", location))
        if target.origin.scheme == "http" and (
            url.origin.scheme == "https" or not (self._plain or target.origin.is_local)
        ):
            raise Refused(Reason.LIMIT, f"{url.origin} redirects to {target}, which is not https")
        return target

    def _error(self, answer: Answer, url: Url) -> LinkError | StateError:
        status = answer.status
        # Where a redirect leads need not explain itself to us; and what its address says may be a key.
        if url.origin != self._origin or not url.target.startswith(f"{self._path}/"):
            if status >= 500 or status in _LATER:
                return LinkError(f"{url}, where {self._address} keeps it, answers {status}", status=status)
            return StateError(f"{url}, where {self._address} keeps it, answers {status}", hint="try again")
        name, _, asked = url.target.removeprefix("/v2/").rpartition("/")
        name, _, kind = name.rpartition("/")
        said = f"{status}{''.join(f', {code}' for code in _codes(answer))}"
        if status == 429:
            hint = f"wait; many registries give more to who is logged in: `docker login {self._address}`"
            return LinkError(f"{self._address} was asked too often ({said})", status=status, hint=hint)
        if status >= 500 or status in _LATER:
            return LinkError(f"the registry {self._address} answers {said}", status=status, hint="try again later")
        if status in (401, 403):
            text = f"the registry {self._address} does not let us read {name} ({said}), or has no image of this name"
            return StateError(text, hint=self._login.hint)
        if status == 404 and kind == "blobs":
            return StateError(f"the registry {self._address} lacks {asked[:19]} of {name}", hint="push the image again")
        if status == 404:
            text = f"there is no such image in the registry {self._address}: {name}, {asked} ({said})"
            return StateError(text, hint="look for misspellings; a tag may have been removed")
        return StateError(f"{url}: the registry answers {said}")


def images_of_registry(
    registry: Registry, reference: RegistryReference, platforms: Collection[Platform], say: Say
) -> tuple[Found, ...]:
    """The images of a reference. Raises as `Registry.resolve` and `find_images`."""
    top = registry.resolve(reference)
    say(f"  it is {top.digest}")
    return find_images(registry, top, platforms, say)


def _codes(answer: Answer) -> list[str]:
    """The codes of a registry's error, by its standard; not its words, which may be anybody's."""
    try:
        data = read_whole(answer.body, _ERROR_BYTES, "the registry")
        errors = msgspec.json.decode(data, type=_Errors).errors
    except (LinkError, Refused, msgspec.MsgspecError, UnicodeError, RecursionError):
        return []
    return [error.code for error in errors[:3] if _CODE.match(error.code)]


def _behind(chunks: Chunks, at: int) -> Chunks:
    """What of a whole body lies behind an offset: the registry gives no parts."""
    for chunk in chunks:
        yield chunk[at:]
        at = max(0, at - len(chunk))
