"""Every state in which a power cut can leave a folder, from what happened to it.

Two readings of what a file system may do:

*strict* (the gate) is what POSIX promises and no more. What was synced stays. Everything else may be there or not, in
any combination: a write wholly, not at all, torn at a sector, or as zeros where it made the file longer; an entry of
a folder independently of all others and of the content of what it names. A rename is one step, unless it leads from
one folder to another and only one of them was synced: then both names may be there.

*ordered* is nearer to ext4 as it is mounted by default: what concerns names and lengths happens in its order, and any
sync takes all of it along; only the bytes of files may lag behind.

Effects that were still under way at the moment of the cut count as not synced.
"""

import hashlib
import itertools
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.simulation.crash.filesystem import (
    ROOT,
    Bind,
    Effect,
    History,
    Names,
    Promise,
    Rename,
    Sync,
    Truncate,
    Write,
)

STRICT: Final = "strict"
ORDERED: Final = "ordered"
SECTOR: Final = 512
PAGE: Final = 4096

UNDER_WAY: Final = 200  # more calls than threads could have begun and not ended

Thing = int | tuple[int, str]

# What becomes of an effect.
LOST: Final = "lost"
KEPT: Final = "kept"
TORN: Final = "torn"
ZEROS: Final = "zeros"
BOTH: Final = "both names"


@dataclass(frozen=True)
class Tree:
    """A folder as a cut left it.

    Args:
        entries: By path below the root: the kind, and what it holds (bytes of a file, target of a link).
        digest: The same for the same names and contents.
    """

    entries: dict[str, tuple[str, bytes]]
    digest: str

    def build(self, root: Path) -> None:
        """Writes it to an empty place."""
        root.mkdir(mode=0o700)
        for path, (kind, content) in sorted(self.entries.items()):
            at = root / path
            if kind == "dir":
                at.mkdir(mode=0o700)
            elif kind == "link":
                at.symlink_to(os.fsdecode(content))
            else:
                at.write_bytes(content)
                at.chmod(0o600)


@dataclass(frozen=True)
class State:
    """A tree, and what had been promised when it came to be.

    Args:
        tree: What is there.
        promised: How many promises had been made.
        moment: Where in the recording the cut was.
        fates: What became of each effect that was not synced, for a person who looks for the reason.
    """

    tree: Tree
    promised: int
    moment: int
    fates: tuple[tuple[Effect, str], ...] = ()

    @property
    def key(self) -> tuple[str, int]:
        """Two states with the same key need to be looked at once."""
        return self.tree.digest, self.promised


Fates = tuple[str, ...]
"""What becomes of each effect that is not synced at a moment, in their order."""


