"""Images of the committed release that the engine lacks. The agent brings back what it can, and asks for the rest.

Looked at by hand only: at a start the engine may come up later than the agent, and inference waits for neither.
"""

from collections.abc import Collection

from device.containers.engine import EngineView
from device.repair.fault import Fault, Place
from device.repair.opened import opened_state
from device.repair.release_files import FETCHED
from device.store import Store
from protocol import limits
from protocol.container import Container, Image
from protocol.errors import Refused, StateError
from protocol.ids import Digest
from protocol.release import parse_manifest

LOADED = "the agent loads it again from the store"


def find(place: Place) -> list[Fault]:
    """Each container has an image for this machine in the engine."""
    if not place.thorough or place.engine is None or not place.layout.store.is_dir():
        return []
    with opened_state(place) as state:
        committed = state.record().committed if state is not None else None
    if committed is None:
        return []
    store = Store(place.layout.store, disk=place.disk, sweep=False)
    try:
        containers = parse_manifest(store.read(committed.digest, limits.MANIFEST_BYTES)).containers
    except (StateError, Refused):  # the check of the release's files says so
        return []
    if not containers:
        return []
    what = f"release {committed.version} has containers"
    try:
        view = place.engine()
    except StateError as error:
        return [Fault(f"{what}, and the engine does not tell what it holds: {error}", advice="is the engine running?")]
    held = {layer for image in view.images for layer in image.layers}
    return [
        fault
        for container in containers
        if (fault := _look_at(committed.version, container, view, held, store)) is not None
    ]


def _look_at(
    version: str, container: Container, view: EngineView, held: Collection[Digest], store: Store
) -> Fault | None:
    """One of its images is for this machine: nobody but the agent knows which."""
    ours = {image.image for image in view.images}
    if any(image.config.sha256 in ours for image in container.images):
        return None
    what = f"release {version}: no image of container {container.name} is in the engine"
    whole = any(_can_be_made(image, held, store) for image in container.images)
    return Fault(what, advice=LOADED if whole else FETCHED)


def _can_be_made(image: Image, held: Collection[Digest], store: Store) -> bool:
    layers = (layer.artifact for layer in image.layers)
    return store.has(image.config.sha256) and all(
        one.sha256 in held or store.has(one.sha256, one.length_bytes) for one in layers
    )
