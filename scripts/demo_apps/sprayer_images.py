"""The images of the sprayer, by version, and releases that carry it beside the demo's models.

python -m scripts.demo_apps.sprayer_images FOLDER      # FOLDER/sprayer-1.0.0.tar ..., as `docker save` writes them
"""

import json
import re
import shutil
import sys
from pathlib import Path

from scripts.cast import MODELS, PRODUCT
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


def describe(folder: Path, version: str, counter: int, *, model: str, app: str) -> Path:
    """Writes the description of a release with a model of the demo and a sprayer, and all its files.

    Args:
        folder: Made by this; layers are kept beside it, for the next one.
        version: Of the release.
        counter: Likewise.
        model: The demo's release whose model it carries.
        app: Version of the sprayer.

    Returns:
        What `headland release build` takes.

    Raises:
        NoRuntimeError: This machine has no Python from Debian.
    """
    shutil.copytree(MODELS, folder)
    write_archive(sprayer(app, folder.parent / "layers"), folder / "sprayer.tar", f"sprayer:{app}")
    text = (folder / f"{PRODUCT}-{model}.toml").read_text()
    text = re.sub(r'^version = ".*"$', f'version = "{version}"', text, count=1, flags=re.MULTILINE)
    text = re.sub(r"^counter = \d+$", f"counter = {counter}", text, count=1, flags=re.MULTILINE)
    description = folder / "release.toml"
    description.write_text(f"{text}\n{DESCRIPTION.read_text()}")
    return description


def main() -> int:
    folder = Path(sys.argv[1])
    for version in NOZZLES:
        image = sprayer(version, folder / "layers")
        write_archive(image, folder / f"sprayer-{version}.tar", f"sprayer:{version}")
        print(f"{folder / f'sprayer-{version}.tar'}: {image.id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
