"""A kit of which one byte is another, one is missing from somewhere on, or one is too many: refused with a word and
nothing of it kept, or of no effect on what is trusted and installed.

Every byte of every file of metadata, on a machine that knows an older state of the repositories and on one that knows
nothing but its first roots; and of each blob the first, the middle, the last, and those where its segments meet.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from tuf.api.metadata import Metadata

from device.trust.port import KitVerdict
from protocol.kits import BLOBS_FOLDER
from protocol.transfer import parse_index
from tests.fakes.field import Field
from tests.simulation.kit_stage import Stage, trusted_by

Way = Literal["other", "cut", "more"]  # one byte is another one; all from it on is missing; one is too many before it
WAYS: Final[tuple[Way, ...]] = ("other", "cut", "more")
Standing = Literal["behind", "new"]
"""A machine that had a contact a day before the kit was made, and one that never had any."""
STANDINGS: Final[tuple[Standing, ...]] = ("behind", "new")

NOT_NEEDED: Final = "the file is not needed: without it all is the same"
NO_LIST: Final = "the list of technicians is left out: nobody may force until a whole one comes"
BLANK: Final = "a blank between tokens: the signed bytes are the same"
BLANK_IN_HEX: Final = "a blank in a signature's hexadecimal digits: it is the same signature"
CASE: Final = "a signature's hexadecimal digit as a capital: it is the same signature"
BESIDE: Final = "beside the signed bytes, which are the same and signed by as many as must"
BEYOND: Final = "beyond the signed length, which is all that is read"


@dataclass(frozen=True)
class Change:
    """One. `value` is what the byte is changed by (`other`), or what is put in (`more`)."""

    standing: Standing
    file: str
    way: Way
    at: int
    value: int

    def of(self, data: bytes) -> bytes:
        """The file as it then is."""
        match self.way:
            case "other":
                return data[: self.at] + bytes([data[self.at] ^ self.value]) + data[self.at + 1 :]
            case "cut":
                return data[: self.at]
            case "more":
                return data[: self.at] + bytes([self.value]) + data[self.at :]


@dataclass
class Report:
    """What came of a sweep.

    Args:
        tried: How many changes, by file (of metadata) or `blobs`.
        refused: By reason.
        harmless: By file, and by why that is right.
        examples: Some that are harmless in another way than by blanks.
        broken: What did not hold.
    """

    tried: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    harmless: dict[str, dict[str, int]] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Takes in what another part of the sweep found."""
        for name, number in other.tried.items():
            self.tried[name] = self.tried.get(name, 0) + number
        for name, number in other.refused.items():
            self.refused[name] = self.refused.get(name, 0) + number
        for name, whys in other.harmless.items():
            mine = self.harmless.setdefault(name, {})
            for why, number in whys.items():
                mine[why] = mine.get(why, 0) + number
        self.examples = [*self.examples, *other.examples][:20]
        self.broken += other.broken

    def lines(self) -> Iterator[str]:
        """For a person."""
        harmless = sum(sum(whys.values()) for whys in self.harmless.values())
        refused = ", ".join(f"{reason} {number}" for reason, number in sorted(self.refused.items()))
        tried, total = sum(self.tried.values()), sum(self.refused.values())
        yield f"{tried} changes: {total} refused ({refused}), {harmless} harmless"
        for name, whys in sorted(self.harmless.items()):
            for why, number in whys.items():
                yield f"  {name}: {number} of {self.tried[name]}: {why}"
        yield from (f"  for example {example}" for example in self.examples)
        yield f"{len(self.broken)} broken"

    def text(self) -> str:
        """For a program."""
        return json.dumps(asdict(self))


