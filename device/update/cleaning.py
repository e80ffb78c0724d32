"""Deletes what neither the record nor the fetch of its offer needs.

Only by a record that knows: nothing while the machine still has to hear what it had, nor by one in memory, which stands
in for a `state.db` whose disk is full.
"""

from device.transfer import bases, part_names
from device.update.memory import Memory
from device.update.releases import Library
from device.update.sets import Sets
from device.update.states import State, UpdateRecord, will_retry
from protocol.ids import Digest


def collect(record: UpdateRecord, memory: Memory, library: Library, sets: Sets) -> None:
    """Deletes it. Blocking; may be repeated.

    Args:
        record: As it is stored.
        memory: Has the plan by which the offer is fetched.
        library: Whose files are deleted.
        sets: Whose folders are.
    """
    if memory.is_partial():
        return
    named = {record.committed.digest} if record.committed is not None else set()
    if record.previous is not None and library.is_here(record.previous.digest):
        # Without its manifest it is no way back any more, and nobody brings that: it must not end all cleaning.
        named.add(record.previous.digest)
    named |= {record.active} if record.active is not None else set()
    parts: frozenset[Digest] = frozenset()
    patched: frozenset[Digest] = frozenset()
    if record.offer is not None and (record.state is not State.CLEANUP or will_retry(record)):  # it goes on
        assignment = memory.assignment()
        if assignment is None:
            return
        parts, patched = part_names(assignment.plan), bases(assignment.plan)
        # While its manifest is fetched again, nothing can be told to be needless.
        named.add(record.offer.release.digest)
    if library.collect(named, parts, patched):
        sets.collect(named)
