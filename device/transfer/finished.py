"""What another plan finished: a cut came between the last byte of an artifact and its place in the store.

The plan may have flipped meanwhile, from a patch to the whole or to another patch. What is whole here is hashed against
the manifest and taken in all the same; everything else that the new plan does not name is collected by its name.
"""

from collections.abc import Iterable

from device.store import Store
from device.transfer.patching import NOTE, RESULT, read_note_file
from device.transfer.purse import Purse
from protocol.artifact import Artifact


def adopt_finished(store: Store, artifacts: Iterable[Artifact], purse: Purse) -> None:
    """Takes in whatever lies finished among the parts, by whichever way it came. Blocking.

    Args:
        store: Whose parts are looked through, before they are collected by the new plan.
        artifacts: What is needed.
        purse: Counts what a patch saved.
    """
    purse.settle(store.has)
    for artifact in artifacts:
        if not store.has(artifact.sha256, artifact.length_bytes):
            _adopt(store, artifact, purse)


def _adopt(store: Store, artifact: Artifact, purse: Purse) -> None:
    name, length_bytes = artifact.sha256, artifact.length_bytes
    whole = store.part(name)
    if store.is_file(whole, name, length_bytes):
        store.adopt(whole, name, length_bytes)
        return
    for note in whole.parent.glob(f"*{NOTE}"):
        found, result = read_note_file(note), note.with_suffix(RESULT)
        is_done = found is not None and (found.artifact, found.output_bytes) == (name, length_bytes)
        if found is not None and is_done and store.is_file(result, name, length_bytes):
            purse.promise(name, length_bytes, found.saves_bytes)
            store.adopt(result, name, length_bytes)
            purse.settle(store.has)
            store.disk.unlink_all(note.parent.glob(f"{note.stem}.*"))
            return
