"""`python -m device.transfer.patch_child BASE AGENT_PID`: applies groups for the agent, in a process that may die.

It writes no file: what it makes goes back over its output. It runs below the agent and the workers, and its address
space is bounded by what the codec promises.
"""

import os
import sys
from pathlib import Path
from typing import Final

from device.inference.rlimits import confine, die_with
from device.transfer.applier import FileBase
from device.transfer.patch_wire import DONE, OUTPUT, READY, REFUSED, TROUBLE, Verdict, receive, send
from protocol.errors import HeadlandError, Reason, Refused
from protocol.limits import PATCH_MEMORY_MIB
from protocol.wire import encode

NICENESS: Final = 10
SLACK_MIB: Final = 32  # address space that is mapped and not used, and the allocator's holes
MESSAGE_CHARACTERS: Final = 1000


def main(arguments: list[str]) -> int:
    """Serves one agent until it closes our input."""
    path, agent = Path(arguments[0]), int(arguments[1])
    die_with(agent)
    os.nice(NICENESS)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    from protocol.delta import apply

    confine(memory_mib=PATCH_MEMORY_MIB, cpu_s=None, slack_mib=SLACK_MIB)
    with FileBase(path) as base:
        send(answers, READY)
        while (request := receive(requests)) is not None:
            offset, group = request
            try:
                apply.apply_group(group, base, offset, lambda data: send(answers, OUTPUT, data))
            except Refused as refused:
                send(answers, REFUSED, encode(Verdict(reason=refused.reason, message=_short(refused.message))))
            except BrokenPipeError:
                return 0
            except (OSError, HeadlandError) as error:
                send(answers, TROUBLE, _short(str(error)).encode())
            except Exception as error:
                # What a decoder did not foresee, such as memory beyond its bound, comes again with the same bytes.
                message = _short(f"{type(error).__name__}: {error}")
                send(answers, REFUSED, encode(Verdict(reason=Reason.LIMIT, message=message)))
            else:
                send(answers, DONE)
    return 0


def _short(message: str) -> str:
    return message[:MESSAGE_CHARACTERS]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