class Tamper:
    """Changes the metadata of one kit and has machines judge it.

    Args:
        stage: Whose kit.
        folder: For the machines.
    """

    def __init__(self, stage: Stage, folder: Path) -> None:
        self._stage = stage
        self._folder = folder
        self._files = {
            str(path.relative_to(stage.kit)): path.read_bytes()
            for path in sorted(stage.kit.rglob("*.json"))
            if path.is_file()
        }
        self._machines: dict[Standing, Field] = {}
        self._good: dict[Standing, KitVerdict] = {}
        self._meant: dict[Standing, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._without: dict[tuple[Standing, str], str] = {}
        for standing in STANDINGS:
            without_list = next(name for name in self._files if name.endswith(".technicians.json"))
            for missing in (None, without_list):
                machine = self._machine(standing)
                if missing:
                    (self._copy(machine) / missing).unlink()
                verdict = machine.bring(self._copy(machine))
                assert verdict.complaint is None, verdict
                if missing is None:
                    self._good[standing] = verdict
                    self._meant[standing] = (_meaning(machine), {})
                else:
                    self._meant[standing] = (self._meant[standing][0], _meaning(machine))
                self._forget(standing)
            for name in self._files:
                self._without[standing, name] = self._judge_without(standing, name)

    def changes(self, seed: int) -> list[Change]:
        """All there are, in an order that the seed draws, with values that it draws."""
        draw = random.Random(seed)
        found = [
            Change(standing, name, way, at, _value(draw, way, data[at]))
            for standing in STANDINGS
            for name, data in self._files.items()
            for way in (WAYS if standing == "behind" else WAYS[:1])
            for at in range(len(data))
        ]
        draw.shuffle(found)
        return found

    def play(self, change: Change, report: Report) -> None:
        """Has a machine judge the changed kit.

        Raises:
            AssertionError: It believed what nobody signed, kept something of a kit that it refused, or had no word.
        """
        machine = self._machine(change.standing)
        before = trusted_by(machine)
        path = self._copy(machine) / change.file
        data = change.of(self._files[change.file])
        path.write_bytes(data)
        verdict = machine.bring(self._copy(machine))
        path.write_bytes(self._files[change.file])
        report.tried[change.file] = report.tried.get(change.file, 0) + 1
        if verdict.kit is None:
            assert verdict.complaint is not None
            assert verdict.complaint.detail
            assert verdict.complaint.hint
            assert trusted_by(machine) == before, "something of a refused kit was kept"
            reason = verdict.complaint.reason.value
            report.refused[reason] = report.refused.get(reason, 0) + 1
            return
        good = self._good[change.standing]
        meaning = _meaning(machine)
        self._forget(change.standing)
        assert (verdict.kit, verdict.expires_ms, verdict.terms) == (good.kit, good.expires_ms, good.terms)
        assert meaning in self._meant[change.standing], "something else is trusted than was signed"
        why = self._without[change.standing, change.file] or self._why(change, data)
        assert meaning == self._meant[change.standing][why == NO_LIST], why
        whys = report.harmless.setdefault(change.file, {})
        whys[why] = whys.get(why, 0) + 1
        if why == BESIDE:
            around = data[max(0, change.at - 25) : change.at + 25].decode(errors="replace")
            report.examples.append(f"{change.file}, {change.way} at {change.at}: …{around}…")

    def _why(self, change: Change, data: bytes) -> str:
        """Why a change of a file that is needed may stay without effect."""
        old = self._files[change.file]
        assert _signed(data) == _signed(old), "other bytes than were signed"
        kept = [each.signature.lower() for each in Metadata.from_bytes(old).signatures.values()]
        digit = data[change.at : change.at + 1]
        in_hex = any(old.find(text.encode()) < change.at <= old.find(text.encode()) + len(text) for text in kept)
        if change.way == "more" and digit in b" \t\r\n":
            return BLANK_IN_HEX if in_hex else BLANK
        if change.way == "other" and digit in b" \t\r\n":
            return BLANK
        return CASE if change.way == "other" and digit.lower() == old[change.at : change.at + 1] else BESIDE

    def _judge_without(self, standing: Standing, name: str) -> str:
        machine = self._machine(standing)
        path = self._copy(machine) / name
        path.unlink()
        verdict = machine.bring(self._copy(machine))
        meaning = _meaning(machine)
        self._forget(standing)
        if verdict.kit is None:
            return ""
        assert meaning in self._meant[standing]
        return NOT_NEEDED if meaning == self._meant[standing][0] else NO_LIST

    def _machine(self, standing: Standing) -> Field:
        machine = self._machines.get(standing)
        if machine is None:
            machine = self._stage.twin(self._folder / standing, is_new=standing == "new")
            copy = self._copy(machine)
            for name, data in self._files.items():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                (copy / name).write_bytes(data)
            self._machines[standing] = machine
        return machine

    def _forget(self, standing: Standing) -> None:
        """It took a kit: the next one is judged by a machine as it was before."""
        shutil.rmtree(self._machines.pop(standing).folder)

    def _copy(self, machine: Field) -> Path:
        return machine.folder / "kits" / self._stage.kit.name


_MORE: Final = (*b' \t\n\x00"{},', 0xFF)
_KINDS: Final = (b"0123456789", b"abcdef", b"ghijklmnopqrstuvwxyz")


def _value(draw: random.Random, way: Way, old: int) -> int:
    """Mostly so that what comes of it is still well formed: only its signature or hash tells that it was changed."""
    kind = next((kind for kind in _KINDS if old in kind), b"") if draw.random() < 0.75 else b""
    if way == "other":
        return draw.choice([new for new in kind or range(256) if new != old]) ^ old
    return draw.choice(kind or _MORE)


def _signed(data: bytes) -> bytes:
    return bytes(Metadata.from_bytes(data).signed_bytes)


def _meaning(machine: Field) -> dict[str, Any]:
    """What is trusted, with metadata as what of it is signed."""
    return {name: _signed(value) if name.endswith(".json") else value for name, value in trusted_by(machine).items()}


def sweep(
    folder: Path,
    *,
    seed: int,
    share: int = 1,
    part: tuple[int, int] = (0, 1),
    show: Callable[[Report], None] = lambda _: None,
    stop_at: int = 10,
) -> Report:
    """Changes the metadata of a kit, byte by byte.

    Args:
        folder: For everything.
        seed: Draws values and the order.
        share: One change in so many.
        part: Which of how many parts of that.
        show: Called after each change.
        stop_at: So many that are broken are enough.
    """
    report = Report()
    tamper = Tamper(Stage(folder, model_bytes=10_000), folder)
    for change in tamper.changes(seed)[::share][part[0] :: part[1]]:
        try:
            tamper.play(change, report)
        except Exception as error:  # whatever it is: the next one is tried
            report.broken.append(f"{change}: {type(error).__name__}: {error}")
            if len(report.broken) >= stop_at:
                break
        show(report)
    return report


async def sweep_blobs(folder: Path, *, share: int = 1, show: Callable[[Report], None] = lambda _: None) -> Report:
    """Changes blobs of a kit at the places that matter; each time a good stick then brings all of it."""
    report = Report()
    stage = Stage(folder)
    after = stage.outcomes()
    cases = [
        Change("behind", path.name, way, at, 1 << at % 8)
        for path in sorted((stage.kit / BLOBS_FOLDER).iterdir())
        for at in _places(stage, path.name, path.stat().st_size)
        for way in WAYS
    ]
    for change in cases[::share]:
        path = stage.kit / BLOBS_FOLDER / change.file
        data = path.read_bytes()
        report.tried["blobs"] = report.tried.get("blobs", 0) + 1
        try:
            with stage.machine("machine") as machine:
                before = machine.trusted()
                path.write_bytes(change.of(data))
                told = await machine.plug()
                path.write_bytes(data)
                machine.check(before, after)
                if machine.is_ready():
                    assert change.of(data)[: len(data)] == data, "ready with other bytes than were signed"
                    whys = report.harmless.setdefault("blobs", {})
                    whys[BEYOND] = whys.get(BEYOND, 0) + 1
                else:
                    assert told.words, "without a word"
                    report.refused["blob"] = report.refused.get("blob", 0) + 1
                await machine.replug()
                told = await machine.plug()
                assert machine.is_ready(), f"a good stick does not help: {told}"
        except Exception as error:
            report.broken.append(f"{change}: {type(error).__name__}: {error}")
        finally:
            path.write_bytes(data)
        show(report)
    return report


def _places(stage: Stage, blob: str, length: int) -> list[int]:
    """First, middle and last byte, and those on both sides of where segments meet."""
    places = {0, length // 2, length - 1}
    for step in stage.brings.plan.steps:
        if step.index is not None and step.payload is not None and step.payload.sha256 == blob:
            index = parse_index(stage.brings.blobs[step.index.sha256], step.length_bytes, step.payload.length_bytes)
            for number in range(1, len(index.segments)):
                places |= {index.offset(number) - 1, index.offset(number)}
    return sorted(places)
