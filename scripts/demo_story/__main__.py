"""`scripts/demo`: plays the main job with real processes, verifies each step, and tells what was seen."""

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from scripts.cast import CastError
from scripts.demo_story.report import Report
from scripts.demo_story.story import Story


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object; progress goes to stderr")
    parser.add_argument("--keep", action="store_true", help="leave server and machines running, and say where")
    arguments = parser.parse_args()

    report = Report(arguments.json)
    root = Path(tempfile.mkdtemp(prefix="headland-demo-"))
    story = Story(root, report)
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