class Cuts:
    """Walks a history and gives the states at each cut.

    Args:
        history: What happened.
        model: `STRICT` or `ORDERED`.
        most: The most combinations of one moment that are all taken; where there are more, none, all, each prefix,
            each single one kept or lost or torn are taken, and as many by chance.
        seed: Of that chance.
    """

    def __init__(self, history: History, model: str = STRICT, *, most: int = 4096, seed: int = 1) -> None:
        self.history = history
        self._model = model
        self._most = most
        self._seed = seed
        self._digests: dict[int, tuple[bytes, bytes]] = {}  # of the content of each inode that was last seen
        self.combinations = 0
        self.left_out = 0
        self._begin()

    def _begin(self) -> None:
        self._durable: set[int] = set()  # positions in the events
        self._new_name: set[int] = set()  # renames whose new name alone is durable
        self._contents = {number: inode.content for number, inode in self.history.inodes.items()}
        self._names: Names = {folder: dict(names) for folder, names in self.history.names.items()}
        self._tail: list[int] = []  # positions of effects that are not folded into contents and names yet

    def states(self, count: int | None = None) -> Iterator[State]:
        """The states; the same tree may come again.

        Args:
            count: So many, from all moments alike, always the same; None: all.
        """
        if count is None:
            for position, promised in self._moments():
                tail, pending = self._open(position)
                for fates in self._combinations(pending, position):
                    yield self._state(position, promised, tail, pending, fates)
            return
        drawn: dict[int, list[Fates]] = {}
        for position, fates in itertools.islice(self._in_turn(), count):
            drawn.setdefault(position, []).append(fates)
        for position, promised in self._moments():
            tail, pending = self._open(position)
            for fates in drawn.get(position, ()):
                yield self._state(position, promised, tail, pending, fates)

    def _moments(self) -> Iterator[tuple[int, int]]:
        """Each moment with the promises made before it: between two syncs more only becomes possible, so the moment
        before the second one has it all."""
        self._begin()
        promised = 0
        for position, event in enumerate(self.history.events):
            if isinstance(event, Promise):
                promised += 1
            elif isinstance(event, Sync):
                yield position, promised
                self._settle(event, position)
            else:
                self._tail.append(position)
        yield len(self.history.events), promised

    def _in_turn(self) -> Iterator[tuple[int, Fates]]:
        """One cut of each moment, then another of each, until there are no more."""
        chance = random.Random(self._seed)
        moments: list[tuple[int, list[Fates]]] = []
        for position, _ in self._moments():
            found = list(self._combinations(self._open(position)[1], position))
            chance.shuffle(found)
            moments.append((position, found))
        chance.shuffle(moments)
        while moments:
            for position, found in moments:
                yield position, found.pop()
            moments = [each for each in moments if each[1]]

    def whole(self) -> Tree:
        """What is there when nothing is lost. It must be what is really there: else the recording was misread."""
        self._begin()
        effects = (Write, Truncate, Bind, Rename)
        for position, event in enumerate(self.history.events):
            if isinstance(event, effects):
                self._apply(self._contents, self._names, position, KEPT)
        return self._tree(self._contents, self._names, [])

    # What is durable

    def _effect(self, position: int) -> Effect:
        event = self.history.events[position]
        assert isinstance(event, Write | Truncate | Bind | Rename)
        return event

    def _settle(self, sync: Sync, now: int) -> None:
        for position in self._tail:
            effect = self._effect(position)
            if effect.end < sync.start and position < now:
                self._harden(effect, position, sync)
        # What is durable, and stands behind nothing else that touches the same, can no longer change: it is folded in.
        touched: set[Thing] = set()
        keep = []
        for position in self._tail:
            things = _things(self._effect(position))
            if position in self._durable and not things & touched:
                self._apply(self._contents, self._names, position, KEPT)
            else:
                touched |= things
                keep.append(position)
        self._tail = keep

    def _harden(self, effect: Effect, position: int, sync: Sync) -> None:
        ordered = self._model == ORDERED
        match effect:
            case Write(inode=inode):
                if inode == sync.inode:
                    self._durable.add(position)
            case Truncate(inode=inode):
                if inode == sync.inode or ordered:
                    self._durable.add(position)
            case Bind(folder=folder):
                if folder == sync.inode or ordered:
                    self._durable.add(position)
            case Rename(old_folder=old, folder=new):
                if ordered or old == new == sync.inode or (old == sync.inode and position in self._new_name):
                    self._durable.add(position)
                elif new == sync.inode:
                    self._new_name.add(position)

    # What may become of the rest

    def _open(self, now: int) -> tuple[list[int], list[int]]:
        """Effects that are not folded in at a moment, and those of them that are not durable."""
        moment = self._moment(now)
        under_way = [
            position
            for position in range(now + 1, min(now + UNDER_WAY, len(self.history.events)))
            if isinstance(event := self.history.events[position], Write | Truncate | Bind | Rename)
            and event.start < moment
        ]
        tail = [*self._tail, *under_way]
        return tail, [position for position in tail if position not in self._durable]

    def _state(self, now: int, promised: int, tail: list[int], pending: list[int], fates: Fates) -> State:
        chosen = dict(zip(pending, fates, strict=True))
        tree = self._tree(
            dict(self._contents),
            {folder: dict(names) for folder, names in self._names.items()},
            [(position, chosen.get(position, KEPT)) for position in tail],
        )
        told = tuple((self._effect(position), fate) for position, fate in chosen.items())
        return State(tree, promised, self._moment(now), told)

    def _moment(self, now: int) -> int:
        events = self.history.events
        if now < len(events):
            return events[now].end
        return events[-1].end + 1 if events else 0

    def _fates(self, position: int) -> tuple[str, ...]:
        effect = self._effect(position)
        match effect:
            case Write(data=data) if self._model == STRICT:
                torn = (TORN,) if len(data) > SECTOR else ()
                longer = (ZEROS,) if effect.offset + len(data) > len(self._contents[effect.inode]) else ()
                return (LOST, KEPT, *torn, *longer)
            case Write(data=data):
                return (LOST, KEPT, TORN) if len(data) > PAGE else (LOST, KEPT)
            case Rename(old_folder=old, folder=new) if old != new and self._model == STRICT:
                return (BOTH, KEPT) if position in self._new_name else (LOST, KEPT, BOTH)
        return LOST, KEPT

    def _combinations(self, pending: Sequence[int], now: int) -> Iterator[Fates]:
        """What may become of the effects of a moment."""
        chance = random.Random(self._seed * 1_000_003 + now)
        if self._model == STRICT:
            yield from self._some([self._fates(position) for position in pending], chance)
            return
        of_names = [at for at, position in enumerate(pending) if not isinstance(self._effect(position), Write)]
        for count in range(len(of_names) + 1):
            kept = set(of_names[:count])
            options = [
                self._fates(position) if isinstance(self._effect(position), Write) else (KEPT if at in kept else LOST,)
                for at, position in enumerate(pending)
            ]
            yield from self._some(options, chance)

    def _some(self, options: Sequence[Fates], chance: random.Random) -> Iterator[Fates]:
        total = 1
        for fates in options:
            total *= len(fates)
        self.combinations += total
        if total <= self._most:
            yield from itertools.product(*options)
            return
        taken: set[Fates] = set()
        by_chance = (tuple(chance.choice(each) for each in options) for _ in range(self._most))
        for fates in itertools.chain(self._telling(options), by_chance):
            if fates not in taken:
                taken.add(fates)
                yield fates
        self.left_out += total - len(taken)

    def _telling(self, options: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
        """The combinations that faults hide behind: each prefix, its last one torn, and each single one."""
        none = tuple(each[0] for each in options)
        every = tuple(KEPT if KEPT in each else each[0] for each in options)
        yield none
        yield every
        for at, fates in enumerate(options):
            for fate in fates:
                yield (*every[:at], fate, *none[at + 1 :])
                yield (*every[:at], fate, *every[at + 1 :])
                yield (*none[:at], fate, *none[at + 1 :])

    # What is there then

    def _tree(self, contents: dict[int, bytes], names: Names, fates: Sequence[tuple[int, str]]) -> Tree:
        for position, fate in fates:
            if fate != LOST:
                self._apply(contents, names, position, fate)
        entries: dict[str, tuple[str, bytes]] = {}
        found: list[tuple[str, bytes]] = []
        stack = [("", ROOT)]
        while stack:
            above, folder = stack.pop()
            for name, child in names[folder].items():
                path = f"{above}{name}"
                kind = self.history.inodes[child].kind
                entries[path] = (kind, contents[child])
                found.append((f"{path}\0{kind}", self._digest(child, contents[child])))
                if kind == "dir":
                    stack.append((f"{path}/", child))
        digest = hashlib.sha256()
        for name, content in sorted(found):
            digest.update(name.encode(errors="surrogateescape") + b"\0" + content)
        return Tree(entries, digest.hexdigest())

    def _digest(self, inode: int, content: bytes) -> bytes:
        """Most files of most states are the same object as before."""
        known = self._digests.get(inode)
        if known is None or known[0] is not content:
            known = self._digests[inode] = (content, hashlib.sha256(content).digest())
        return known[1]

    def _apply(self, contents: dict[int, bytes], names: Names, position: int, fate: str) -> None:
        effect = self._effect(position)
        match effect:
            case Write(inode=inode, offset=offset, data=data):
                contents[inode] = _written(contents[inode], offset, data, fate, self._model)
            case Truncate(inode=inode, length=length):
                content = contents[inode]
                contents[inode] = content[:length] + bytes(max(0, length - len(content)))
            case Bind(folder=folder, name=name, child=None):
                names[folder].pop(name, None)
            case Bind(folder=folder, name=name, child=child):
                assert child is not None
                names[folder][name] = child
            case Rename(old_folder=old_folder, old_name=old_name, folder=folder, name=name, child=child):
                if fate != BOTH and names[old_folder].get(old_name) == child:
                    del names[old_folder][old_name]
                names[folder][name] = child


def _things(effect: Effect) -> set[Thing]:
    """What an effect touches: the bytes of an inode, or names of folders."""
    match effect:
        case Write(inode=inode) | Truncate(inode=inode):
            return {inode}
        case Bind(folder=folder, name=name):
            return {(folder, name)}
        case Rename():
            return {(effect.old_folder, effect.old_name), (effect.folder, effect.name)}


def _written(content: bytes, offset: int, data: bytes, fate: str, model: str) -> bytes:
    if fate == TORN:
        unit = SECTOR if model == STRICT else PAGE
        data = data[: len(data) // 2 // unit * unit or unit]
    elif fate == ZEROS:
        # Only the part behind the old end: what was there before stays.
        beyond = max(offset, len(content))
        data, offset = bytes(max(0, offset + len(data) - beyond)), beyond
    if len(content) < offset:
        content += bytes(offset - len(content))
    return content[:offset] + data + content[offset + len(data) :]
