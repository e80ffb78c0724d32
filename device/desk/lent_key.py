"""A technician's key, lent by a browser for one signature: opened in a process of its own, which forgets it.

A phone in a cab has no program of ours, and browsers keep their cryptography from pages that come over plain HTTP. So
the page sends the key file and its passphrase, and they are used here for this one request. Who will not lend a key to
a machine uses the command there: `headland-device kit apply --force`.

`python -m device.desk.lent_key` reads a `Lent` from standard input and writes a `SignedForce`, or an `ErrorAnswer` and
ends with 1. Opening a key takes 128 MiB, which the agent must not keep.
"""

import asyncio
import contextlib
import os
import resource
import sys
from typing import Annotated, Final

import msgspec

from device.kits.forcing import Challenge
from protocol import limits
from protocol.errors import HeadlandError, LinkError, Reason, Refused, StateError
from protocol.ids import Name
from protocol.kits import FORCE_CONTEXT, ForceRequest, Reasoned
from protocol.messages import ErrorAnswer, SignedForce
from protocol.wire import Message, decode, encode
from signing.child import python_command

KEY_BYTES: Final = 16 * limits.KIB
LENT_BYTES: Final = limits.MIB
MEMORY_BYTES: Final = 768 * limits.MIB  # of addresses; a key file could ask for more than the machine has
ANSWER_S: Final = 60.0


class KeyLent(Message):
    """`POST /api/force/with-key`: what a browser sends."""

    offer: Name
    key: Annotated[str, msgspec.Meta(max_length=KEY_BYTES)]
    passphrase: Annotated[str, msgspec.Meta(max_length=1024)]
    reason: Reasoned


class Lent(Message):
    """To the process. `names` are the technicians' by their public keys."""

    challenge: Challenge
    key: str
    passphrase: str
    reason: str
    names: dict[str, Name]


async def sign(lent: Lent) -> SignedForce:
    """Has the request signed with the lent key.

    Raises:
        StateError: The passphrase is wrong.
        Refused: It is no key file, or nobody's that is listed.
        LinkError: The process ended, or took too long.
    """
    child = await asyncio.create_subprocess_exec(
        *python_command("device.desk.lent_key"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(ANSWER_S):
            said, _ = await child.communicate(encode(lent))
    except TimeoutError as error:
        raise LinkError("opening the key takes too long here") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    if child.returncode == 0:
        return decode(said, SignedForce, limit=LENT_BYTES)
    try:
        why = decode(said, ErrorAnswer, limit=LENT_BYTES)
    except Refused as error:
        raise LinkError("the key could not be opened: this machine has too little memory for it now") from error
    if why.reason:
        raise Refused(Reason(why.reason), why.error, hint=why.hint)
    raise StateError(why.error, hint=why.hint)


def main() -> int:
    """As the module says."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        try:
            answer: Message = _sign(decode(sys.stdin.buffer.read(LENT_BYTES + 1), Lent, limit=LENT_BYTES))
        except HeadlandError as error:
            reason = error.reason.value if isinstance(error, Refused) else ""
            answer = ErrorAnswer(error=error.message, reason=reason, hint=error.hint)
        out.write(encode(answer))
    return int(isinstance(answer, ErrorAnswer))


def _sign(lent: Lent) -> SignedForce:
    from signing.keyfile import open_key_file, read_public

    data = lent.key.encode()
    public = read_public(data, "the key file")
    name = lent.names.get(str(public.keyval.get("public", "")))
    if name is None:
        raise Refused(
            Reason.SIGNATURE,
            "this key is of nobody in the list of technicians that this machine has",
            hint="a newer kit, or a contact, brings the newest list",
        )
    signer = open_key_file(data, public, lent.passphrase, "the key file")
    asked = lent.challenge
    request = ForceRequest(
        id=asked.id,
        device=asked.device,
        product=asked.product,
        offer=asked.offer,
        release=asked.release,
        manifest=asked.manifest,
        technician=name,
        reason=lent.reason,
        at_ms=asked.at_ms,
    )
    text = encode(request).decode()
    return SignedForce(request=text, signature=signer.sign(FORCE_CONTEXT + text.encode()).signature)


if __name__ == "__main__":
    sys.exit(main())
