"""How a process of ours starts another one."""

import sys


def python_command(module: str) -> tuple[str, ...]:
    """Runs a module of ours, and never one of its name that lies where a person happens to stand: on a stick, say.

    `-m` alone puts the working folder before all else on the import path
    (https://docs.python.org/3/using/cmdline.html#cmdoption-P).
    """
    return (sys.executable, "-P", "-m", module)
