"""The engine by way of the Docker SDK: Docker, and Podman's service, which speaks the same. Blocking; for any thread.

Runs in the engine child only (`engine_child`): the SDK costs memory. What the port says of each call holds here.

The adapter believes no answer that it can check: an image is the one whose config has the signed digest, asked for
after each load and again before each start; a layer is what hashes to its diff id.
"""

import contextlib
import hashlib
import json
import math
import re
import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import requests
import urllib3
from docker import APIClient
from docker.errors import APIError, DockerException, NotFound

from device.containers.engine import (
    NAME_LABEL,
    OWNER_LABEL,
    SPEC_LABEL,
    TAG,
    EngineAwayError,
    EngineError,
    EngineView,
    HeldImage,
    MissingLayersError,
    Seen,
    Wish,
)
from device.containers.engine_archive import Sending, find_config, take_layers
from device.containers.engine_life import LifeLine
from device.containers.engine_request import container_name, create_request
from device.containers.engine_shown import NOBODY, is_check_due, make_seen, seconds_of, state_of
from device.store import NoSpaceError
from protocol.container import Image
from protocol.errors import HeadlandError, Reason, Refused, StateError
from protocol.ids import Digest, is_digest

ANSWER_S: Final = 60.0
"""For a word of the engine: one on a slow card that is busy with a load takes its time."""
SILENCE_S: Final = 900.0
"""Of an engine that unpacks an archive, or puts one together: it says nothing while it does so."""
INTERFACE: Final = "1.44"
"""The newest version of the interface that is spoken; Docker 29 speaks none below."""
CONTAINERD: Final = Path("/var/lib/containerd")
LOG_LINES: Final = 2000  # and more where more bytes are asked for
SHORT_LINE_BYTES: Final = 32

_NO_FILES: Final = ("container not known", "layer not known")  # in Podman's words
_ID: Final = re.compile(r"\bsha256:[0-9a-f]{64}\b")
_WRONG_LAYER: Final = ("invalid diffid", "digest did not match", "wrong diff id")
_NOT_THE_RELEASES_FAULT: Final = (
    "no space left",
    "cannot allocate memory",
    "resource temporarily unavailable",
    "too many open files",
    "input/output error",
    "structure needs cleaning",
    "stale file handle",
    "message bus",
    "dbus",
    "bind source path does not exist",
    "signal: killed",
    "context canceled",
    "context deadline exceeded",
    "transport is closing",
    "is unavailable",
    "connection refused",
    "shutting down",
    "iptables",
    "netavark",
    "plugin type=",  # of a network
)
_THE_RELEASES_FAULT: Final = (
    "oci runtime",
    "runc",
    "crun",
    "starting container process caused",
    "executable file",
    "gathering device information",
    "unknown runtime",
    "unknown or invalid runtime",
    "runtime not found",
    "invalid runtime",
    "address already in use",
    "port is already allocated",
)
"""What an engine says of a container that cannot be started as it is wished for, whatever the status of its answer."""


