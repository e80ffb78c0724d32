"""`headland-device kit`: field kits, asked of the running agent."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from rich.progress import BarColumn, Progress, TextColumn

from device.desk.client import ask
from device.kits.exporting import ExportsShown
from device.kits.forcing import Challenge, Forced
from device.kits.shown import KitShown, KitsShown, KitState
from device.layout import Layout
from device.shown import kits_table
from device.state_option import state_option
from device.status import UpdateNow, read_agent_status
from device.update.states import State
from protocol.errors import HeadlandError, LinkError, Reason, Refused, StateError
from protocol.kits import FORCE_CONTEXT, KIT_FILE, KITS_FOLDER, RESULTS_FOLDER, ForceRequest, is_kit
from protocol.messages import SignedForce
from protocol.wire import encode
from signing.console import emit, headland_errors, json_option, progress_console

LOOK_S: Final = 0.5
RESTS_AFTER: Final = 6  # looks at which it waits for its time: a force takes a moment to show
GOES_ON: Final = frozenset({KitState.READING, KitState.APPLYING, KitState.WAITING})
STICKS_FAULT: Final = frozenset({KitState.UNREADABLE, KitState.DAMAGED})
NOTHING_TO_DO: Final = frozenset({KitState.OLDER, KitState.PASSED_OVER, KitState.OFFERED})
INTERRUPTED: Final = 130
NO_STICK: Final = "No stick with a kit is plugged in. A folder elsewhere: headland-device kit apply FOLDER"
GOES_ON_ALONE: Final = "It goes on without this command: headland-device status shows it."


NEW_KEY: Final = "a new one that the managers list: `headland technicians add NAME --key FILE.pub`"


@click.group()
def kit() -> None:
    """Field kits on sticks that are plugged in here."""


@kit.command("list")
@state_option
@json_option
@headland_errors
def list_kits(state: Path, as_json: bool) -> None:
    """Every kit that the agent found, and what became of it."""
    found = ask(_socket(state), "POST", "/api/kits/look", KitsShown)
    is_some = found.kits or found.troubles or found.results
    emit(as_json, found, kits_table(found) if is_some else NO_STICK)


@kit.command()
@state_option
@click.argument("what", metavar="[KIT|PATH]", default="")
@click.option("--force", is_flag=True, help="Skip window, date, and the signals that the managers let you skip.")
@click.option(
    "--technician",
    "keyfile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Your key file: who forces signs.",
)
@click.option("--as", "name", default="", help="Your name in the list of technicians; else the key file's.")
@click.option("--reason", default="", help="Why it is forced; the managers read it.")
@click.option(
    "--passphrase-file",
    envvar="HEADLAND_PASSPHRASE_FILE",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="For programs: its first line is the passphrase. People are asked.",
)
@click.option("--wait/--no-wait", default=True, help="Stay until it is installed, is refused, or waits for its time.")
@json_option
@headland_errors
def apply(
    state: Path,
    what: str,
    *,
    force: bool,
    keyfile: Path | None,
    name: str,
    reason: str,
    passphrase_file: Path | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Install a kit: by its name, or from a folder; without either the only one there is.

    Exit code 0: installed, or it waits for its time (with --no-wait: under way); 4: refused, and why; 5: the stick
    cannot be read, or files on it are damaged; 6: nothing to do, or no agent runs. Ctrl-C leaves it going.
    """
    if force and (keyfile is None or not reason):
        raise StateError("to force takes --technician KEYFILE and --reason TEXT")
    if not force and (keyfile is not None or reason):
        raise StateError("--technician and --reason are for --force")
    socket = _socket(state)
    chosen = _choose(socket, what)
    if keyfile is not None:
        name = name or keyfile.name.split(".")[0]
        _force(socket, chosen.kit, keyfile, name=name, reason=reason, passphrase_file=passphrase_file)
        chosen = _shown(ask(socket, "GET", "/api/kits", KitsShown), chosen.kit)
    else:
        chosen = ask(socket, "POST", f"/api/kits/{chosen.kit}/apply", KitShown)
    if wait and chosen.state in GOES_ON:
        chosen = _watch(socket, Layout(state.absolute()), chosen)
    _check(chosen)
    emit(as_json, chosen, f"{chosen.kit}: {chosen.sentence}.")
    if wait and chosen.state in GOES_ON and not as_json:
        click.echo(GOES_ON_ALONE)


@kit.command()
@state_option
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path), required=False)
@json_option
@headland_errors
def export(state: Path, path: Path | None, as_json: bool) -> None:
    """Write results, and what was installed, to the sticks that are plugged in, or to the folder PATH.

    All stays here until the server has it: again after a failure, or to another stick, loses and doubles nothing. Exit
    code 0: all that waits is there; 5: the stick is gone, or fails; 6: it is full or read-only, there is none, or the
    managers named no key to seal to.
    """
    if path is not None:
        path = path.resolve()
        path = path.parent if path.name in (KITS_FOLDER, RESULTS_FOLDER) else path
    found = ask(_socket(state), "POST", "/api/export", ExportsShown, {"path": str(path or "")})
    ends = {one.exported.end for one in found.sticks}
    if "gone" in ends:
        raise LinkError(found.sentence, hint="plug the stick in again")
    if ends != {"complete"}:
        raise StateError(found.sentence)
    emit(as_json, found, found.sentence)


def _socket(state: Path) -> Path:
    return Layout(state.absolute()).desk


