"""What the demo tells: progress for a person, a table at the end, and one JSON object for a program."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scripts.cast import CastError


@dataclass
class Step:
    name: str
    ok: bool = False
    detail: str = ""
    seconds: float = 0.0


@dataclass
class MachineFacts:
    """Per machine, from its own `status` and from the server."""

    id: str
    release: str
    bytes_received: int
    bytes_as_patches: int
    bytes_whole: int
    bytes_saved: int
    bytes_on_the_wire: int
    bytes_full: int
    frames_inferred: int
    frames_dropped: int
    results_produced: int
    results_ingested: int
    results_lost: int


@dataclass
class Update:
    """What a rollout took on a machine, over the air; from the server.

    Args:
        rollout: Which.
        release: Its version.
        machine: Which.
        outcome: Of the machine; empty while there is none.
        reason: Of the outcome.
        delta_bytes: Received of patches.
        full_bytes: Received of whole artifacts.
        saved_bytes: What the same would have taken more without patches, compressed too.
    """

    rollout: str
    release: str
    machine: str
    outcome: str
    reason: str
    delta_bytes: int
    full_bytes: int
    saved_bytes: int


@dataclass
class Cut:
    """What one cut in mid-download cost; from the machine's log and the proxy.

    Args:
        release: Which travelled.
        machine: Which.
        how: `drop` of the link, or `kill` of the agent.
        came_bytes: Of the patch at the cut, at most: where its request had begun, and what its connection carried.
        of_bytes: The whole patch.
        from_bytes: Where the machine went on.
        bytes_again: What travelled again, at most: TLS and the answer's head count here as if they were patch.
        segments_again: Segments that it takes to hold so many bytes.
        groups_again: Groups of the patch that were applied before the cut, and again after it.
    """

    release: str
    machine: str
    how: str
    came_bytes: int
    of_bytes: int
    from_bytes: int
    bytes_again: int
    segments_again: int
    groups_again: int = 0


@dataclass
class Refusal:
    machine: str
    what: str
    reason: str


@dataclass
class Report:
    as_json: bool
    steps: list[Step] = field(default_factory=list)
    machines: list[MachineFacts] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Progress goes to stderr, so that --json leaves stdout to the one object.
        self.console = Console(file=sys.stderr if self.as_json else sys.stdout, highlight=False)

    @property
    def ok(self) -> bool:
        return bool(self.steps) and all(step.ok for step in self.steps)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Runs one step; a CastError ends the story with this step red."""
        step = Step(name)
        self.steps.append(step)
        self.console.print(f"[bold]{len(self.steps)}. {name}[/bold]")
        begun = time.monotonic()
        try:
            yield step
            step.ok = True
        except CastError as error:
            step.detail = str(error)
            raise
        except Exception as error:
            step.detail = f"{type(error).__name__}: {error}"
            raise CastError(step.detail) from error
        finally:
            step.seconds = round(time.monotonic() - begun, 1)
            mark = "[green]verified[/green]" if step.ok else "[red]failed[/red]"
            self.console.print(f"   {mark} in {step.seconds} s: {escape(step.detail)}")

    def say(self, text: str) -> None:
        self.console.print(f"   {text}", markup=False)

    def refuse(self, machine: str, what: str, reason: str) -> None:
        self.refused.append(Refusal(machine, what, reason))
        self.say(f"refused by {machine}: {what}: {reason}")

    def show(self) -> None:
        if self.as_json:
            document = {
                "ok": self.ok,
                "steps": [asdict(step) for step in self.steps],
                "machines": [asdict(machine) for machine in self.machines],
                "updates": [asdict(update) for update in self.updates],
                "cuts": [asdict(cut) for cut in self.cuts],
                "refused": [asdict(refusal) for refusal in self.refused],
            } | self.extra
            print(json.dumps(document))
            return
        machines = Table("machine", "release", title="Machines", box=None, pad_edge=False)
        for column in ("frames", "dropped", "produced", "ingested", "lost"):
            machines.add_column(column, justify="right")
        air = Table("machine", title="\nBytes over the air", box=None, pad_edge=False)
        for column in ("received", "in patches", "whole", "saved", "on the wire"):
            air.add_column(column, justify="right")
        for m in self.machines:
            sums = (m.frames_inferred, m.frames_dropped, m.results_produced, m.results_ingested, m.results_lost)
            machines.add_row(m.id, m.release, *map(str, sums))
            bytes_ = (m.bytes_received, m.bytes_as_patches, m.bytes_whole, m.bytes_saved, m.bytes_on_the_wire)
            air.add_row(m.id, *(f"{size:,}" for size in bytes_))
        updates = Table("release", "machine", title="\nUpdates", box=None, pad_edge=False)
        for column in ("in patches", "whole", "without patches", "saved"):
            updates.add_column(column, justify="right")
        updates.add_column("outcome")
        for u in self.updates:
            without = u.delta_bytes + u.full_bytes + u.saved_bytes
            sizes = [f"{size:,}" for size in (u.delta_bytes, u.full_bytes, without)]
            saved = f"{u.saved_bytes / without:.0%}" if without else ""
            updates.add_row(u.release, u.machine, *sizes, saved, " ".join(filter(None, (u.outcome, u.reason))))
        cuts = Table(
            "release",
            "machine",
            "cut",
            title="\nCuts in mid-download, and what each cost at most",
            box=None,
            pad_edge=False,
        )
        for column in ("came", "of", "went on at", "bytes", "segments", "groups"):
            cuts.add_column(column, justify="right")
        for c in self.cuts:
            counts = (c.came_bytes, c.of_bytes, c.from_bytes, c.bytes_again, c.segments_again, c.groups_again)
            cuts.add_row(c.release, c.machine, c.how, *(f"{count:,}" for count in counts))
        refused = Table("by", "what", "reason", title="\nRefused", box=None, pad_edge=False)
        for r in self.refused:
            refused.add_row(r.machine, r.what, r.reason)
        self.console.print(machines)
        self.console.print(air)
        self.console.print(updates)
        self.console.print(cuts)
        self.console.print(refused)
        self.console.print()
        kept = self.extra.get("kept")
        for name, value in self.extra.items():
            if name == "kept":
                continue
            self.console.print(f"{name.replace('_', ' ')}: {_told(value)}", markup=False)
        self.console.print("[green]every step was verified[/green]" if self.ok else "[red]not verified[/red]")
        if kept is not None:
            self._tell_kept(kept)

    def _tell_kept(self, kept: dict[str, Any]) -> None:
        """Where everything runs on, as commands to paste: to look, and to end it."""
        tools = Path(sys.executable).parent
        machine = next(iter(kept["machines"].values()))
        print(f"\nServer, machines and cameras run on in {kept['folder']} (also its logs). To look:")
        for tool, rest in (
            ("headland", f"--workspace {quote(kept['workspace'])} device list"),
            ("headland", f"--workspace {quote(kept['workspace'])} rollout status"),
            ("headland-server", f"status --state {quote(kept['server'])}"),
            ("headland-device", f"status --state {quote(machine)}"),
        ):
            print(f"  {quote(str(tools / tool))} {rest}")
        print(f"To end it, and to remove it when all have ended:\n  {kept['stop']}\n  rm -r {quote(kept['folder'])}")


def _told(value: object) -> str:
    """For people: nested facts on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(inner)}" for key, inner in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
