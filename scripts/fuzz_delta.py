"""Fuzzes the applier of patches with atheris, guided by what of its code the damaged groups reach.

Whatever the bytes of a group, applying it writes as many bytes as its header says, or refuses: another exception, a
read outside of the base, or a group that takes longer than any honest one ends the run and leaves the case behind.

    .venv/bin/python scripts/fuzz_delta.py --seconds 3600 --corpus FOLDER

It installs atheris in an environment of its own inside FOLDER, and keeps there what it found worth going on with
(`cases/`) and what failed (`failed/`). `--case FILE` runs one case again. Not a part of scripts/test.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
ATHERIS = "atheris==3.0.0"
MOST_SECONDS = 60  # of one case: an honest group of full size takes less
MOST_MIB = 2048  # of the whole process with its instrumentation; memory for each group has a test of its own


def main() -> None:
    """Starts itself again where atheris is, and then fuzzes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="how long (default: %(default)s)")
    parser.add_argument("--corpus", type=Path, required=True, help="folder for cases, failures and the environment")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the choices (default: the clock)")
    parser.add_argument("--case", type=Path, help="run this one case again")
    args = parser.parse_args()
    inside = args.corpus / "environment" / "bin" / "python"
    if Path(sys.prefix).resolve() != inside.parent.parent.resolve():
        _set_up(inside)
        os.execv(inside, [str(inside), str(Path(__file__).resolve()), *sys.argv[1:], "--seed", str(args.seed)])
    _fuzz(args)


def _set_up(python: Path) -> None:
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
    needed = [ATHERIS, "msgspec", "numpy", "zstandard"]
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *needed], check=True)


def _fuzz(args: argparse.Namespace) -> None:
    import atheris  # only there in the environment of this script

    with atheris.instrument_imports(include=["protocol"], enable_loader_override=False):
        import protocol.delta.apply  # noqa: F401  (imported to be instrumented)
    from tests.unit.protocol.delta.hostile_groups import damaged, outcome, seeds

    known = seeds()
    if args.case:
        data = args.case.read_bytes()
        print(outcome(data[1:], known[data[0] % len(known)].base))
        return

    def one(data: bytes) -> None:
        """The first byte tells the base, the others are the group."""
        if data:
            outcome(data[1:], known[data[0] % len(known)].base)

    def change(data: bytes, most: int, seed: int) -> bytes:
        """Half of the time by the parts of the group, so that what lies behind its lengths is reached."""
        if len(data) > 1 and seed % 2:
            try:
                return (data[:1] + damaged(data[1:], random.Random(seed)))[:most]
            except Exception:  # what is no group any more is changed byte by byte
                pass
        return bytes(atheris.Mutate(data, most))

    cases, failed = args.corpus / "cases", args.corpus / "failed"
    for folder in (cases, failed):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(known):
        (cases / f"seed-{number}").write_bytes(bytes([number]) + seed.group)
    print(f"seed {args.seed}, {args.seconds} s, {len(known)} groups to begin with", flush=True)
    options = [
        f"-max_total_time={args.seconds}",
        f"-seed={args.seed % (1 << 32)}",
        f"-timeout={MOST_SECONDS}",
        f"-rss_limit_mb={MOST_MIB}",
        f"-artifact_prefix={failed}/",
        "-max_len=65536",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(cases)], one, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
