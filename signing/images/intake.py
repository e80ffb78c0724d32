"""Brings the images of one reference into the workspace and says what they are, as a release names them."""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from protocol.artifact import Artifact
from protocol.container import CONFIG_MEDIA_TYPE, LAYER_MEDIA_TYPE, Image, Layer, Platform
from protocol.errors import said_of
from protocol.ids import Name
from protocol.image_config import parse_image_config
from protocol.limits import MIB
from signing import durable
from signing.images.archive import images_of_archive
from signing.images.content import Found, Say
from signing.images.credentials import Logins
from signing.images.engine import find_socket, images_of_engine
from signing.images.layers import take_layer
from signing.images.layout import images_of_layout
from signing.images.reference import Reference, parse_reference, parse_registry
from signing.images.registry import Registry, images_of_registry
from signing.workspace import Workspace


@dataclass(frozen=True)
class Intake:
    """Takes images in.

    Args:
        workspace: Where configs and layers go.
        folder: What paths in references are relative to.
        environment: Of the process: where the engine and the credentials are.
        say: Hears what is being done.
    """

    workspace: Workspace
    folder: Path
    environment: Mapping[str, str]
    say: Say

    @contextmanager
    def find(self, text: str, platforms: Collection[Platform]) -> Iterator[tuple[Found, ...]]:
        """The images of a reference, one for each platform, for `take` while this is open. No layer is fetched yet,
        but those of an engine, which gives its images whole.

        Args:
            text: The reference.
            platforms: Only these; empty: all that it has and releases are for.

        Raises:
            SettingsError: The reference is wrong, or names what is not there.
            StateError: The same, of an engine or a registry; no image for a platform.
            Refused: Something of it is not what it is said to be, or too much.
            LinkError: No answer, or not all of it.
        """
        reference = parse_reference(text)
        self.say(f"looking at {text}")
        with ExitStack() as held:
            with said_of(text):
                images = self._found(held, text, reference, platforms)
            yield images

    def _found(
        self, held: ExitStack, text: str, reference: Reference, platforms: Collection[Platform]
    ) -> tuple[Found, ...]:
        match reference.kind:
            case "oci":
                folder, name = self._layout(reference.rest)
                return images_of_layout(folder, name, platforms, self.say)
            case "archive":
                return images_of_archive(self.folder / reference.rest, platforms, self.say)
            case "engine":
                spool = self.workspace.spool(text)
                held.callback(durable.unlink, spool)
                socket = find_socket(self.environment)
                return images_of_engine(socket, reference.rest, spool, platforms, self.say)
            case "registry" | "registry+http":
                asked = parse_registry(reference.rest)
                logins = Logins.usual(self.environment, os.getuid())
                registry = Registry(asked, plain=reference.kind == "registry+http", logins=logins)
                return images_of_registry(registry, asked, platforms, self.say)
            case _:
                assert_never(reference.kind)

    def _layout(self, rest: str) -> tuple[Path, str]:
        """Folder and name: a colon may be part of the folder's name."""
        whole = self.folder / rest
        folder, colon, name = rest.rpartition(":")
        if not colon or "/" in name or whole.is_dir():
            return whole, ""
        return self.folder / folder, name

    def take(self, text: str, found: Found, hardware: tuple[Name, ...]) -> Image:
        """Takes an image with all its layers into the workspace.

        Args:
            text: The reference that it was found by.
            found: The image.
            hardware: Tags that a machine must carry.

        Raises:
            StateError, Refused, LinkError: As `find`.
        """
        config = parse_image_config(found.config)
        layers = []
        steps = zip(found.layers, config.layers, config.origins(), strict=True)
        for number, (blob, diff_id, origin) in enumerate(steps, 1):
            size = f"{blob.length_bytes / MIB:.1f} MiB"
            self.say(f"  {found.platform}: layer {number} of {len(config.layers)}, {diff_id[:12]}, {size}")
            with said_of(f"{text}, layer {number} of {len(config.layers)}"):
                length = take_layer(self.workspace, found.content, blob, diff_id, self.say)
            artifact = Artifact(sha256=diff_id, length_bytes=length, media_type=LAYER_MEDIA_TYPE)
            layers.append(Layer(artifact=artifact, origin=origin))
        sha256 = self.workspace.add_blob(found.config)
        resolved = "" if not found.digest or found.digest in text else f" ({found.digest})"
        return Image(
            platform=found.platform,
            config=Artifact(sha256=sha256, length_bytes=len(found.config), media_type=CONFIG_MEDIA_TYPE),
            layers=tuple(layers),
            hardware=hardware,
            source=f"{text}{resolved}",
        )
