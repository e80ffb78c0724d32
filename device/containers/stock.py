"""What of releases the engine holds: images brought into it, layers got out of it, and what is kept twice.

The engine's copy is as good as the store's, for each layer is hashed on its way out; the store's wins when it is there.
Nothing here decides what runs. What the engine holds is known by the last look at it; nothing of the store is deleted
by an old one. That the engine is away, full or broken says nothing about a release.
"""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from device.containers.engine import (
    Engine,
    EngineAwayError,
    EngineError,
    EngineView,
    HeldImage,
    MissingLayersError,
)
from device.containers.owner import Owner
from device.containers.settings import KeepLayers
from device.store import NoSpaceError, Store, free_bytes
from device.threads import to_its_end
from device.transfer.elsewhere import brought_part
from protocol.container import Image
from protocol.errors import Refused, StateError
from protocol.ids import Digest

LOG: Final = logging.getLogger("headland.containers")
LOOK_S: Final = 10.0  # a contact does not wait longer to tell what an engine holds
TAKES_PARTS: Final = "docker "  # of the version: an archive may leave out what this engine holds


class Stock:
    """Images of one machine. Belongs to one event loop; what says so may be called in any thread.

    Args:
        engine: Of the machine; it may be away.
        store: Holds configs, and layers as far as they are kept.
        owner: Says whether the engine may hold anything of ours.
        keep: How long layers stay in the store that the engine holds as well.
    """

    def __init__(self, engine: Engine, store: Store, owner: Owner, *, keep: KeepLayers = "while-there-is-room") -> None:
        self._engine = engine
        self._store = store
        self._owner = owner
        self._keep = keep
        self._view: EngineView | None = None
        self._held: frozenset[Digest] = frozenset()
        self._lengths: dict[Digest, int] = {}
        self._brought: set[Digest] = set()  # into the store, out of the engine, for a while
        self._needed: set[Digest] = set()  # for patches; a container that is started meanwhile takes none of them away
        self._underway: frozenset[Digest] = frozenset()
        self._doubted: set[Digest] = set()  # layers of which the engine gave other bytes
        self._unmeasured: set[Digest] = set()  # layers that were asked for and whose length no manifest here tells
        self._lost: dict[Digest, str] = {}
        self._room_bytes = 0
        self._turn = asyncio.Lock()  # one load or export at a time: each takes the disk

    # What is known; any thread

    def holds(self, layer: Digest) -> bool:
        """Whether the engine held the layer when it was last looked at."""
        return layer in self._held

    def underway(self) -> frozenset[Digest]:
        """What goes into the engine or comes out of it at this moment: a cleaning leaves it, whatever it is part of."""
        return self._underway

    def lost(self, images: Iterable[Image]) -> str:
        """Why one of these images can neither be found in the engine nor be made again; empty when all can."""
        return next((why for image in images if (why := self._lost.get(image.config.sha256))), "")

    def length_bytes(self, name: Digest) -> int | None:
        """As `device.transfer.elsewhere.Elsewhere`."""
        return self._lengths.get(name) if name in self._held else None

    def learn(self, images: Iterable[Image]) -> None:
        """Takes note of the lengths of layers, which an engine does not tell."""
        lengths = {layer.artifact.sha256: layer.artifact.length_bytes for image in images for layer in image.layers}
        self._lengths = {**self._lengths, **lengths}
        self._unmeasured.difference_update(lengths)

    def may_run(self) -> bool:
        """As `Owner.may_run`. Blocking."""
        return self._owner.may_run

    # Looking

    async def look(self) -> EngineView:
        """What the engine holds of ours, now.

        Raises:
            EngineAwayError: It does not answer.
            EngineError: It does not tell.
        """
        self.saw(await self._engine.view())
        assert self._view is not None
        return self._view

    def saw(self, view: EngineView) -> None:
        """Takes over what somebody else saw of the engine."""
        self._view = view
        held = frozenset(layer for image in view.images for layer in image.layers)
        self._held = held - self._doubted - self._unmeasured
        for image in view.images:
            self._lost.pop(image.image, None)

    async def told(self) -> tuple[Digest, ...]:
        """Layers that the engine holds, for the server's plans: by the last look, or by the first.

        An engine that was never given anything is not asked, and none is waited for.
        """
        if self._view is None and await asyncio.to_thread(lambda: self._owner.has_used):
            try:
                async with asyncio.timeout(LOOK_S):
                    await self.look()
            except (EngineAwayError, EngineError, TimeoutError) as error:
                LOG.info("the engine does not tell what it holds: %s", error)
        return tuple(sorted(self._held))

    # Room

    async def hold_room(self, images: Sequence[Image], bases: Collection[Digest]) -> None:
        """Sets aside what the engine will take, as far as that is on the store's disk; other disks are looked at.

        Loading images takes their new layers, and the largest archive once more, which is unpacked beside them. To give
        a layer, an engine puts its whole image together beside itself.

        Args:
            images: Brought one after the other, once the store has what the engine lacks.
            bases: Got before that, one after the other.

        Raises:
            NoSpaceError: One of the disks has not so much.
            EngineAwayError: The engine does not answer.
            EngineError: It does not tell.
        """
        view = await self.look()
        await to_its_end(self._hold_room, view, images, bases)

    def _hold_room(self, view: EngineView, images: Sequence[Image], bases: Collection[Digest]) -> None:
        here = {image.image for image in view.images}
        new: dict[Digest, int] = {}
        archive = got_out = 0
        gives = [self._put_together(view, name) for name in self._to_get_out(bases)]
        for image in images:
            if image.config.sha256 in here:
                continue
            lengths = {layer.artifact.sha256: layer.artifact.length_bytes for layer in image.layers}
            wanted = _wanted(view, image)
            going_out = [name for name in self._to_get_out(wanted) if self.holds(name)]
            gives += [self._put_together(view, name) for name in going_out]
            new |= {name: lengths[name] for name in wanted}
            archive = max(archive, image.config.length_bytes + sum(lengths[name] for name in wanted))
            got_out = max(got_out, sum(lengths[name] for name in going_out))
        engine_bytes = max(sum(new.values()) + archive, *gives, 0)
        apart = _free_apart(view.folder, self._store.folder)
        self._room_bytes = got_out + (engine_bytes if apart is None else 0)
        self._store.set_aside(self._room_bytes)
        if apart is not None and engine_bytes > apart:
            raise NoSpaceError(
                f"the engine needs {engine_bytes} bytes, {apart} are free in {view.folder}",
                hint="free space on the engine's disk",
            )

    def _put_together(self, view: EngineView, layer: Digest) -> int:
        source = _source(view, [layer])
        return sum(self._lengths.get(name, 0) for name in source.layers) if source is not None else 0

    async def give_room_back(self) -> None:
        """What `hold_room` set aside is free again."""
        self._room_bytes = 0
        await to_its_end(self._store.set_aside, 0)

    # Into the engine

    async def bring(self, image: Image) -> None:
        """On return the engine holds the image, with exactly its config digest. Does nothing when it does already.

        What the engine lost comes from the store, or out of other images of ours.

        Raises:
            EngineAwayError: The engine does not answer.
            EngineError: It does not take it.
            NoSpaceError: A disk is full; what runs is untouched.
            Refused: `IMAGE`: the engine made another image of it.
            StateError: Some of it is neither here nor there, which `lost` says from now on.
        """
        self.learn([image])
        if _is_in(await self.look(), image):
            return
        async with self._turn:
            view = await self.look()
            if _is_in(view, image):
                return
            await asyncio.to_thread(self._owner.uses)
            self._underway = frozenset(artifact.sha256 for artifact in image.artifacts())
            is_ours = not self._room_bytes  # nobody fetched it and holds room for it
            try:
                if is_ours:
                    await self._find_room(view, image)
                await self._load(image)
            except (EngineError, Refused):
                await to_its_end(self._look_at_files, image)
                raise
            except NoSpaceError as error:
                raise await asyncio.to_thread(self._sized, error, view, image) from error
            finally:
                self._underway = frozenset()
                if is_ours:
                    await self.give_room_back()
                await self._drop_brought(layer.artifact.sha256 for layer in image.layers)
            await self.look()

    async def _find_room(self, view: EngineView, image: Image) -> None:
        """Sets room aside for one image; what the engine holds of others goes from the store for it."""
        try:
            await to_its_end(self._hold_room, view, [image], ())
        except NoSpaceError as error:
            spare = [layer.artifact.sha256 for layer in image.layers]
            if await self.give_back(error.lacks_bytes, spare) < error.lacks_bytes:
                raise
            await to_its_end(self._hold_room, view, [image], ())

    def _sized(self, error: NoSpaceError, view: EngineView, image: Image) -> NoSpaceError:
        """Where the engine found our own disk full, by how much is not known: files take whole blocks, archives do not.
        So much as the image takes again, then, for others to give."""
        if error.lacks_bytes or error.over_bytes or _free_apart(view.folder, self._store.folder) is not None:
            return error
        lacks_bytes = sum(self._lengths[name] for name in _wanted(view, image))
        return NoSpaceError(error.message, hint=error.hint, lacks_bytes=max(lacks_bytes, 1))

    async def _load(self, image: Image) -> None:
        view = await self.look()
        wanted = await asyncio.to_thread(_wanted, view, image)
        for attempt in range(2):
            await self._get_out(self._to_get_out(wanted), image)
            await self.give_room_back()  # to whom it was held for
            try:
                await self._engine.load(image, await asyncio.to_thread(self._files, image))
            except MissingLayersError as error:
                if attempt:
                    raise EngineError(f"the engine wants layers of image {_short(image)} again and again") from error
                wanted = frozenset(error.layers)
            else:
                return

    async def _get_out(self, layers: Collection[Digest], image: Image) -> None:
        """Everything that is to be handed over lies in the store then."""
        here = await asyncio.to_thread(self._store.has, image.config.sha256)
        gone = [] if here else [image.config.sha256]
        gone += [layer for layer in layers if not self.holds(layer)]
        if gone:
            raise self._note_lost(image, f"{gone[0][:12]} is neither in the store nor in the engine")
        try:
            await self._export(layers)
        except (EngineAwayError, EngineError, NoSpaceError):
            raise
        except StateError as error:
            raise self._note_lost(image, error.message) from error

    def _look_at_files(self, image: Image) -> None:
        """An engine may have taken them for what a disk made of them: such a file goes, and is fetched again.

        Raises:
            StateError: One was not what it was.
        """
        for artifact in image.artifacts():
            if self._store.has(artifact.sha256) and not self._store.is_whole(artifact.sha256):
                self._store.discard(artifact.sha256)
                raise self._note_lost(image, f"{artifact.sha256[:12]} in the store is not what it was")

    def _note_lost(self, image: Image, why: str) -> StateError:
        self._lost[image.config.sha256] = f"image {_short(image)}: {why}"
        return StateError(self._lost[image.config.sha256])

    def _files(self, image: Image) -> Mapping[Digest, Path]:
        names = [artifact.sha256 for artifact in image.artifacts()]
        return {name: self._store.path(name) for name in names if self._store.has(name)}

    def _to_get_out(self, wanted: Iterable[Digest]) -> list[Digest]:
        return [name for name in wanted if not self._store.can_count_on(name)]

    # Out of the engine

    async def get(self, names: Collection[Digest]) -> None:
        """As `device.transfer.elsewhere.Elsewhere`."""
        self._needed.update(names)
        async with self._turn:
            lacking = await asyncio.to_thread(self._to_get_out, names)
            if any(self.holds(name) for name in lacking):
                await self.look()  # what somebody deleted by hand is no wrong answer of the engine
            if lacking := [name for name in lacking if self.holds(name)]:
                self._underway = frozenset(lacking)
                try:
                    await self._export(lacking)
                finally:
                    self._underway = frozenset()

    async def give_up(self, name: Digest) -> None:
        """As `device.transfer.elsewhere.Elsewhere`."""
        self._needed.discard(name)
        await self._drop_brought([name])

    async def give_up_others(self, bases: Collection[Digest]) -> None:
        """As `give_up`, for all but these: a fetch that is broken off for another one gives nothing up itself."""
        others = self._needed.difference(bases)
        self._needed -= others
        await self._drop_brought(others)

    async def _export(self, layers: Collection[Digest]) -> None:
        """Puts layers into the store: of one image at once, for an engine puts it together as a whole each time.

        Raises:
            StateError: The engine gives something else, or one of them is gone.
        """
        assert self._view is not None
        if unknown := [layer for layer in layers if layer not in self._lengths]:
            # Of a release whose manifest is lost. Told of again, the next plan would need it again.
            self._unmeasured.update(unknown)
            self._held = self._held.difference(unknown)
            raise StateError(f"nobody knows how long layer {unknown[0][:12]} is that the engine holds")
        if gone := [layer for layer in layers if _source(self._view, [layer]) is None]:
            raise StateError(f"layer {gone[0][:12]} is not in the engine any more")
        room_bytes = self._room_bytes
        await to_its_end(self._store.set_aside, 0)  # the engine takes of it for this
        left = set(layers)
        while left and (source := _source(self._view, left)) is not None:
            some = left.intersection(source.layers)
            await self._export_of(source.image, {layer: brought_part(self._store, layer) for layer in some})
            left -= some
        if room_bytes:
            await to_its_end(self._store.set_aside, room_bytes)

    async def _export_of(self, image: Digest, parts: Mapping[Digest, Path]) -> None:
        lengths = {layer: self._lengths[layer] for layer in parts}
        LOG.info("%d layers are got out of image %s", len(parts), image[:12])
        failure = ""
        try:
            await self._engine.export(image, parts, lengths)
        except (EngineAwayError, EngineError, NoSpaceError):
            await to_its_end(self._store.disk.unlink_all, parts.values())
            raise
        except StateError as error:  # of one of them; the others may have come
            failure = error.message
        for layer, part in parts.items():
            try:
                await to_its_end(self._store.adopt, part, layer, lengths[layer])
                self._brought.add(layer)
            except (Refused, FileNotFoundError) as error:
                failure = failure or str(error)
                self._doubted.add(layer)
                self._held -= {layer}
        if failure:
            raise StateError(f"image {image[:12]} does not come out of the engine as it should: {failure}")

    async def _drop_brought(self, names: Iterable[Digest]) -> None:
        going = self._brought.intersection(names) - self._needed
        self._brought -= going
        if self._keep != "always":
            await to_its_end(self._discard, [name for name in going if self.holds(name)])

    def _discard(self, names: Iterable[Digest]) -> None:
        for name in names:
            self._store.discard(name)

    # What goes

    async def redundant(self) -> frozenset[Digest]:
        """Layers of which the store's copy is not to be kept, by a look at this moment."""
        if self._keep != "never" or not await asyncio.to_thread(lambda: self._owner.has_used):
            return frozenset()
        try:
            await self.look()
        except (EngineAwayError, EngineError) as error:
            LOG.info("all layers stay in the store while the engine does not tell what it holds: %s", error)
            return frozenset()
        return self._held

    async def give_back(self, need_bytes: int, spare: Collection[Digest]) -> int:
        """Makes room in the store: layers go that the engine holds, the largest first.

        Args:
            need_bytes: So many, if there are.
            spare: Those that stay all the same, beside those that a patch is being applied to.

        Returns:
            Bytes given back.
        """
        if self._keep == "always" or not await asyncio.to_thread(lambda: self._owner.has_used):
            return 0
        try:
            await self.look()
        except (EngineAwayError, EngineError) as error:
            LOG.info("no layer goes while the engine does not tell what it holds: %s", error)
            return 0
        return await to_its_end(self._give_back, need_bytes, {*spare, *self._needed})

    def _give_back(self, need_bytes: int, spare: Collection[Digest]) -> int:
        found = [name for name in self._store.digests() if self.holds(name) and name not in spare]
        lengths = {name: self._store.path(name).stat().st_size for name in found}
        freed = 0
        for name in sorted(found, key=lambda name: -lengths[name]):
            if freed >= need_bytes:
                break
            self._store.discard(name)
            freed += lengths[name]
        if freed:
            LOG.info("%d bytes of layers that the engine holds went from the store", freed)
        return freed

    async def drop_images(self, keep: Collection[Digest]) -> bool:
        """Removes our images from the engine but for these, by config digest. What cannot go now goes the next time.

        Returns:
            Whether no other is left: a container that still ends keeps its image, and an engine may be away.
        """
        if not await asyncio.to_thread(lambda: self._owner.has_used):
            return True
        try:
            await self._engine.drop_images(sorted(keep))
            view = await self.look()
        except (EngineAwayError, EngineError) as error:
            LOG.info("images that nothing names stay in the engine for now: %s", error)
            return False
        self._lost = {image: why for image, why in self._lost.items() if image in keep}
        if not (keep or view.images or view.containers):
            await asyncio.to_thread(self._owner.is_done)
        return all(image.image in keep for image in view.images)


