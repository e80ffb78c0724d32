"""`python -m device.transfer.patch_child BASE AGENT_PID`: applies groups for the agent, in a process that may die.

It writes no file: what it makes goes back over its output. It runs below the agent and the workers; its address space
is bounded by what the codec promises, its processor time by what the patch gives.
"""

import os
import sys
from pathlib import Path
from typing import Final

from device.inference.rlimits import confine, die_with
from device.transfer.allowance import Allowance
from device.transfer.applier import FileBase
from device.transfer.patch_wire import DONE, NO_MEMORY, OUTPUT, READY, REFUSED, TROUBLE, Verdict, receive, send
from protocol.errors import HeadlandError, Reason, Refused
from protocol.limits import PATCH_MEMORY_MIB
from protocol.wire import encode

NICENESS: Final = 10
SLACK_MIB: Final = 32  # address space that is mapped and not used, and the allocator's holes
BOUND_MIB: Final = PATCH_MEMORY_MIB + SLACK_MIB
MESSAGE_CHARACTERS: Final = 1000
MEMORY: Final = Path("/proc/meminfo")
OVERCOMMIT: Final = Path("/proc/sys/vm/overcommit_memory")
NEVER: Final = "2"  # of overcommit: what is mapped must be there


def main(arguments: list[str]) -> int:
    """Serves one agent until it closes our input."""
    path, agent = Path(arguments[0]), int(arguments[1])
    die_with(agent)
    os.nice(NICENESS)
    try:
        return _serve(path)
    except MemoryError:
        if lacks_memory(BOUND_MIB):
            return NO_MEMORY
        raise


def _serve(path: Path) -> int:
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    from protocol.delta import apply, patch

    confine(memory_mib=PATCH_MEMORY_MIB, cpu_s=None, slack_mib=SLACK_MIB)
    allowance = Allowance()

    def write(data: bytes) -> None:
        with allowance.sending():
            send(answers, OUTPUT, data)

    with FileBase(path) as base:
        send(answers, READY)
        while (request := receive(requests)) is not None:
            offset, group = request
            try:
                with allowance.spent_on(patch.read_group_header(group)):
                    apply.apply_group(group, base, offset, write)
            except Refused as refused:
                send(answers, REFUSED, encode(Verdict(reason=refused.reason, message=_short(refused.message))))
            except BrokenPipeError:
                return 0
            except (OSError, ImportError, HeadlandError) as error:
                send(answers, TROUBLE, _short(str(error)).encode())
            except Exception as error:
                if isinstance(error, MemoryError) and lacks_memory(BOUND_MIB):
                    return NO_MEMORY
                # What a decoder did not foresee, such as memory beyond its bound, comes again with the same bytes.
                message = _short(f"{type(error).__name__}: {error}")
                send(answers, REFUSED, encode(Verdict(reason=Reason.LIMIT, message=message)))
            else:
                send(answers, DONE)
    return 0


def lacks_memory(need_mib: int) -> bool:
    """Whether the machine has less memory left than a patch may take: then a process that got none is no evidence.

    A patch that asks for more than its bound gets none on a machine that has plenty.
    """
    try:
        lines = (line.partition(":") for line in MEMORY.read_text(encoding="ascii").splitlines())
        kib = {name: int(rest.split()[0]) for name, _, rest in lines}
        left = kib["MemAvailable"] + kib["SwapFree"]
        if OVERCOMMIT.read_text(encoding="ascii").strip() == NEVER:
            left = min(left, kib["CommitLimit"] - kib["Committed_AS"])
    except (OSError, KeyError, ValueError, IndexError):
        return False
    return left < need_mib * 1024


def _short(message: str) -> str:
    return message[:MESSAGE_CHARACTERS]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
