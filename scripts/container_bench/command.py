"""Measures container updates, beside pulls of the same images from a registry, on this computer in one run.

    scripts/bench_containers.py              about ten minutes and 3 GB of disk; needs root, for two private engines
    scripts/bench_containers.py --rate 250   links of 250 kB/s instead of 1,000

One application's image goes through three updates: one file of the application, a dependency in its Python layer,
security updates in its Debian base. Headland's side is a real server and a real agent with a Docker engine; the peer is
`docker pull` by another engine of the same kind from a real registry (Debian's `docker-registry`), whose layers are
compressed by gzip as `docker push` does. Both come over a proxy that counts every byte and caps the rate. Bytes are
those on the wire, both ways, with all that belongs to it: for Headland TLS, contacts, signed metadata and the trial.
Seconds are from the first byte until the image can be run. Patches are made ahead, by the server, and take none.

Exit code 0: measured; 1: something failed; 2: usage; 77: no engine can run here, or no registry.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scripts.cast import CastError
from scripts.container_bench.layers import make_versions
from scripts.container_bench.ours import Ours, Updated, empty
from scripts.container_bench.registry import Pulled, pull, push, registry
from scripts.delta_bench.layers import UnavailableError
from scripts.demo_apps.images import Image, write_archive, write_layout

SCRIPTS = Path(__file__).resolve().parent.parent
CACHE = Path.home() / ".cache" / "headland" / "container-bench"
CANNOT = 77
NEEDS = ("docker-registry", "skopeo")  # Docker itself comes with scripts/engine


@dataclass(frozen=True)
class Line:
    """One update, both ways."""

    what: str
    ours: Updated
    pull: Pulled


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench_containers.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rate", type=float, default=1000.0, metavar="KB/S", help="of both links; 0 does not limit")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where layers are kept from one run to the next")
    parser.add_argument("--json", action="store_true", help="print one JSON object for a program")
    options = parser.parse_args(arguments)
    told = Console(stderr=True)

    def say(text: str) -> None:
        told.print(f"  {text}", style="dim", markup=False, highlight=False)

    missing = [name for name in NEEDS if shutil.which(name) is None]
    if missing:
        told.print(f"not installed: {', '.join(missing)} (scripts/test-setup installs them)", markup=False)
        return CANNOT
    try:
        lines = _measure(options.cache, options.rate * 1000 or None, say)
    except (UnavailableError, CastError) as error:
        told.print(f"error: {error}", markup=False)
        return 1
    except subprocess.CalledProcessError as error:
        words = (error.stderr or b"").decode(errors="replace") if isinstance(error.stderr, bytes) else error.stderr
        told.print(f"error: {error.cmd[0]}: {str(words).strip()[-600:]}", markup=False)
        return CANNOT if error.returncode == CANNOT else 1
    if options.json:
        print(json.dumps({"rate_bytes_s": options.rate * 1000, "updates": [asdict(line) for line in lines]}))
    else:
        _print_table(lines, options.rate)
    return 0


def _measure(cache: Path, rate_bytes_s: float | None, say: Callable[[str], None]) -> list[Line]:
    versions = make_versions(cache, say)
    lines: list[Line] = []
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headland-", ignore_cleanup_errors=True)))
        peer, mine = (_engine(stack, root / name) for name in ("e1", "e2"))
        port = stack.enter_context(registry(root / "registry"))
        ours = Ours(root / "ours", mine)
        stack.callback(ours.close)
        ours.open()
        for version in versions:
            image = version.image()
            say(f"{version.version}, {version.what}: pushed to the registry, built, signed, patches made")
            layout, archive = empty(root / "layout"), root / f"{version.version}.tar"
            write_layout(image, layout, version.version)
            push(layout, version.version, port)
            write_archive(image, archive, f"app:{version.version}")
            ours.publish(version, archive)
            archive.unlink()
            say(f"{version.version}: over both links, one after the other")
            pulled = pull(["docker", "--host", f"unix://{peer}"], port, f"app:{version.version}", rate_bytes_s)
            line = Line(version.what, ours.update(version, rate_bytes_s), pulled)
            _check_same(peer, mine, image)
            lines.append(line)
    return lines


def _engine(stack: ExitStack, folder: Path) -> Path:
    """Starts a private engine, which goes with the stack. Returns its socket."""
    engine = str(SCRIPTS / "engine")
    stack.callback(subprocess.run, [engine, "remove", str(folder)], capture_output=True, check=False)
    done = subprocess.run([engine, "start", str(folder)], capture_output=True, check=True)
    return Path(done.stdout.decode().strip().splitlines()[-1])


def _check_same(peer: Path, mine: Path, image: Image) -> None:
    """Both engines must hold the very same image: else two different things would have been compared."""
    for socket in (peer, mine):
        command = ["docker", "--host", f"unix://{socket}", "image", "inspect", f"sha256:{image.id}"]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            raise CastError(f"an engine does not hold the image {image.id[:12]}")


def _print_table(lines: Sequence[Line], rate: float) -> None:
    links = f"links of {rate:,.0f} kB/s" if rate else "links without a limit"
    table = Table(title=f"container updates, beside a registry pull of the same images, {links}")
    for name in ("what changed", "Headland kB", "of it payload", "pull kB", "ratio", "Headland s", "pull s", "ratio"):
        table.add_column(name, justify="left" if name == "what changed" else "right")
    for line in lines:
        table.add_row(
            line.what,
            f"{line.ours.wire_bytes / 1000:,.0f}",
            f"{line.ours.payload_bytes / 1000:,.0f}",
            f"{line.pull.wire_bytes / 1000:,.0f}",
            f"{line.ours.wire_bytes / line.pull.wire_bytes:.3f}",
            f"{line.ours.seconds:.1f}",
            f"{line.pull.seconds:.1f}",
            f"{line.ours.seconds / line.pull.seconds:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
