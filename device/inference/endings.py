"""How a process ended, in words and as evidence."""

import signal

from protocol.errors import Reason


def ending_of(returncode: int) -> str:
    """`SIGSEGV` for a signal, `exit 1` for a code."""
    if returncode < 0:
        try:
            return signal.Signals(-returncode).name
        except ValueError:
            return f"signal {-returncode}"
    return f"exit {returncode}"


def reason_of(returncode: int) -> Reason:
    """What an ending is evidence of.

    SIGKILL that we did not send is the kernel's, out of memory; SIGXCPU is the limit on processor time. Everything
    else, exit codes too, is a crash.
    """
    if returncode in (-signal.SIGKILL, -signal.SIGXCPU):
        return Reason.BOUNDS
    return Reason.MODEL_CRASH
