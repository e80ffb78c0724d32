"""Deletes what neither the record nor the fetch of its offer needs: in the store, in `sets`, in the engine.

Only by a record that knows: nothing while the machine still has to hear what it had, nor by one in memory, which stands
in for a `state.db` whose disk is full.
"""

from collections.abc import Collection

from device.containers.stock import Stock
from device.threads import to_its_end
from device.transfer import bases, part_names
from device.update.memory import Memory
from device.update.releases import Library
from device.update.sets import Sets
from device.update.states import State, UpdateRecord, will_retry
from protocol.ids import Digest


async def clean(record: UpdateRecord, memory: Memory, library: Library, sets: Sets, stock: Stock) -> bool:
    """Deletes it; may be repeated. What the engine does not let go of now goes the next time.

    Args:
        record: As it is stored.
        memory: Has the plan by which the offer is fetched.
        library: Whose files are deleted.
        sets: Whose folders are.
        stock: Images in the engine.

    Returns:
        Whether nothing is left that another time could take, as far as the record knows.
    """
    redundant = await stock.redundant()
    images = await to_its_end(collect, record, memory, library, sets, redundant)
    return images is None or await stock.drop_images(images)


def named(record: UpdateRecord, library: Library) -> set[Digest]:
    """The releases that stay on this machine, without the offer."""
    found = {record.committed.digest} if record.committed is not None else set()
    if record.previous is not None and library.is_here(record.previous.digest):
        # Without its manifest it is no way back any more, and nobody brings that: it must not end all cleaning.
        found.add(record.previous.digest)
    return found | ({record.active} if record.active is not None else set())


def collect(
    record: UpdateRecord, memory: Memory, library: Library, sets: Sets, redundant: Collection[Digest] = ()
) -> list[Digest] | None:
    """Deletes files. Blocking; may be repeated.

    Args:
        record: As it is stored.
        memory: See `clean`.
        library: Likewise.
        sets: Likewise.
        redundant: Layers that are not kept for their release's sake.

    Returns:
        The images that stay, by their configs; None while it is not known what may go.
    """
    if memory.is_partial():
        return None
    kept = named(record, library)
    parts: frozenset[Digest] = frozenset()
    patched: frozenset[Digest] = frozenset()
    if record.offer is not None and (record.state is not State.CLEANUP or will_retry(record)):  # it goes on
        assignment = memory.assignment()
        if assignment is None:
            return None
        parts, patched = part_names(assignment.plan), bases(assignment.plan)
        # While its manifest is fetched again, nothing can be told to be needless.
        kept.add(record.offer.release.digest)
    if not library.collect(kept, parts, patched, redundant):
        return None
    sets.collect(kept)
    return [image.config.sha256 for image in library.all_images(kept)]
