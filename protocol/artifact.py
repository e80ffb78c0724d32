"""Artifacts: the signed payloads of a release, each named by its content."""

from typing import Literal

from protocol.ids import Digest, Length
from protocol.wire import Message

MediaType = Literal[
    "application/onnx",
    "application/vnd.tflite",
    "application/x-npz",
    "application/json",
    "application/toml",
    "application/octet-stream",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.image.layer.v1.tar",
    "image/jpeg",
    "image/png",
    "text/plain",
]
"""All that may travel. Pickles, shared objects and scripts are not on the list, so they do not (ATTACKS.md O8)."""


class Artifact(Message):
    """One signed payload, named by its content."""

    sha256: Digest
    length_bytes: Length
    media_type: MediaType