def _source(view: EngineView, layers: Collection[Digest]) -> HeldImage | None:
    """The image that has most of these layers; None: none has any."""
    found = max(view.images, key=lambda image: len(set(layers).intersection(image.layers)), default=None)
    return found if found is not None and not set(layers).isdisjoint(found.layers) else None


def _is_in(view: EngineView, image: Image) -> bool:
    return any(held.image == image.config.sha256 for held in view.images)


def _wanted(view: EngineView, image: Image) -> frozenset[Digest]:
    """Layers that the engine has to be handed: to it a layer is what lies on all those below it, and not by itself."""
    layers = tuple(layer.artifact.sha256 for layer in image.layers)
    if not view.version.startswith(TAKES_PARTS):
        return frozenset(layers)
    return frozenset(layers[_shared(view.images, layers) :])


def _shared(held: Iterable[HeldImage], layers: tuple[Digest, ...]) -> int:
    """How many of the lowest layers lie in the engine in this order."""
    most = 0
    for image in held:
        same = 0
        for one, other in zip(image.layers, layers, strict=False):
            if one != other:
                break
            same += 1
        most = max(most, same)
    return most


def _free_apart(folder: Path, ours: Path) -> int | None:
    """What is free on the engine's disk; None when it is our own, or cannot be told."""
    try:
        if folder.stat().st_dev == ours.stat().st_dev:
            return None
        return free_bytes(folder)
    except OSError:
        return None


def _short(image: Image) -> str:
    return image.config.sha256[:12]
