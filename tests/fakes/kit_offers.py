"""What an operator's server answers to `POST /api/v1/kits/plan`, for releases that a managers' tool published."""

from collections.abc import Mapping
from typing import Any

from protocol.ids import digest
from protocol.objects import Payload, Step
from protocol.release import parse_manifest
from signing.kits.offer import KitOffer, OfferedRelease, OfferedStep
from tests.fakes.managers_tool import ManagersTool
from tests.fakes.updates import compressed, signed


def offer_kit(
    tool: ManagersTool,
    *versions: str,
    machines: tuple[str, ...] | None = None,
    deltas: Mapping[str, int] = {},
    **more: Any,
) -> KitOffer:
    """Makes payloads of every artifact and has the server offer them.

    Args:
        tool: Whose server.
        versions: Published.
        machines: Whom the kit is for.
        deltas: Of the last version's first artifact: contents of patches, and how many machines each is for.
        more: Fields of the last release.
    """
    releases = []
    for version in versions:
        sha256 = tool.run("release", "show", version)["manifest_sha256"]
        manifest = parse_manifest(tool.server.blobs[sha256])
        steps = []
        for artifact in manifest.artifacts():
            payload, _ = compressed(tool.server.blobs[artifact.sha256])
            steps.append(_step(tool, artifact.sha256, artifact.length_bytes, payload))
        releases.append(
            OfferedRelease(
                release=version,
                manifest=Payload(sha256=sha256, length_bytes=len(tool.server.blobs[sha256])),
                steps=tuple(steps),
            )
        )
    last = releases[-1]
    first = last.steps[0].step
    for content, users in deltas.items():
        blob = content.encode()
        tool.server.blobs[digest(blob)] = blob
        step = Step(
            artifact=first.artifact,
            length_bytes=first.length_bytes,
            method="delta",
            payload=signed(blob),
            base=digest(b"base of " + blob),
            codec=1,
        )
        last = OfferedRelease(
            release=last.release, manifest=last.manifest, steps=(*last.steps, OfferedStep(step=step, machines=users))
        )
    fields = {name: getattr(last, name) for name in last.__struct_fields__} | more
    offer = KitOffer(
        product="pest-detector", machines=machines, releases=(*releases[:-1], OfferedRelease(**fields)), known=1
    )
    tool.server.answers["/kits/plan"] = offer
    return offer


def _step(tool: ManagersTool, artifact: str, length_bytes: int, payload: bytes) -> OfferedStep:
    tool.server.blobs[digest(payload)] = payload
    step = Step(artifact=artifact, length_bytes=length_bytes, method="full", payload=signed(payload))
    return OfferedStep(step=step, machines=1)