class DockerEngine:
    """See the module.

    Args:
        path: The engine's socket.
        owner: Whose containers and images are ours.
        answer_s: Longest wait for a word of the engine.
        silence_s: Likewise, over an archive.
    """

    def __init__(self, path: Path, owner: str, *, answer_s: float = ANSWER_S, silence_s: float = SILENCE_S) -> None:
        self._path = path
        self._owner = owner
        self._answer_s = answer_s
        self._silence_s = silence_s
        self._line = LifeLine(path, answer_s)
        self._configs: dict[str, Digest] = {}  # by the id of an engine that names images by manifest; both by content
        self._layers: dict[str, tuple[Digest, ...]] = {}  # by image id: it names the content, so it never changes
        self._kinds: dict[str, _Kind] = {}  # by life: at most one

    # Looking

    def view(self) -> EngineView:
        """As `Engine.view`; all of it is of one life of the engine."""
        for _ in range(3):
            life = self._line.life()
            with self._asking("look") as (api, kind):
                view = EngineView(
                    life="podman" if kind.podman else life,  # its service may end when it is idle; containers go on
                    version=kind.version,
                    folder=kind.folder,
                    images=tuple(self._held(api, kind)),
                    containers=tuple(self._seen(api, kind)),
                )
            if self._line.life() == life:
                return view
        raise EngineAwayError("the engine ends again and again")

    def _held(self, api: APIClient, kind: "_Kind") -> Iterator[HeldImage]:
        for one in api.images():
            tags = [_plain(tag) for tag in one.get("RepoTags") or ()]
            if not any(tag.startswith(self._tag("")) for tag in tags):
                continue
            with contextlib.suppress(NotFound):  # somebody removed it meanwhile
                config = self._config_digest(api, kind, one["Id"])
                if config is not None and self._tag(config) in tags:
                    yield HeldImage(config, self._layers_of(api, one["Id"]))

    def _layers_of(self, api: APIClient, id: str) -> tuple[Digest, ...]:
        if id not in self._layers:
            self._layers[id] = _diff_ids(api.inspect_image(id))
        return self._layers[id]

    def _seen(self, api: APIClient, kind: "_Kind") -> Iterator[Seen]:
        for shown in self._containers(api, kind):
            with contextlib.suppress(NotFound):
                facts = shown
                if kind.podman and is_check_due(facts):
                    self._check_health(api, facts["Id"])
                    facts = api.inspect_container(facts["Id"])
                image = self._config_digest(api, kind, _prefixed(facts["Image"]), or_none=True)
                yield make_seen(facts, image or NOBODY)

    def _containers(self, api: APIClient, kind: "_Kind", **labels: str) -> Iterator[dict[str, Any]]:
        """What the engine shows of each of ours."""
        wanted = {OWNER_LABEL: self._owner, **labels}
        filters = {"label": [f"{name}={value}" for name, value in wanted.items()]}
        if not kind.podman:
            found = api.containers(all=True, filters=filters)
        else:
            # After a cut in a removal Podman has a container without files, and its list in Docker's words fails.
            response = self._libpod(api, "json", all="true", filters=json.dumps(filters))
            if not response.ok:
                raise APIError(f"Podman does not list containers: {response.text}", response)
            found = response.json()
        for one in found:
            try:
                yield api.inspect_container(one["Id"])
            except NotFound:
                pass
            except APIError as error:
                if not (kind.podman and any(sign in _words(error) for sign in _NO_FILES)):
                    raise
                self._discard(api, one["Id"])

    def _check_health(self, api: APIClient, id: str) -> None:
        """Podman leaves the beat of health checks to systemd, which is not everywhere: then it is ours."""
        with contextlib.suppress(requests.RequestException):
            self._libpod(api, f"{id}/healthcheck").close()

    def _libpod(self, api: APIClient, what: str, **arguments: str) -> requests.Response:
        """Podman's answer in its own words."""
        path = f"{api.base_url}/v4.0.0/libpod/containers/{what}"
        response: requests.Response = api.get(path, params=arguments, timeout=self._answer_s)
        return response

    # Images

    def load(self, image: Image, files: Mapping[Digest, Path]) -> None:
        """As `Engine.load`. What the engine has of the layers is not sent, as far as it bears that."""
        digest = image.config.sha256
        with self._asking("load an image", self._silence_s) as (api, kind):
            if (there := self._find(api, kind, digest)) is None:
                layers = [layer.artifact.sha256 for layer in image.layers]
                spared = self._known_prefix(api, layers) if kind.spares_layers else frozenset()
                if lacking := [name for name in layers if name not in files and name not in spared]:
                    raise MissingLayersError(tuple(dict.fromkeys(lacking)))
                before = {_prefixed(one["Id"]) for one in api.images(all=True)}
                made: frozenset[str] = frozenset()
                try:
                    made = self._send(api, image, files, spared)
                    there = self._find(api, kind, digest)
                    if there is None or _diff_ids(there) != tuple(layers):
                        raise Refused(
                            Reason.IMAGE, f"the engine made another image than {digest[:12]} of what it was given"
                        )
                except HeadlandError:
                    self._undo_load(api, digest, made - before)
                    raise
            if self._tag(digest) not in [_plain(tag) for tag in there.get("RepoTags") or ()]:
                name, _, tag = self._tag(digest).partition(":")
                api.tag(there["Id"], name, tag)

    def _known_prefix(self, api: APIClient, layers: Sequence[Digest]) -> frozenset[Digest]:
        """The lowest layers that some image of the engine shares: a layer is stored with all that is below it."""
        longest = 0
        for one in api.images():
            with contextlib.suppress(NotFound):
                there = self._layers_of(api, one["Id"])
                same = next((n for n, pair in enumerate(zip(layers, there, strict=False)) if pair[0] != pair[1]), None)
                longest = max(longest, min(len(layers), len(there)) if same is None else same)
        return frozenset(layers[:longest]) - frozenset(layers[longest:])

    def _send(
        self, api: APIClient, image: Image, files: Mapping[Digest, Path], spared: frozenset[Digest]
    ) -> frozenset[str]:
        """Returns the ids of what was made without a name, as the engine tells them."""
        try:
            return self._send_these(api, image, {name: path for name, path in files.items() if name not in spared})
        except EngineError:
            if not spared:
                raise
        if lacking := [layer.artifact.sha256 for layer in image.layers if layer.artifact.sha256 not in files]:
            raise MissingLayersError(tuple(dict.fromkeys(lacking)))
        return self._send_these(api, image, files)

    def _send_these(self, api: APIClient, image: Image, files: Mapping[Digest, Path]) -> frozenset[str]:
        sending = Sending(image, files, self._tag(image.config.sha256))
        failure: HeadlandError | None = None
        nameless: set[str] = set()
        try:
            for word in api.load_image(iter(sending)):
                nameless.update(_ID.findall(str(word.get("stream"))))
                if "error" in word:
                    failure = _obstacle("load an image", str(word["error"]))
        except APIError as error:
            failure = _translated("load an image", error)
        except requests.RequestException:
            if sending.failed is None:
                raise
            failure = sending.failed
        if failure is None:
            return frozenset(nameless)
        if any(sign in failure.message.lower() for sign in _WRONG_LAYER) and _is_whole(image, files):
            raise Refused(Reason.IMAGE, f"the layers are not those of the config: {failure.message}")
        raise failure

    def _undo_load(self, api: APIClient, digest: Digest, nameless: Collection[str]) -> None:
        """Takes away what a load made that should not be: what has our mark now, or was made without a name. A
        containerd image store gives an image its name before it unpacks it, and keeps that when it cannot."""
        for what in (self._tag(digest), *nameless):
            with contextlib.suppress(APIError):
                api.remove_image(what)

    def export(self, image: Digest, layers: Mapping[Digest, Path], lengths: Mapping[Digest, int]) -> None:
        """As `Engine.export`."""
        with self._asking("export an image", self._silence_s) as (api, kind):
            if (there := self._find(api, kind, image)) is None:
                raise StateError(f"the engine does not hold image {image[:12]}")
            if strange := layers.keys() - set(_diff_ids(there)):
                raise StateError(f"image {image[:12]} has no layer {min(strange)[:12]}")
            try:
                with contextlib.closing(api.get_image(there["Id"])) as pieces:
                    found = take_layers(pieces, layers, lengths)
            except tarfile.TarError as error:
                raise EngineAwayError(f"the engine ended over an export: {error}") from error
            if lacking := layers.keys() - found:
                raise StateError(f"the engine gives other bytes for layer {min(lacking)[:12]}")

    def drop_images(self, keep: Sequence[Digest]) -> None:
        """As `Engine.drop_images`. A mark on what a container still uses stays until that is gone."""
        kept = {self._tag(digest) for digest in keep}
        with self._asking("drop images", self._silence_s) as (api, _):
            for one in api.images():
                for tag in one.get("RepoTags") or ():
                    plain = _plain(tag)
                    if plain.startswith(self._tag("")) and plain not in kept:
                        self._drop(api, tag)

    def _drop(self, api: APIClient, tag: str) -> None:
        try:
            api.remove_image(tag)
        except NotFound:
            pass
        except APIError as error:
            if error.status_code != requests.codes.conflict:
                raise

    # Containers

    def start(self, wish: Wish) -> None:
        """As `Engine.start`."""
        life = self._line.life()
        with self._asking(f"start container {wish.name}") as (api, kind):
            if (image := self._find(api, kind, wish.image)) is None:
                raise EngineError(f"the engine does not hold image {wish.image[:12]}")
            for facts in self._containers(api, kind, **{NAME_LABEL: wish.name, SPEC_LABEL: wish.spec}):
                with contextlib.suppress(NotFound):
                    if state_of(facts) == "running" and _prefixed(facts["Image"]) == image["Id"]:
                        return
                    api.remove_container(facts["Id"], v=True, force=True)
            if wish.network == "bridge":
                api.inspect_network("bridge")  # without one, Docker gives neither network nor ports, and says nothing
            request = create_request(self._owner, wish, image["Id"], podman=kind.podman)
            try:
                self._make(api, request, wish)
            except APIError as error:
                # An engine that is about to end refuses for reasons that are not the release's.
                if _is_the_releases(error) and self._line.life() == life:
                    text = f"container {wish.name} cannot be started: {_words(error)}"
                    raise Refused(Reason.TRIAL_CONTAINER, text) from error
                raise

    def _make(self, api: APIClient, request: dict[str, Any], wish: Wish) -> None:
        """Makes and starts it; what cannot be started does not stay."""
        with contextlib.ExitStack() as undo:
            made = self._create(api, request, container_name(self._owner, wish))
            undo.callback(self._discard, api, made)
            facts = api.inspect_container(made)
            if _prefixed(facts["Image"]) != request["Image"]:
                raise Refused(Reason.IMAGE, f"the engine made container {wish.name} of another image")
            if wish.health_command and facts["Config"]["Healthcheck"]["Test"] != ["CMD", *wish.health_command]:
                raise EngineError(f"the engine misunderstood the health check of container {wish.name}")
            api.start(made)
            undo.pop_all()

    def _discard(self, api: APIClient, id: str) -> None:
        with contextlib.suppress(DockerException, requests.RequestException):
            api.remove_container(id, v=True, force=True)

    def _create(self, api: APIClient, request: dict[str, Any], name: str) -> str:
        try:
            return str(api.create_container_from_config(request, name)["Id"])
        except APIError as error:
            if error.status_code != requests.codes.conflict and "already in use by" not in _words(error):
                raise
        # Somebody has the name: what was left of ours is made way for, and what is somebody else's is not touched.
        try:
            facts = api.inspect_container(name)
        except NotFound:  # a Podman that was killed over it knows of half a container, and shows it to nobody
            self._discard(api, name)
        else:
            if (facts["Config"].get("Labels") or {}).get(OWNER_LABEL) != self._owner:
                raise EngineError(
                    f"a container that is not ours has the name {name}",
                    hint=f"rename or remove it: `docker rename {name} OTHER`",
                )
            self._discard(api, facts["Id"])
        return str(api.create_container_from_config(request, name)["Id"])

    def stop(self, id: str, limit_s: float) -> None:
        """As `Engine.stop`."""
        with self._asking("stop a container") as (api, _), contextlib.suppress(NotFound):
            if api.inspect_container(id)["State"].get("Paused"):
                api.unpause(id)  # by somebody's hand: what is frozen does not hear that it should end
            api.stop(id, timeout=math.ceil(limit_s))

    def remove(self, id: str) -> None:
        """As `Engine.remove`."""
        with self._asking("remove a container") as (api, _), contextlib.suppress(NotFound):
            api.remove_container(id, v=True)

    def log(self, id: str, since: str, limit_bytes: int) -> bytes:
        """As `Engine.log`."""
        with self._asking("tell a log") as (api, kind), contextlib.suppress(NotFound):
            # The first words are often written a moment before the engine calls the container started.
            started = api.inspect_container(id)["State"].get("StartedAt") or ""
            is_all = not since or seconds_of(since) <= seconds_of(started)
            # Podman's tail loses lines that were written in pieces; its logs are of 2 MiB at most.
            tail = "all" if kind.podman else max(LOG_LINES, limit_bytes // SHORT_LINE_BYTES)
            data: bytes = api.logs(id, tail=tail, **({} if is_all else {"since": seconds_of(since)}))
            return data[-limit_bytes:]
        return b""

    def close(self) -> None:
        """As `Engine.close`."""
        self._line.close()

    # How it is asked

    @contextlib.contextmanager
    def _asking(self, what: str, timeout_s: float | None = None) -> Iterator[tuple[APIClient, "_Kind"]]:
        """A client for one call, and which engine it speaks to."""
        try:
            kind = self._kind()
            with self._client(kind.interface) as api:
                api.timeout = timeout_s or self._answer_s
                yield api, kind
        except APIError as error:
            raise _translated(what, error) from error
        except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise EngineAwayError(f"the engine ended over the request to {what}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise EngineError(f"the engine's answer to the request to {what} makes no sense: {error!r}") from error

    def _kind(self) -> "_Kind":
        """Asked once in each life of the engine: Podman thinks for half a second about what it is."""
        life = self._line.life()
        if life not in self._kinds:
            with self._client(INTERFACE) as api:
                version = api.version(api_version=False)
            with self._client(_common_interface(version)) as api:
                self._kinds = {life: _Kind(api, version)}
        return self._kinds[life]

    def _client(self, interface: str) -> "contextlib.closing[APIClient]":
        return contextlib.closing(APIClient(f"unix://{self._path}", version=interface, timeout=self._answer_s))

    def _tag(self, digest: str) -> str:
        return TAG.format(owner=self._owner, image=digest)

    def _find(self, api: APIClient, kind: "_Kind", digest: Digest) -> dict[str, Any] | None:
        """What the engine knows of the image with this config; None when it has none."""
        try:
            facts: dict[str, Any] = api.inspect_image(self._tag(digest) if kind.by_manifest else f"sha256:{digest}")
        except NotFound:
            return None
        facts["Id"] = _prefixed(facts["Id"])
        return facts if self._config_digest(api, kind, facts["Id"]) == digest else None

    def _config_digest(self, api: APIClient, kind: "_Kind", id: str, *, or_none: bool = False) -> Digest | None:
        """Of an image of the engine. Docker's containerd image store names images by their manifest's digest."""
        name = _prefixed(id).removeprefix("sha256:")
        if not kind.by_manifest:
            return name if is_digest(name) else None
        if name not in self._configs:
            try:
                with contextlib.closing(api.get_image(f"sha256:{name}")) as pieces:
                    config = find_config(pieces, name)
            except (tarfile.TarError, NotFound):
                if or_none:
                    return None
                raise
            if config is None:
                return None
            self._configs[name] = config
        return self._configs[name]


class _Kind:
    """Which engine it is, and what follows from that."""

    def __init__(self, api: APIClient, version: dict[str, Any]) -> None:
        info = api.info()
        names = [str(one.get("Name", "")) for one in version.get("Components") or ()]
        self.podman = any("podman" in name.lower() for name in names)
        self.interface = str(api.api_version)
        self.version = f"{'podman' if self.podman else 'docker'} {version['Version']}"
        status = [value for pair in info.get("DriverStatus") or () for value in pair]
        self.by_manifest = any(str(value).startswith("io.containerd.snapshotter") for value in status)
        self.spares_layers = not self.podman and not self.by_manifest
        # An image store in containerd lies in containerd's own folder, which no interface tells.
        self.folder = CONTAINERD if self.by_manifest and CONTAINERD.is_dir() else Path(info["DockerRootDir"])


def _common_interface(version: dict[str, Any]) -> str:
    """The newest version of the interface that both sides know; where there is none, the engine's oldest."""

    def order(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("."))

    newest = min(str(version["ApiVersion"]), INTERFACE, key=order)
    return max(newest, str(version.get("MinAPIVersion") or newest), key=order)


def _diff_ids(facts: dict[str, Any]) -> tuple[Digest, ...]:
    return tuple(str(name).removeprefix("sha256:") for name in (facts.get("RootFS") or {}).get("Layers") or ())


def _plain(tag: str) -> str:
    return tag.removeprefix("localhost/")  # Podman's name for what came from nowhere


def _prefixed(id: str) -> str:
    return id if id.startswith("sha256:") else f"sha256:{id}"


def _is_whole(image: Image, files: Mapping[Digest, Path]) -> bool:
    """Whether the files are still what was hashed once: a layer that the disk has spoilt is no fault of the release."""
    for artifact in image.artifacts():
        if artifact.sha256 in files:
            with files[artifact.sha256].open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != artifact.sha256:
                    return False
    return True


def _is_the_releases(error: APIError) -> bool:
    text = _words(error).lower()
    if any(sign in text for sign in _NOT_THE_RELEASES_FAULT):
        return False
    refused: object = error.status_code == requests.codes.bad_request
    return bool(refused) or any(sign in text for sign in _THE_RELEASES_FAULT)


def _words(error: APIError) -> str:
    return str(error.explanation or error).strip()


def _translated(what: str, error: APIError) -> HeadlandError:
    return _obstacle(what, _words(error))


def _obstacle(what: str, text: str) -> HeadlandError:
    if "no space left" in text.lower() or "disk quota exceeded" in text.lower():
        return NoSpaceError("the engine's disk is full", hint="give the engine more room, or let it drop what is old")
    return EngineError(f"the engine could not {what}: {text}")
