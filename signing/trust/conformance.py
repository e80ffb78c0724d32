"""A TUF client on the command line, for foreign conformance suites: `scripts/tuf_client`.

It drives the very `TrustStore` that devices keep, for one plain TUF repository: no director, no product, and no floors
but those of the metadata itself, since the metadata folder is all the state that a suite gives a client. Files that
targets roles list are fetched here, as nothing in the product fetches by TUF target path.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib import parse as url_parse

from tuf.api.exceptions import LengthOrHashMismatchError

from protocol.errors import HeadlandError, Reason, Refused
from signing import durable
from signing.trust_store import HttpSource, MemoryFloors, Search, TrustStore


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0 on full success, 1 on any failure; nothing on standard output."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command != "init" and options.metadata_url is None:
        parser.error("--metadata-url is needed")
    if options.command == "download" and not (options.target_name and options.target_dir and options.target_base_url):
        parser.error("--target-name, --target-dir and --target-base-url are needed")
    failures = 0
    for step in _steps(options):
        try:
            step()
        except (HeadlandError, OSError) as error:
            sys.stderr.write(f"error: {error}\n")
            failures += 1
    return 1 if failures else 0


def trust_store(metadata_dir: Path) -> TrustStore:
    """The product's trust store over a suite's metadata folder."""
    return TrustStore("tuf", metadata_dir, None, MemoryFloors())


def _steps(options: argparse.Namespace) -> Iterator[Callable[[], None]]:
    """What the command comes to: one step, or one for each file, so that one missing file does not hide the others."""
    match options.command:
        case "init":
            yield lambda: _init(options.metadata_dir, options.root)
        case "refresh":
            yield lambda: _refresh(options)
        case _:
            yield from _downloads(options)


def _init(folder: Path, root: Path) -> None:
    durable.make_dir(folder)
    durable.write(folder / "root.json", root.read_bytes())


def _refresh(options: argparse.Namespace) -> None:
    trust_store(options.metadata_dir).refresh(_metadata(options), datetime.now(UTC))


def _downloads(options: argparse.Namespace) -> Iterator[Callable[[], None]]:
    found: list[Search] = []
    yield lambda: found.append(trust_store(options.metadata_dir).search(_metadata(options), datetime.now(UTC)))
    if not found:
        return
    files = HttpSource(options.target_base_url)
    for path in options.target_name:
        yield partial(_download, found[0], files, path, options.target_dir)


def _metadata(options: argparse.Namespace) -> HttpSource:
    return HttpSource(options.metadata_url)


def _download(found: Search, files: HttpSource, path: str, folder: Path) -> None:
    target = found.find(path)
    if target is None:
        raise Refused(Reason.NOT_LISTED, f"no role lists {path!r}", hint="ask for a path that the repository lists")
    # One percent-encoded name: no target path leads out of the folder.
    kept = folder / url_parse.quote(path, "")
    try:
        with kept.open("rb") as file:
            target.verify_length_and_hashes(file)
    except (OSError, LengthOrHashMismatchError):
        pass
    else:
        return
    name = path
    if found.root.consistent_snapshot:
        head, slash, tail = path.rpartition("/")
        name = f"{head}{slash}{next(iter(target.hashes.values()))}.{tail}"
    data = files.read(name, target.length)
    try:
        target.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as error:
        raise Refused(Reason.HASH, f"{path}: {error}") from error
    durable.make_dir(folder)
    durable.write(kept, data)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tuf_client", description="A TUF client over Headland's own trust store.")
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("--target-base-url")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init", help="trust ROOT from now on; no network").add_argument("root", type=Path)
    commands.add_parser("refresh", help="bring the metadata up to date")
    commands.add_parser("download", help="refresh, then fetch each --target-name")
    return parser


if __name__ == "__main__":
    sys.exit(main())
