"""Files of releases that are not what they were. The committed one is fetched again, by the hashes it has; the one
before it is a way back while it lasts, and whoever goes there fetches what is missing."""

from collections.abc import Callable, Container, Iterator, Mapping

from device.repair.fault import Fault, Place
from device.repair.opened import opened_state
from device.store import Store
from device.update.states import Held
from protocol import limits
from protocol.artifact import Artifact
from protocol.container import LAYER_MEDIA_TYPE
from protocol.errors import Refused, StateError
from protocol.ids import Digest
from protocol.release import ReleaseManifest, parse_manifest

ENGINE_HAS = "the engine's copy stands in for it; what the engine lacks is fetched"
FETCHED = "the machine tells the server that the release is not whole, and fetches what is missing"


def find(place: Place) -> list[Fault]:
    """The manifest, and each artifact that is here: by its length, and where there is time by its hash."""
    with opened_state(place) as state:
        record = state.record() if state is not None else None
    if record is None:
        return []
    committed, previous = record.committed, record.previous
    if committed is None:
        return []
    if not place.layout.store.is_dir():  # to look must not make it
        return [Fault(f"the store with release {committed.version} is gone", advice=FETCHED)]
    store = Store(place.layout.store, disk=place.disk, sweep=False)
    try:
        manifest = parse_manifest(store.read(committed.digest, limits.MANIFEST_BYTES))
    except StateError:
        return [Fault(f"the manifest of release {committed.version} is not in the store", advice=FETCHED)]
    except Refused as refused:
        return [Fault(refused.message, _dropping(store, committed.digest), FETCHED)]
    found = []
    named = _named(manifest)
    for artifact in manifest.artifacts():
        harm = _harm(place, store, artifact)
        if harm:
            what = f"release {committed.version}: {named[artifact.sha256]} in the store is {harm}"
            advice = ENGINE_HAS if artifact.media_type == LAYER_MEDIA_TYPE else FETCHED
            found.append(Fault(what, _dropping(store, artifact.sha256), advice))
    if previous is not None:
        found += _harmed_before(place, store, previous, {artifact.sha256 for artifact in manifest.artifacts()})
    return [*found, *_missing(store, manifest)]


def _harmed_before(place: Place, store: Store, previous: Held, seen: Container[Digest]) -> Iterator[Fault]:
    """What of the previous release alone is harmed. What is missing of it is not fetched for that."""
    what = f"release {previous.version}, the one before"
    if not store.has(previous.digest):
        return
    try:
        manifest = parse_manifest(store.read(previous.digest, limits.MANIFEST_BYTES))
    except (StateError, Refused) as error:
        yield Fault(f"{what}: {error}", _dropping(store, previous.digest))
        return
    named = _named(manifest)
    for artifact in manifest.artifacts():
        harm = "" if artifact.sha256 in seen else _harm(place, store, artifact)
        if harm:
            text = f"{what}: {named[artifact.sha256]} in the store is {harm}"
            yield Fault(text, _dropping(store, artifact.sha256))


def _named(manifest: ReleaseManifest) -> Mapping[Digest, str]:
    """What each artifact is, for people."""
    found: dict[Digest, str] = {}

    def name(artifact: Artifact, what: str) -> None:
        found.setdefault(artifact.sha256, f"{what} ({artifact.sha256[:12]})")

    for model in manifest.models:
        for variant in model.variants:
            name(variant.artifact, f"variant {variant.name} of model {model.name}")
    for config in manifest.configs:
        name(config.artifact, f"config {config.name}")
    for container in manifest.containers:
        for image in container.images:
            name(image.config, f"the image config of container {container.name}")
            for number, layer in enumerate(image.layers, 1):
                name(layer.artifact, f"layer {number} of container {container.name}")
    for artifact in manifest.artifacts():
        name(artifact, "a file")
    return found


def _harm(place: Place, store: Store, artifact: Artifact) -> str:
    if not store.has(artifact.sha256):
        return ""
    if not store.has(artifact.sha256, artifact.length_bytes):
        return "of another length"
    return "not what it was" if place.thorough and not store.is_whole(artifact.sha256) else ""


def _missing(store: Store, manifest: ReleaseManifest) -> Iterator[Fault]:
    """A machine has one variant of each model at least, and every config."""
    for model in manifest.models:
        if not any(store.has(variant.artifact.sha256) for variant in model.variants):
            yield Fault(f"release {manifest.version}: no variant of model {model.name} is in the store", advice=FETCHED)
    for config in manifest.configs:
        if not store.has(config.artifact.sha256):
            yield Fault(f"release {manifest.version}: config {config.name} is not in the store", advice=FETCHED)


def _dropping(store: Store, name: Digest) -> Callable[[], str]:
    def mend() -> str:
        store.discard(name)
        return "dropped"

    return mend
