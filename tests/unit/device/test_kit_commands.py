"""`headland-device kit apply`: how long it stays, what it says, and its exit codes."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.progress import Progress

from device import kit_commands
from device.cli import main
from device.kits.shown import KitShown, KitsShown, KitState
from device.layout import Layout
from device.status import AgentStatus, UpdateNow, write_status
from device.update.states import State

NAME = "kit-pest-detector-20261124-0001"
APPLYING = KitShown(
    kit=NAME, sticks=("/media/stick",), state=KitState.APPLYING, sentence="release 1.1.0 is being installed"
)


def became(state: KitState, sentence: str) -> KitShown:
    return KitShown(kit=NAME, sticks=("/media/stick",), state=state, sentence=sentence)


class Desk:
    """Answers as an agent's desk does, with the states that are given, one for each look; the last one stays."""

    def __init__(self, layout: Layout, looks: Sequence[tuple[KitShown, UpdateNow]]) -> None:
        self.layout = layout
        self.looks = list(looks)
        self.asked = 0

    def ask(self, socket: Path, method: str, path: str, answer: type, body: object = None) -> object:
        shown, update = self.looks[min(self.asked, len(self.looks) - 1)]
        write_status(
            self.layout.status,
            AgentStatus(pid=1, agent="0.1.0", started_ms=0, at_ms=0, sure_of_time=True, update=update),
        )
        if path == "/api/kits":
            self.asked += 1
        return shown if answer is KitShown else KitsShown(kits=(shown,))


def apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *looks: tuple[KitShown, UpdateNow], more: tuple[str, ...] = ()
) -> tuple[Result, Desk]:
    layout = Layout(tmp_path)
    layout.status.parent.mkdir(parents=True)
    desk = Desk(layout, looks)
    monkeypatch.setattr(kit_commands, "ask", desk.ask)
    monkeypatch.setattr(kit_commands, "LOOK_S", 0.0)
    return CliRunner().invoke(main, ["kit", "apply", NAME, "--state", str(tmp_path), *more]), desk


def update(state: State, offer: str = NAME) -> UpdateNow:
    return UpdateNow(state=state.value, offer=offer)


def test_it_stays_until_the_release_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, desk = apply(
        tmp_path,
        monkeypatch,
        *[(APPLYING, update(State.FETCH))] * 20,
        *[(APPLYING, update(State.WAIT))] * 2,  # a moment, as before a force shows
        *[(APPLYING, update(State.TRIAL))] * 20,
        (became(KitState.INSTALLED, "release 1.1.0 of it runs here"), update(State.IDLE, "")),
    )
    assert (result.exit_code, result.stdout) == (0, f"{NAME}: release 1.1.0 of it runs here.\n")
    assert desk.asked == 43


def test_what_waits_for_its_time_is_left_to_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = became(KitState.APPLYING, "release 1.1.0 is being installed; it waits: window: 02:00 to 02:30 UTC")
    result, desk = apply(tmp_path, monkeypatch, (APPLYING, update(State.FETCH)), (waits, update(State.WAIT)))
    assert result.exit_code == 0
    assert "it waits: window: 02:00 to 02:30 UTC" in result.stdout
    assert "It goes on without this command" in result.stdout
    assert desk.asked < 20


def test_a_program_gets_one_object_also_of_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = apply(tmp_path, monkeypatch, (APPLYING, update(State.WAIT)), more=("--json",))
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert '"state":"applying"' in result.stdout.replace(" ", "")


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (KitState.INSTALLED, 0),
        (KitState.REFUSED, 4),
        (KitState.EXPIRED, 4),
        (KitState.OTHER_HARDWARE, 4),
        (KitState.REFUSED_HERE, 4),
        (KitState.UNREADABLE, 5),
        (KitState.DAMAGED, 5),
        (KitState.OLDER, 6),
        (KitState.PASSED_OVER, 6),
    ],
)
def test_the_exit_code_says_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: KitState, code: int
) -> None:
    result, _ = apply(
        tmp_path,
        monkeypatch,
        (APPLYING, update(State.FETCH)),
        (became(state, "so it ended"), update(State.IDLE, "")),
    )
    assert result.exit_code == code
    assert "so it ended" in result.output


def test_ctrl_c_leaves_it_going(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kit_commands.time, "sleep", interrupt)
    result, _ = apply(tmp_path, monkeypatch, (APPLYING, update(State.FETCH)))
    assert result.exit_code == 130
    assert "It goes on without this command" in result.stderr


@pytest.mark.parametrize(
    ("update", "shown"),
    [
        (UpdateNow(state="fetch", offer=NAME, bytes_done=3, bytes_total=12), (3.0, 12.0, "reads (fetch)")),
        (UpdateNow(state="trial", offer=NAME, healthy_s=2.5, healthy_of_s=4.0), (2.5, 4.0, "reads (trial)")),
        (UpdateNow(state="check", offer=NAME), (0.0, None, "reads (check)")),
        (None, (0.0, None, "reads ()")),
    ],
)
def test_the_bar_follows_what_is_read_and_then_the_trial(
    update: UpdateNow | None, shown: tuple[float, float | None, str]
) -> None:
    progress = Progress()
    kit_commands._Bar(progress).show("reads", update)
    (task,) = progress.tasks
    assert (task.completed, task.total, task.description) == shown