def _choose(socket: Path, what: str) -> KitShown:
    """The kit that a person means."""
    if what and ("/" in what or not is_kit(what)):
        path = Path(what).resolve()
        if (path / KIT_FILE).exists():
            what, path = path.name, path.parent.parent
        else:
            what = ""
            path = path.parent if path.name == KITS_FOLDER else path
        found = ask(socket, "POST", "/api/kits/look", KitsShown, {"path": str(path)})
        kits = [one for one in found.kits if str(path) in one.sticks and what in ("", one.kit)]
        where = str(path)
    else:
        found = ask(socket, "POST", "/api/kits/look", KitsShown, {})
        kits = [one for one in found.kits if what in ("", one.kit)]
        where = what or "any stick"
    able = [one for one in kits if one.can_apply or one.state in GOES_ON] or kits
    names = {one.kit for one in able}
    if len(names) == 1:
        return able[0]
    if names:
        raise StateError(f"several kits could be meant: {', '.join(sorted(names))}", hint="name one")
    troubles = "; ".join(found.troubles)
    raise StateError(
        f"there is no kit at {where}" + (f": {troubles}" if troubles else ""),
        hint="plug the stick in, or name the folder that holds headland-kits",
    )


def _shown(found: KitsShown, kit: str) -> KitShown:
    for one in sorted((one for one in found.kits if one.kit == kit), key=lambda one: one.state not in GOES_ON):
        return one
    raise LinkError(f"{kit} is not there any more", hint="plug the stick in again")


def _force(socket: Path, offer: str, keyfile: Path, *, name: str, reason: str, passphrase_file: Path | None) -> None:
    challenge = ask(socket, "POST", "/api/force/challenge", Challenge, {"offer": offer})
    request = ForceRequest(
        id=challenge.id,
        device=challenge.device,
        product=challenge.product,
        offer=challenge.offer,
        release=challenge.release,
        manifest=challenge.manifest,
        technician=name,
        reason=reason,
        at_ms=challenge.at_ms,
    )
    ask(socket, "POST", "/api/force", Forced, sign_force(request, keyfile, _passphrase(keyfile, passphrase_file)))


def sign_force(request: ForceRequest, keyfile: Path, passphrase: str) -> SignedForce:
    """Signs with a technician's encrypted key file.

    Raises:
        StateError: The passphrase is wrong.
        Refused: It is no key file.
    """
    from signing.keyfile import open_key_file, public_key_of

    signer = open_key_file(keyfile.read_bytes(), public_key_of(keyfile), passphrase, str(keyfile), NEW_KEY)
    text = encode(request).decode()
    return SignedForce(request=text, signature=signer.sign(FORCE_CONTEXT + text.encode()).signature)


def _passphrase(keyfile: Path, file: Path | None) -> str:
    """From a file for programs, or the person."""
    from signing.sealed_file import passphrase_in

    if file is not None:
        return passphrase_in(file)
    answer: str = click.prompt(f"passphrase of {keyfile.name}", hide_input=True, err=True)
    return answer


def _watch(socket: Path, layout: Layout, chosen: KitShown) -> KitShown:
    """Shows how far it is until it ended, or waits for what may take days: a window, a date, a signal."""
    rests = 0
    try:
        with _bar() as bar:
            while chosen.state in GOES_ON and rests < RESTS_AFTER:
                account = read_agent_status(layout.status)
                update = account.update if account is not None else None
                bar.show(chosen.sentence, update)
                is_at_rest = update is not None and update.state == State.WAIT.value and update.offer == chosen.kit
                rests = rests + 1 if is_at_rest else 0
                time.sleep(LOOK_S)
                chosen = _shown(ask(socket, "GET", "/api/kits", KitsShown), chosen.kit)
    except KeyboardInterrupt:
        click.echo(GOES_ON_ALONE, err=True)
        sys.exit(INTERRUPTED)
    return chosen


class _Bar:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def show(self, sentence: str, update: UpdateNow | None) -> None:
        done, total = 0.0, None
        if update is not None and update.state == "fetch" and update.bytes_total:
            done, total = float(update.bytes_done), float(update.bytes_total)
        elif update is not None and update.healthy_of_s:
            done, total = update.healthy_s, update.healthy_of_s
        state = update.state if update is not None else ""
        self._progress.update(self._task, description=f"{sentence} ({state})", completed=done, total=total)


@contextlib.contextmanager
def _bar() -> Iterator[_Bar]:
    columns = (TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=progress_console(), disable=not os.isatty(2)) as progress:
        yield _Bar(progress)


def _check(chosen: KitShown) -> None:
    """Ends the command with the code that the state stands for; see `apply`."""
    if chosen.state is KitState.INSTALLED or chosen.state in GOES_ON:
        return
    error: HeadlandError
    if chosen.state in STICKS_FAULT:
        error = LinkError(f"{chosen.kit}: {chosen.sentence}", hint=chosen.hint)
    elif chosen.state in NOTHING_TO_DO:
        error = StateError(f"{chosen.kit}: {chosen.sentence}", hint=chosen.hint)
    else:
        error = Refused(
            REASONS.get(chosen.state, Reason.METADATA), f"{chosen.kit}: {chosen.sentence}", hint=chosen.hint
        )
    raise error


REASONS: Final = {
    KitState.EXPIRED: Reason.EXPIRED,
    KitState.OTHER_PRODUCT: Reason.WRONG_PRODUCT,
    KitState.OTHER_MACHINE: Reason.WRONG_DEVICE,
    KitState.OTHER_HARDWARE: Reason.WRONG_HARDWARE,
    KitState.DELISTED: Reason.DELISTED,
    KitState.REFUSED_HERE: Reason.REFUSED_BEFORE,
}
