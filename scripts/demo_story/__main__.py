"""`scripts/demo`: plays the main job with real processes, verifies each step, and tells what was seen."""

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from scripts.cast import CastError
from scripts.demo_story.containers import CANNOT, Engine, why_no_containers
from scripts.demo_story.report import Report
from scripts.demo_story.story import Story


def start_engine(root: Path) -> tuple[Engine | None, str]:
    """An engine for one of the machines, or why there is none."""
    why = why_no_containers()
    if why:
        return None, why
    engine = Engine(root / "engine")
    why = engine.start()
    return (None, why) if why else (engine, "")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object; progress goes to stderr")
    parser.add_argument("--keep", action="store_true", help="leave server and machines running, and say where")
    parser.add_argument(
        "--containers",
        action="store_true",
        help="with containers or not at all; installs what they need",
    )
    arguments = parser.parse_args()

    report = Report(arguments.json)
    root = Path(tempfile.mkdtemp(prefix="headland-demo-"))
    engine, why = start_engine(root)
    if why and arguments.containers:
        print(f"error: no containers can run here: {why}", file=sys.stderr)
        shutil.rmtree(root)
        return CANNOT
    if why:
        report.say(f"without containers: {why} (`scripts/demo --containers` installs what they need)")
    story = Story(root, report, engine)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        story.play()
    except CastError:
        report.say(f"logs are kept in {root}/logs")
    finally:
        kept = arguments.keep or not report.ok
        if arguments.keep and report.ok:
            report.extra["kept"] = story.keep()
        else:
            story.end()
        if not kept:
            shutil.rmtree(root, ignore_errors=True)
    report.show()
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
