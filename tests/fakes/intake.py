"""Takes images in as the builder does, with what it said, and a look at what came of it."""

from pathlib import Path

from protocol.container import Image
from signing.images.intake import Intake
from signing.workspace import Workspace
from tests.fakes.image_files import BuiltImage, sha256


class Taking:
    """An intake with what it said, and a look at what it took."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.environment: dict[str, str] = {"HOME": str(folder / "home")}
        self.workspace = Workspace.create(folder / "workspace")

    @property
    def intake(self) -> Intake:
        return Intake(self.workspace, self.folder, self.environment, self.said.append)

    def take(self, text: str, *platforms: str) -> tuple[Image, ...]:
        intake = self.intake
        with intake.find(text, platforms) as images:  # type: ignore[arg-type]  # tests write them as people do
            return tuple(intake.take(text, image, ()) for image in images)

    def is_whole(self, image: Image, built: BuiltImage) -> bool:
        """Whether all of it is here, as it was built."""
        assert image.config.sha256 == built.id
        assert tuple(layer.artifact.sha256 for layer in image.layers) == built.diff_ids
        assert [layer.artifact.length_bytes for layer in image.layers] == [len(data) for data in built.layers]
        return all(
            sha256(self.workspace.blob(artifact.sha256).read_bytes()) == artifact.sha256
            for artifact in image.artifacts()
        )

    def left_over(self) -> list[str]:
        """Files of the workspace's blobs that are no blob."""
        blobs = self.workspace.path / "blobs"
        return [path.name for path in blobs.iterdir() if path.name.startswith(".")] if blobs.exists() else []

    def kept(self) -> set[str]:
        blobs = self.workspace.path / "blobs"
        return {path.name for path in blobs.iterdir()} if blobs.exists() else set()
