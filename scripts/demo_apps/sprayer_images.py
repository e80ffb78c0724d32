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
UNFIXED = "1.0.0"
FIXED = "http/client.py"  # of Python: what a security fix of a runtime looks like


def sprayer(version: str, folder: Path) -> Image:
    """Two layers: Python, and the application. From 1.1.0 on there is a fix in one file of Python, too.

    Args:
        version: Of `NOZZLES`.
        folder: For layers.

    Raises:
        NoRuntimeError: This machine has no Python from Debian.
    """
    runtime = python()
    if version != UNFIXED:
        name = next(name for name in runtime if name.endswith(f"/{FIXED}"))
        file = runtime[name]
        assert isinstance(file, File)
        assert isinstance(file.content, Path)
        runtime[name] = File(file.content.read_bytes() + b"\n# A fix.\n", file.mode)
    settings = json.dumps({"version": version, "nozzles": NOZZLES[version]}).encode() + b"\n"
    app = {"app/sprayer.py": File(PROGRAM, 0o755), "app/sprayer.json": File(settings)}
    return Image((layer(folder, runtime, "python from Debian"), layer(folder, app, "the sprayer")))


def describe(folder: Path, version: str, counter: int, *, model: str, image: Image) -> Path:
    """Writes the description of a release with a model of the demo and a sprayer, and all its files.

    Args:
        folder: Made by this.
        version: Of the release.
        counter: Likewise.
        model: The demo's release whose model it carries.
        image: Of the sprayer.

    Returns:
        What `headland release build` takes.
    """
    shutil.copytree(MODELS, folder)
    write_archive(image, folder / "sprayer.tar", "sprayer:demo")
    text = (folder / f"{PRODUCT}-{model}.toml").read_text()
    text = re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', text, count=1)
    text = re.sub(r"(?m)^counter = \d+$", f"counter = {counter}", text, count=1)
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
