"""Finds the tensors in the stored entries of an archive: storages of PyTorch by their pickle, others by format."""

from collections.abc import Callable

from server.delta.tensors import guess, torch_pickle, zip_file
from server.delta.tensors.found import MAX_TENSORS, MIN_BYTES, Tensor, tensor
from server.delta.tensors.reading import Damaged
from server.delta.tensors.torch_pickle import Storage
from server.delta.tensors.zip_file import Stored

PICKLE = ".pkl"


def find(data: memoryview, inside: Callable[[memoryview], list[Tensor]]) -> list[Tensor]:
    """The tensors, in the order of the archive's directory.

    Args:
        data: The archive.
        inside: Finds the tensors of an entry; returns none for what it does not know.

    Raises:
        Damaged: There is no directory, or it leads outside.
    """
    entries = [each for each in zip_file.stored_entries(data) if each.length_bytes]
    named = _named(data, entries)
    found: list[Tensor] = []
    for entry in entries:
        if entry.length_bytes < MIN_BYTES:
            continue
        if len(found) > MAX_TENSORS:
            break
        if entry.name.rpartition("/")[2].isdigit():  # a storage of PyTorch: archive/data/7
            found += _storage(data, entry, named.get(entry.name))
            continue
        for each in inside(data[entry.offset : entry.offset + entry.length_bytes]):
            name = f"{entry.name}/{each.name}" if each.name else entry.name
            found.append(Tensor(entry.offset + each.offset, each.length_bytes, each.element, name, each.shape))
    return found


def _named(data: memoryview, entries: list[Stored]) -> dict[str, Storage]:
    """What the pickles say of storages: archive/data.pkl speaks of archive/data/."""
    named: dict[str, Storage] = {}
    for entry in entries:
        if not entry.name.endswith(PICKLE) or entry.length_bytes > torch_pickle.MAX_BYTES:
            continue
        pickle = bytes(data[entry.offset : entry.offset + entry.length_bytes])
        try:
            folder = entry.name[: -len(PICKLE)]
            named |= {f"{folder}/{storage.key}": storage for storage in torch_pickle.storages(pickle)}
        except Damaged:
            continue
    return named


def _storage(data: memoryview, entry: Stored, storage: Storage | None) -> list[Tensor]:
    # The first folder is named as the file was when it was written: no help across versions.
    own_name = entry.name.partition("/")[2] or entry.name
    if storage is None:
        return [
            tensor(entry.offset, entry.length_bytes, guess.storage(data, entry.offset, entry.length_bytes), own_name)
        ]
    width = storage.element.width_bytes
    found: list[Tensor] = []
    for view in storage.views:
        count = 1
        for axis in view.shape:
            count *= axis
        if (view.first + count) * width <= entry.length_bytes:
            # The key of a state_dict is a path; a mere "weight" is no better a name than the storage's number.
            name = view.name if "." in view.name else own_name
            found.append(tensor(entry.offset + view.first * width, count * width, storage.element, name, view.shape))
    return found or [tensor(entry.offset, entry.length_bytes, storage.element, own_name)]
