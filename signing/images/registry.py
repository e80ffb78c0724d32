"""An image in a registry, by the standard HTTP API (OCI distribution): manifests, blobs, redirects, tokens.

https, and plain http only on this computer or where the description says `registry+http:`. A redirect never leads from
https to http. Credentials go to the registry itself and to its token service (`registry_login`), never to where a
redirect leads.
"""

import ssl
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final
from urllib.parse import urljoin

from protocol.container import Platform
from protocol.errors import LinkError, Reason, Refused, StateError
from protocol.ids import digest
from signing.images import bounds
from signing.images.content import Blob, Chunks, Found, Say
from signing.images.credentials import DockerConfig
from signing.images.http import Answer, Origin, Url, ask, parse_url, read_whole
from signing.images.manifests import INDEX_TYPES, MANIFEST_TYPES, Descriptor, find_images
from signing.images.reference import RegistryReference
from signing.images.registry_login import Login
from signing.patience import patiently

REDIRECTS: Final = 5
RESUMES: Final = 20  # of one blob, over a link that breaks
_HUB: Final = "docker.io"
_HUB_HOST: Final = "registry-1.docker.io"
_ACCEPTED: Final = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))


class Registry:
    """The blobs of one repository of a registry. A `Content`.

    Args:
        reference: Of the image.
        plain: http is asked for.
        docker: Where credentials are.
        tls: As `http.ask`.
    """

    def __init__(
        self, reference: RegistryReference, *, plain: bool, docker: DockerConfig, tls: ssl.SSLContext | None = None
    ) -> None:
        hub = reference.host == _HUB
        host = _HUB_HOST if hub else reference.host
        name = f"library/{reference.name}" if hub and "/" not in reference.name else reference.name
        local = Origin("http", host, 0).is_local
        scheme = "http" if plain or local else "https"
        self._origin = Origin(scheme, host, reference.port or (80 if scheme == "http" else 443))
        self._plain = plain
        self._path = f"/v2/{name}"
        self._tls = tls
        written = f"{reference.host}:{reference.port}" if reference.port else reference.host
        self._login = Login(self._origin, name, lambda: docker.of(written), tls)
        self._top = ("", b"")  # what was resolved: it need not be asked for twice

    def resolve(self, reference: RegistryReference) -> Descriptor:
        """What a reference means now.

        Raises:
            Refused: `HASH`: not the bytes of the digest. `LIMIT`.
            StateError: There is no such image, or it may not be read.
            LinkError: No answer.
        """
        asked = reference.digest or reference.tag
        with self._get(f"{self._path}/manifests/{asked}", {"Accept": _ACCEPTED}) as answer:
            data = read_whole(answer.body, bounds.MANIFEST_BYTES, str(self._origin))
            said = answer.headers.get("docker-content-digest", "")
            kind = answer.headers.get("content-type", "").partition(";")[0].strip()
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
                    raise _error(answer, url)

    def _followed(self, url: Url, location: str) -> Url:
        target = parse_url(urljoin(f"{url.origin.scheme}://{url.origin}{url.target}", location))
        if target.origin.scheme == "http" and (
            url.origin.scheme == "https" or not (self._plain or target.origin.is_local)
        ):
            raise Refused(Reason.LIMIT, f"{url.origin} redirects to {target}, which is not https")
        return target


def images_of_registry(
    registry: Registry, reference: RegistryReference, platforms: Collection[Platform], say: Say
) -> tuple[Found, ...]:
    """The images of a reference. Raises as `Registry.resolve` and `find_images`."""
    top = registry.resolve(reference)
    say(f"  it is {top.digest}")
    return find_images(registry, top, platforms, say)


def _behind(chunks: Chunks, at: int) -> Chunks:
    """What of a whole body lies behind an offset: the registry gives no parts."""
    for chunk in chunks:
        yield chunk[at:]
        at = max(0, at - len(chunk))


def _error(answer: Answer, url: Url) -> LinkError | StateError:
    status = answer.status
    if status >= 500 or status in (408, 425, 429):
        return LinkError(f"{url}: the registry answers {status}", status=status)
    if status in (401, 403):
        return StateError(
            f"{url}: the registry does not let us read it ({status})", hint=f"`docker login {url.origin.host}`"
        )
    if status == 404:
        return StateError(f"{url}: there is no such image in the registry")
    return StateError(f"{url}: the registry answers {status}")
