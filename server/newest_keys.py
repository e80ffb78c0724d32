"""Keys go back with no restore: of the catalog an older moment may be wanted, of the CA and the online keys never.

A machine that enrolled after a rotation of the CA trusts the new CA only: a server without it is no server to it, and
somebody has to go there. So `ca/` comes from the newest set in which it goes on from the one that the chosen set has.
Online keys that are newer there are laid beside the older ones as next keys: the metadata decides which of the two
signs, as ever (`server.keyring`). Of the keys that open sealed results all are kept. Pure.
"""

from collections.abc import Mapping

from protocol import limits
from protocol.errors import Refused
from protocol.wire import decode
from server import sealing_keys
from server.authorities import RECORD, Record
from server.keyring import NAMES

State = Mapping[str, bytes]
"""The files of a state folder by path, as `ca/ca.key`."""


def goes_on(chosen: State, newer: State) -> bool:
    """Whether the CA of `newer` is that of `chosen`, or a successor of it."""
    ours, theirs = _generations(chosen), _generations(newer)
    return bool(ours) and theirs[-len(ours) :] == ours


def with_newest(chosen: State, newer: State) -> dict[str, bytes]:
    """The files of `chosen` with the CA and the online keys of `newer`, which must go on from it."""
    found = {path: data for path, data in chosen.items() if not path.startswith("ca/")}
    found |= {path: data for path, data in newer.items() if path.startswith("ca/")}
    for name in NAMES:
        key, following = f"keys/{name}.pem", f"keys/{name}.next.pem"
        if key in chosen and newer.get(key, chosen[key]) != chosen[key]:
            found[following] = newer[key]
        elif key in chosen and following in newer:
            found[following] = newer[following]
    sealing = {path for path in newer if path.startswith("keys/") and sealing_keys.FILE.match(path[5:])}
    return found | {path: newer[path] for path in sealing - set(found)}


def _generations(state: State) -> tuple[str, ...]:
    try:
        record = decode(state.get(f"ca/{RECORD}", b""), Record, limit=limits.MIB)
    except Refused:
        return ()
    return tuple(each.pem for each in record.generations)
