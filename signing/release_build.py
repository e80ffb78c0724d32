"""Builds a release: from a description and model files to a manifest whose every artifact was looked at.

Refused here is what a machine would refuse later: a model that does not load, golden inputs that do not hold, a
counter that does not rise, external data. What cannot be tried on this computer is said, in the manifest, to all who
sign. Nothing is signed here; the result is proposed as a signing event.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from tuf.api.metadata import Targets

from protocol.container import check_runs
from protocol.errors import Reason, Refused, StateError
from protocol.ids import Version
from protocol.limits import CONTAINERS
from protocol.objects import ImageTerms, ProductTerms
from protocol.release import Model, ReleaseManifest, Variant, parse_manifest
from protocol.wire import encode
from signing.checker import Checker
from signing.differences import UNTRIED
from signing.events import Event, check_free, open_event
from signing.images.content import Say
from signing.images.intake import Intake
from signing.metadata import parse, terms
from signing.proposals import list_release, product_role
from signing.release_description import ReleaseDescription, read_description
from signing.release_gather import Gathering
from signing.repository import releases_of
from signing.workspace import Workspace

CONTAINERS_SINCE: Final = (0, 1, 0)
"""The first agent that runs containers."""


@dataclass(frozen=True)
class Built:
    """A release, ready to be signed.

    Args:
        manifest: Parsed.
        sha256: Of its bytes: the identity of the release.
        tried: `MODEL/VARIANT` whose golden inputs hold.
        untried: `MODEL/VARIANT` that could not be tried here, with the reason.
        event: The signing event that proposes it.
    """

    manifest: ReleaseManifest
    sha256: str
    tried: tuple[str, ...]
    untried: Mapping[str, str]
    event: Event


def build(
    source: Path,
    workspace: Workspace,
    checker: Checker,
    now: datetime,
    *,
    untried: str | None = None,
    environment: Mapping[str, str],
    say: Say,
) -> Built:
    """Builds a release and opens the event that proposes it.

    Args:
        source: A description, or a folder with a `release.toml`.
        workspace: Where artifacts, manifest and event go.
        checker: Tries models.
        now: Aware.
        untried: Why no golden input shall be run here; None runs all that can be run.
        environment: Of the process: where container engines and credentials of registries are.
        say: Hears what is being done.

    Raises:
        SettingsError: The description is wrong, or names files that are not there.
        StateError: No such product, an open event for it, a version that was used, nothing here to try a model with,
            no such image.
        LinkError: A registry or an engine does not answer.
        Refused: `COUNTER_FLOOR`, or as a machine would refuse in CHECK.
    """
    folder, description = read_description(source)
    image = workspace.need("image")
    product_role(image, description.product)
    check_free(workspace, [("image", description.product)])
    era = terms(parse(image.targets, Targets, "targets").signed, ImageTerms, "targets").eras.get(description.product, 0)
    check_rises(workspace, description, era)
    if untried is not None and not " ".join(untried.split()):
        raise StateError("--untried needs the reason, for all who sign to see")

    check_description(description)
    gathering = Gathering(workspace, folder, checker, Intake(workspace, folder, environment, say), say)
    with gathering.found(description.containers) as containers:  # layers come last: they take the longest
        manifest = _manifest(gathering, description, era, now)
        if manifest.models or manifest.configs:
            manifest = parse_manifest(encode(manifest))  # all rules of the format, before anything is run
        tried, left = _try_all(workspace, manifest, checker, untried, say)
        taken = tuple(gathering.taken(container) for container in containers)
    workspace.drop_spools()  # a build that failed keeps them, for the next one to go on with
    manifest = parse_manifest(encode(msgspec.structs.replace(manifest, containers=taken)))
    notes = [manifest.notes] if manifest.notes else []
    if untried is not None:
        notes.append(f"{UNTRIED}{' '.join(untried.split())}")
    else:
        notes += [f"{UNTRIED}{name}: {reason}" for name, reason in left.items()]
    data = encode(msgspec.structs.replace(manifest, notes="\n".join(notes)))
    manifest = parse_manifest(data)
    sha256 = workspace.add_blob(data)
    event = open_event(workspace, list_release(image, manifest, data, now), now)
    return Built(manifest=manifest, sha256=sha256, tried=tried, untried=left, event=event)


def check_rises(workspace: Workspace, description: ReleaseDescription, era: int) -> None:
    """Refuses a version that was used before, and a counter that is not above every one that was ever listed.

    Delisted releases count too: machines that committed one would refuse a lower counter.

    Raises:
        StateError: The version was used.
        Refused: `COUNTER_FLOOR`.
    """
    product = description.product
    floor = terms(product_role(workspace.need("image"), product), ProductTerms, product).floor
    highest, version = 0, ""
    for state in workspace.history(product):
        for release in releases_of(product, state.signed):
            if release.version == description.version:
                raise StateError(
                    f"{product} {release.version} was listed before; a release never changes: raise the version"
                )
            if release.era == era and release.release_counter > highest:
                highest, version = release.release_counter, release.version
    if description.counter <= highest:
        raise Refused(
            Reason.COUNTER_FLOOR,
            f"counter {description.counter} does not rise: {product} {version} has {highest}",
            hint=f"set counter = {highest + 1} in the description",
        )
    if description.counter < floor:
        raise Refused(Reason.COUNTER_FLOOR, f"counter {description.counter} is below the product's floor of {floor}")


def check_description(description: ReleaseDescription) -> None:
    """What of a description can be judged before any file is read.

    Raises:
        SettingsError: An image that cannot be looked for.
        Refused: As `parse_manifest`.
    """
    names = [container.name for container in description.containers]
    for name in sorted({name for name in names if names.count(name) > 1}):
        raise Refused(Reason.MANIFEST, f"two containers of the name {name}")
    if len(names) > CONTAINERS:
        raise Refused(Reason.LIMIT, f"{len(names)} containers; the most is {CONTAINERS}")
    runs = [(container.name, container.run()) for container in description.containers]
    check_runs(runs, models=bool(description.models))
    for container in description.containers:
        container.all_images()


def _manifest(gathering: Gathering, description: ReleaseDescription, era: int, now: datetime) -> ReleaseManifest:
    return ReleaseManifest(
        format=1,
        product=description.product,
        version=description.version,
        release_counter=description.counter,
        created_ms=int(now.timestamp() * 1000),
        models=tuple(gathering.model(model) for model in description.models),
        era=era,
        min_agent=_min_agent(description),
        hardware=description.hardware,
        configs=tuple(gathering.config(config) for config in description.configs),
        sbom=gathering.artifact(description.sbom, "application/json") if description.sbom is not None else None,
        trial=description.trial,
        frame_policy=description.frame_policy,
        lineage=description.lineage,
        notes=description.notes,
    )


def _min_agent(description: ReleaseDescription) -> Version:
    """No agent gets a container that it cannot run, whatever the description says."""
    said = description.min_agent
    if description.containers and [int(part) for part in re.split(r"[.+-]", said)[:3]] < list(CONTAINERS_SINCE):
        return ".".join(map(str, CONTAINERS_SINCE))
    return said


def _try_all(
    workspace: Workspace, manifest: ReleaseManifest, checker: Checker, untried: str | None, say: Say
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Tries each variant by itself; what runs and what could not, by `MODEL/VARIANT`."""
    tried: list[str] = []
    left: dict[str, str] = {}
    for model, variant in _variants(manifest):
        name = f"{model.name}/{variant.name}"
        if untried is not None:
            left[name] = " ".join(untried.split())
        elif variant.accelerator != "cpu":
            left[name] = f"no {variant.accelerator} on the computer of the builder"
        elif not checker.can_read(variant.runtime):
            left[name] = f"{variant.runtime} is not installed on the computer of the builder"
        else:
            say(f"trying {name}: {len(variant.golden)} golden inputs")
            alone = msgspec.structs.replace(
                manifest,
                models=(msgspec.structs.replace(model, variants=(variant,)),),
                configs=(),
                containers=(),
                sbom=None,
            )
            files = {artifact.sha256: workspace.blob(artifact.sha256) for artifact in alone.artifacts()}
            try:
                checker.attempt(alone, files, {model.name: variant.name})
            except Refused as error:
                raise Refused(error.reason, f"{name}: {error.message}", hint=error.hint) from error
            tried.append(name)
    for model in manifest.models:
        if untried is None and not any(f"{model.name}/{variant.name}" in tried for variant in model.variants):
            raise StateError(
                f"no variant of model {model.name} can be tried here: {'; '.join(left.values())}",
                hint="build where one runs, or say why it goes untried: --untried REASON",
            )
    return tuple(tried), left


def _variants(manifest: ReleaseManifest) -> Iterator[tuple[Model, Variant]]:
    for model in manifest.models:
        for variant in model.variants:
            yield model, variant
