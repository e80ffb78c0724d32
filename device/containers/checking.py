"""CHECK of a release's containers, before its models are tried: nothing is run for it, and no engine is asked.

What is found here is evidence: it is so on every try, whatever state the engine is in.
"""

import asyncio

from device.containers.wishes import Places, check_host_mounts
from device.update.ports import Canary, ReleaseSet
from protocol import limits
from protocol.container import Image
from protocol.errors import Reason, Refused
from protocol.ids import digest
from protocol.image_config import check_image


class ContainerCanary:
    """Implements `device.update.ports.Canary`: containers first, for they take no time, then models.

    Args:
        models: Tries the models.
        places: What this machine mounts.
    """

    def __init__(self, models: Canary, places: Places) -> None:
        self._models = models
        self._places = places

    async def check(self, release: ReleaseSet) -> None:
        """Holds each image's config against the manifest, and what its container wants against what may be granted.

        Raises:
            Refused: `IMAGE`, `LIMIT`; `HASH` for a config that is missing or changed, which says nothing about the
                release; and as `Canary.check`.
        """
        if release.manifest.containers:
            await asyncio.to_thread(self._check_all, release)
        await self._models.check(release)

    def _check_all(self, release: ReleaseSet) -> None:
        for container in release.manifest.containers:
            image = release.images[container.name]
            try:
                check_image(_config(release, image), image, container.run)
            except Refused as refused:
                if refused.reason is Reason.HASH:
                    raise
                raise Refused(
                    refused.reason, f"container {container.name}: {refused.message}", hint=refused.hint
                ) from refused
        check_host_mounts(release.manifest.containers, self._places)


def _config(release: ReleaseSet, image: Image) -> bytes:
    name = image.config.sha256
    try:
        with release.files[name].open("rb") as file:
            data = file.read(limits.IMAGE_CONFIG_BYTES + 1)
    except (OSError, KeyError) as error:
        raise Refused(Reason.HASH, f"image config {name[:12]} is not in the store: {error}") from error
    if digest(data) != name:
        raise Refused(Reason.HASH, f"image config {name[:12]} in the store is not what it was")
    return data
