"""`headland-server keys`: the online keys, and their replacement by what the managers sign."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.table import Table
from rich.text import Text

from protocol.errors import HeadlandError, StateError
from server.cli_state import STATE, Opened, opened
from server.clock import as_datetime, system_now_ms
from signing.console import emit, headland_errors, json_option

if TYPE_CHECKING:  # a command that only prints its help loads no keys
    from server.keyring import Keyring, NamedKeys

BY: Final = "by command"
SEALING: Final = "sealing"
ROLES = click.argument("roles", nargs=-1, metavar="[REPOSITORY.ROLE]...")


@click.group()
def keys() -> None:
    """The server's online keys."""


@keys.command()
@STATE
@json_option
@headland_errors
def show(state: Path, *, as_json: bool) -> None:
    """List the online keys: which signs, since when, and which waits for the managers."""
    with opened(state) as at:
        found = _told(at)
    emit(as_json, found, _table(found))


@keys.command()
@STATE
@ROLES
@click.option("--all", "everything", is_flag=True, help="Every online key that is a file here.")
@json_option
@headland_errors
def rotate(state: Path, roles: tuple[str, ...], *, everything: bool, as_json: bool) -> None:
    """Make the next key of these roles, and export its public half in online-keys.json.

    The server goes on with the old keys until the managers have signed and pushed what names the new ones; with that
    very push it switches, and destroys the old ones. Repeating the command changes nothing. `sealing` is the key to
    which machines seal what a stick takes home; of these the old ones are kept.
    """
    from server.founding import export_keys, open_keys
    from server.keyring import NAMES, make_next, next_sealing_key

    with opened(state) as at:
        elsewhere = at.settings.online_keys
        wanted = (*(name for name in NAMES if name not in elsewhere), SEALING) if everything else roles
        if not wanted:
            raise click.UsageError("name roles, such as director.clock, or --all")
        make_next(at.layout.keys, elsewhere, [name for name in wanted if name != SEALING])
        made = [name for name in wanted if name != SEALING]
        if SEALING in wanted and next_sealing_key(at.layout.keys, _named_sealing_key(at)):
            made.append(SEALING)
        export_keys(at.layout, open_keys(at.layout, at.settings, online_secret))
        if made:
            with at.catalog.write() as session:
                session.events.add(system_now_ms(), "online-key-made", what=", ".join(made), detail=BY)
        found = _told(at)
    text = (
        f"next keys wait for {', '.join(wanted)}. A manager runs:\n"
        f"  headland keys rotate --online {at.layout.online_keys}    (or --online-of-server)\n"
        "then the managers sign and push; the server switches with that push"
    )
    emit(as_json, found, text)


@keys.command()
@STATE
@ROLES
@json_option
@headland_errors
def cancel(state: Path, roles: tuple[str, ...], *, as_json: bool) -> None:
    """Destroy next keys that wait, for all roles unless some are named. Not after managers have signed for them."""
    from server.founding import export_keys, open_keys
    from server.keyring import NAMES, drop_next, read_named
    from server.publish import publishing_alone

    with opened(state) as at:
        # In one transaction with the look at what is on offer: a push may be naming the very keys.
        with at.catalog.write() as session:
            publishing_alone(session)
            _demand_unnamed(open_keys(at.layout, at.settings, online_secret), read_named(session), roles or NAMES)
            drop_next(at.layout.keys, roles or NAMES)
            session.events.add(system_now_ms(), "online-key-cancelled", what=", ".join(roles or ("all",)), detail=BY)
        export_keys(at.layout, open_keys(at.layout, at.settings, online_secret))
        found = _told(at)
    emit(as_json, found, _table(found))


def _demand_unnamed(ring: "Keyring", named: "NamedKeys | None", roles: Sequence[str]) -> None:
    """Refuses to lose keys that sign already: a server killed right after the push has yet to put them in place.

    Raises:
        StateError: The metadata on offer names the next key of one.
    """
    waiting = ring.waiting()
    signs = [name for name in roles if named is not None and named.keyids.get(name) == waiting.get(name, "")]
    if signs:
        raise StateError(
            f"the managers have signed for the next key of {', '.join(signs)}, and it is on offer",
            hint="restart the server: it puts that key in the place of the old one; to replace it, rotate once more",
        )


def _told(at: Opened) -> dict[str, Any]:
    from server.founding import open_keys
    from server.keyring import NAMES, read_named

    ring = open_keys(at.layout, at.settings, online_secret)
    waiting, held = ring.waiting(), ring.keyids()
    with at.catalog.read() as session:
        named = read_named(session)
    listed = []
    for name in NAMES:
        repository, _, role = name.partition(".")
        signs = ring[repository][role].public_key.keyid if named is None else named.keyids.get(name, "")
        listed.append(
            {
                "role": name,
                "keyid": signs,
                "since_ms": named.since_ms.get(name) if named is not None else None,
                "here": named is None or signs in held[name],
                "waiting_keyid": waiting.get(name),
            }
        )
    public, *older = ring.sealing_keys()
    signed = _named_sealing_key(at)
    sealing = {
        "public_key": signed if signed is not None else public,
        "here": signed is None or signed in ring.sealing_keys(),
        "waiting_public_key": public if public != signed else None,
        "kept": len(older) + 1,
    }
    return {"keys": listed, "sealing": sealing, "online_keys": str(at.layout.online_keys)}


def _named_sealing_key(at: Opened) -> str | None:
    """The one that the managers have named in what is in force."""
    from tuf.api.metadata import Targets

    from protocol.objects import DirectorTerms
    from server.publish import in_force
    from signing.metadata import parse, terms

    with at.catalog.read() as session:
        published = in_force(session, "director")
    if published is None:
        return None
    return terms(parse(published.targets, Targets, "targets.json").signed, DirectorTerms, "targets.json").sealing_key


def _table(found: dict[str, Any]) -> Table:
    table = Table("role", "signs with", "since", "waits for the managers", title="Online keys")
    for each in found["keys"]:
        since = f"{as_datetime(each['since_ms']):%Y-%m-%d}" if each["since_ms"] is not None else "not published yet"
        signs = Text(each["keyid"][:12])
        if not each["here"]:
            signs.append(", which is not here", style="bold red")
        table.add_row(each["role"], signs, since, (each["waiting_keyid"] or "")[:12])
    sealing = found["sealing"]
    named = Text(sealing["public_key"][:12])
    if not sealing["here"]:
        named.append(", which is not here", style="bold red")
    table.add_row(SEALING, named, f"{sealing['kept']} kept", (sealing["waiting_public_key"] or "")[:12])
    return table


def online_secret(name: str) -> str:
    """For online keys that need one (a PIN): a process without a person takes it from its environment."""
    value = os.environ.get("HEADLAND_ONLINE_KEY_SECRET")
    if value is None:
        raise HeadlandError(f"an online key asks for its {name}", hint="set HEADLAND_ONLINE_KEY_SECRET")
    return value
