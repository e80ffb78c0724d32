"""What a stream of changed code says about the programs in the base, so that their words are guessed well."""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.delta.addresses import Addresses, Places, Words
from protocol.delta.follow import follow
from protocol.delta.programs import MOST_PARTS, MOST_PROGRAMS, SPACE, Exceptional, Program, Region, Rule, Segment
from protocol.delta.words import cut_blocks
from server.delta.elf import ARM64, X86, Elf, Section, find_elves

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

STRETCH_BYTES: Final = 1 << 16  # long beside what the words at its ends cannot tell
LEAST_GAIN: Final = 3  # words that an exception puts right: it costs about as many bytes as two of them


class Seen(NamedTuple):
    """What the words of a stream show under a description.

    Args:
        wrong: Offsets in the base of those that were guessed wrong.
        named: The old address that each names of those that name one, before and after.
        went: How far that moved in truth.
        guessed: How far it was taken to have moved.
    """

    wrong: Ints
    named: Ints
    went: Ints
    guessed: Ints


class Stream:
    """A stream of changed code before it is coded.

    Args:
        old: The base.
        new: The result.
        places: The operations of the group that read the base.
        most_bytes: Looks at so many of its bytes, spread evenly: a look takes some fifty times as many. None: all.
    """

    def __init__(self, old: memoryview, new: memoryview, places: Places, most_bytes: int | None = None) -> None:
        self.places = places
        own = places.own
        self.own = Places(places.base[own], places.output[own], places.length[own], own[own])
        if most_bytes is not None:
            self.own = _spread(self.own, most_bytes)
        self.old = _joined(old, self.own.base, self.own.length)
        self.new = _joined(new, self.own.output, self.own.length)

    def look(self, programs: tuple[Program, ...]) -> Seen:
        """Guesses all words and compares."""
        addresses = Addresses(programs, self.places)
        blocks = []
        for block in cut_blocks(self.own.base, self.own.output, self.own.length):
            some = slice(block.start, block.end)
            known = addresses.words(*block.offsets())
            wanted = block.gather(self.new[some])
            guess, named = follow(block.gather(self.old[some]), block.sizes, known, addresses)
            after = Words(
                known.rule,
                known.behind,
                known.region + addresses.shift(known.region),
                known.space,
                known.old + known.moved,
                np.zeros_like(known.moved),
            )
            _, names_now = follow(wanted, block.sizes, after, addresses)
            # Most words are right and name nothing: a large build has too many to keep them all.
            names = (named >= 0) & (names_now >= 0)
            named = named[names]
            wrong = block.offsets()[0][guess != wanted]
            blocks.append((wrong, named, names_now[names] - named, addresses.shift(named)))
        return Seen(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def find_programs(old: memoryview, new: memoryview, stream: Stream) -> tuple[Program, ...]:
    """The programs that a stream's operations read, with the rules and exceptions that explain most.

    Args:
        old: The base.
        new: The result.
        stream: What is to be coded.
    """
    starts, ends = stream.own.base, stream.own.base + stream.own.length
    elves = [elf for elf in find_elves(old) if ((starts < elf.end) & (ends > elf.offset)).any()][:MOST_PROGRAMS]
    if not elves:
        return ()
    results = list(find_elves(new))
    programs = tuple(_describe(elf, results, stream.places) for elf in elves)
    return _with_exceptions(_with_rules(programs, elves, stream), stream)


def _describe(elf: Elf, results: list[Elf], places: Places) -> Program:
    """Its segments, as far as it has addresses in bounds."""
    if elf.address_end >= SPACE:
        return Program(0, (), (), ())
    of_it = (places.base >= elf.offset) & (places.base < elf.end)
    shares = [
        int(places.length[of_it & (places.output >= result.offset) & (places.output < result.end)].sum())
        for result in results
    ]
    if not results or not max(shares):
        return Program(0, (), (), ())
    result = results[int(np.argmax(shares))]
    segments = []
    for number, part in enumerate(elf.segments):
        now = result.segments[min(number, len(result.segments) - 1)]
        segments.append(Segment(part.offset, part.length, part.address - part.offset, now.address - now.offset))
    return Program(elf.address_end, tuple(segments), (), ())


def _with_rules(programs: tuple[Program, ...], elves: list[Elf], stream: Stream) -> tuple[Program, ...]:
    """Tries all rules on all sections."""
    sections = [
        (program, section, elf.machine)
        for program, elf in enumerate(elves)
        if programs[program].segments
        for section in elf.sections
    ]
    starts = np.array([section.offset for _, section, _ in sections], np.int64)
    ends = starts + np.array([section.length for _, section, _ in sections], np.int64)
    best = [Rule.NONE] * len(sections)
    fewest = np.zeros(0, np.int64)
    for rule in Rule:
        allowed = [_allowed(rule, section.executed, machine) for _, section, machine in sections]
        if rule and not any(allowed):
            continue
        tried = _regions(programs, sections, [rule if may else Rule.NONE for may in allowed])
        # What lies outside of the group moved by exceptions only: without them a rule looks worse than none.
        seen = stream.look(_with_exceptions(tried, stream) if rule else tried)
        at = np.searchsorted(starts, seen.wrong, "right") - 1
        wrong = seen.wrong[(at >= 0) & (seen.wrong < ends[np.maximum(at, 0)])]
        inside = np.searchsorted(starts, wrong, "right") - 1
        count = np.bincount(inside, minlength=len(sections)).astype(np.int64)
        if rule == Rule.NONE:
            fewest = count
            continue
        for number in np.flatnonzero((count < fewest) & allowed):
            best[number] = rule
            fewest[number] = count[number]
    return _regions(programs, sections, best)


def _allowed(rule: Rule, executed: bool, machine: int) -> bool:
    match rule:
        case Rule.NONE:
            return True
        case Rule.ARM64:
            return executed and machine == ARM64
        case Rule.X86:
            return executed and machine in X86
        case _:
            return not executed


def _regions(
    programs: tuple[Program, ...], sections: list[tuple[int, Section, int]], rules: list[Rule]
) -> tuple[Program, ...]:
    regions: list[list[Region]] = [[] for _ in programs]
    for (program, section, _), rule in zip(sections, rules, strict=True):
        if rule:
            regions[program].append(Region(section.offset, section.length, rule))
    return tuple(program._replace(regions=tuple(some)) for program, some in zip(programs, regions, strict=True))


def _with_exceptions(programs: tuple[Program, ...], stream: Stream) -> tuple[Program, ...]:
    """Adds what the operations do not tell: addresses that words say moved otherwise."""
    seen = stream.look(programs)
    named, went, guessed = seen.named, seen.went, seen.guessed
    if not named.size:
        return programs
    order = np.lexsort((went, named))
    named, went, guessed = named[order], went[order], guessed[order]
    fresh = np.flatnonzero(np.concatenate(([True], (np.diff(named) != 0) | (np.diff(went) != 0))))
    votes = np.diff(fresh, append=named.size)
    named, went, guessed = named[fresh], went[fresh], guessed[fresh]
    right = np.zeros(named.size, np.int64)  # how many words say of each address that it moved as was guessed
    same = np.unique(named, return_inverse=True)[1]
    agreeing = np.bincount(same, weights=votes * (went == guessed)).astype(np.int64)
    right = agreeing[same]
    order = np.lexsort((-votes, named))
    first = order[np.concatenate(([True], np.diff(named[order]) != 0))]  # for each address the commonest move
    named, went, gain = named[first], went[first], (votes - right)[first]
    odd = went != guessed[first]
    begins = np.flatnonzero(np.concatenate(([True], (np.diff(went) != 0) | (np.diff(odd) != 0))))
    gains = np.add.reduceat(np.where(odd, gain, 0), begins)
    lasts = np.append(begins[1:], named.size) - 1
    rows: list[list[Exceptional]] = [[] for _ in programs]
    worth = np.flatnonzero(odd[begins] & (gains >= LEAST_GAIN))
    for number in worth[np.argsort(-gains[worth], kind="stable")][: MOST_PARTS // 4]:
        begin, last = int(named[begins[number]]), int(named[lasts[number]])
        program, address = divmod(begin, SPACE)
        if last // SPACE == program < len(rows):
            rows[program].append(Exceptional(address, last - begin + 1, int(went[begins[number]])))
    return tuple(program._replace(exceptions=tuple(sorted(some))) for program, some in zip(programs, rows, strict=True))


def _spread(places: Places, most_bytes: int) -> Places:
    """Evenly spread stretches of some operations, of about so many bytes together."""
    each = -(-int(places.length.sum()) // most_bytes)
    if each < 2:
        return places
    counts = -(-places.length // STRETCH_BYTES)
    which = np.repeat(np.arange(len(counts)), counts)
    at = (np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)) * STRETCH_BYTES
    which, at = which[::each], at[::each]
    length = np.minimum(places.length[which] - at, STRETCH_BYTES)
    return Places(places.base[which] + at, places.output[which] + at, length, places.own[which])


def _joined(data: memoryview, offset: Ints, length: Ints) -> Bytes:
    whole = np.frombuffer(data, np.uint8)
    pieces = [whole[at : at + size] for at, size in zip(offset.tolist(), length.tolist(), strict=True)]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.uint8)
