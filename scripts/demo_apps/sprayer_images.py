"""The images of the sprayer, by version, for the demo and for tests on a real engine.

python -m scripts.demo_apps.sprayer_images FOLDER      # FOLDER/sprayer-1.0.0.tar ..., as `docker save` writes them
"""

import json
import sys
from pathlib import Path

from scripts.demo_apps.images import File, Image, layer, write_archive
from scripts.demo_apps.runtimes import python

PROGRAM = Path(__file__).parent / "sprayer" / "sprayer.py"
DESCRIPTION = Path(__file__).parent / "sprayer" / "container.toml"
NOZZLES = {"1.0.0": 6, "1.1.0": 8, "1.2.0": 0}
"""By version. The last one was built for a boom that has none: its health check is red."""


def sprayer(version: str, folder: Path) -> Image:
    """Two layers: Python, the same for every version, and the application.

    Args:
        version: Of `NOZZLES`.
        folder: For layers.

    Raises:
        NoRuntimeError: This machine has no Python from Debian.
    """
    settings = json.dumps({"version": version, "nozzles": NOZZLES[version]}).encode() + b"\n"
    app = {"app/sprayer.py": File(PROGRAM, 0o755), "app/sprayer.json": File(settings)}
    return Image((layer(folder, python(), "python from Debian"), layer(folder, app, "the sprayer")))


def main() -> int:
    folder = Path(sys.argv[1])
    for version in NOZZLES:
        image = sprayer(version, folder / "layers")
        write_archive(image, folder / f"sprayer-{version}.tar", f"sprayer:{version}")
        print(f"{folder / f'sprayer-{version}.tar'}: {image.id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
