"""Fuzzes the applier of patches with atheris, guided by what of its code the cases reach.

Whatever the bytes, applying them writes as many bytes as they say, or refuses: another exception, a read outside of the
base, or a case that takes longer than any honest one ends the run and leaves the case behind. The first byte of a case
tells what it is:

- up to 149: a group against one of the small bases, damaged by its parts or byte by byte;
- 150 to 179: a patch file, with or without index and envelope, as `scripts/delta apply` reads it;
- from 180 on: choices. The applier's own models are run over writers that take from these bytes what they write, so
  that the entropy coders come out even and what lies behind them is reached.

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
MOST_SECONDS = 30  # of processor time for one case: these are small
FILES, CHOICES = 150, 180  # first bytes
CHOICE_BYTES = 400
CHOSEN = 200  # cases of choices to begin with
# Of the whole process: its instrumentation keeps some 75 KiB a case. Memory for each group has a test of its own.
MOST_MIB = 8192


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

    with atheris.instrument_imports(include=["protocol", "server.delta.applying"], enable_loader_override=False):
        import server.delta.applying  # noqa: F401  (imported to be instrumented, with all of the codec)
    from tests.unit.protocol.delta.chosen_groups import Told, chosen_group, mixed_base
    from tests.unit.protocol.delta.hostile_groups import damaged, outcome, seeds
    from tests.unit.server.delta.hostile_files import file_outcome, file_seeds

    known, files = seeds(), file_seeds()

    def run(data: bytes) -> None:
        kind, rest = data[0], data[1:]
        if kind >= CHOICES:
            outcome(chosen_group(Told(rest)), mixed_base())
        elif kind >= FILES:
            file_outcome(rest, files[(kind - FILES) % len(files)])
        else:
            outcome(rest, known[kind % len(known)].base)

    def one(data: bytes) -> None:
        """Runs a case; processor time, for the machine may be busy with other things."""
        began = time.process_time()
        if data:
            run(data)
        assert time.process_time() - began < MOST_SECONDS

    if args.case:
        one(args.case.read_bytes())
        return

    def change(data: bytes, most: int, seed: int) -> bytes:
        """Half of the time by the parts of the group, so that what lies behind its lengths is reached."""
        if len(data) > 1 and data[0] < FILES and seed % 2:
            try:
                return (data[:1] + damaged(data[1:], random.Random(seed)))[:most]
            except Exception:  # what is no group any more is changed byte by byte
                pass
        if data and data[0] >= CHOICES and seed % 8 == 1:
            return (data[:1] + random.Random(seed).randbytes(CHOICE_BYTES))[:most]
        return bytes(atheris.Mutate(data, most))

    cases, failed = args.corpus / "cases", args.corpus / "failed"
    for folder in (cases, failed):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(known):
        (cases / f"seed-{number}").write_bytes(bytes([number]) + seed.group)
    for number, file in enumerate(files):
        (cases / f"file-{number}").write_bytes(bytes([FILES + number]) + file.patch)
    chance = random.Random(args.seed)
    for number in range(CHOSEN):
        (cases / f"chosen-{number}").write_bytes(bytes([CHOICES]) + chance.randbytes(CHOICE_BYTES))
    count = len(known) + len(files) + CHOSEN
    print(f"seed {args.seed}, {args.seconds} s, {count} cases to begin with", flush=True)
    options = [
        f"-max_total_time={args.seconds}",
        f"-seed={args.seed % (1 << 32)}",
        f"-timeout={20 * MOST_SECONDS}",  # by the clock on the wall
        f"-report_slow_units={20 * MOST_SECONDS}",
        f"-rss_limit_mb={MOST_MIB}",
        f"-artifact_prefix={failed}/",
        "-max_len=65536",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(cases)], one, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
