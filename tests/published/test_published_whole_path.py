"""Published models over the whole path, by real processes: built, signed, pushed, staged, installed, inferred, synced.

Two releases, one after the other, on one machine: the first takes pictures, the second sound and bytes; each frame
goes through every model of the release. What the server ingested is held against the runtimes called directly.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from device.inference.finding import Finding
from protocol.ids import digest
from protocol.release import Model
from protocol.results import ResultRow
from scripts.cast import PRODUCT, wait_for
from tests.e2e.device_stage import FieldMachine, Stage
from tests.published.catalogue import Case
from tests.published.conftest import PublishedRelease
from tests.published.meaning import hold

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PICTURES = ("nudenet", "text-direction", "text-presence")
TENSORS = ("file-type", "voice", "notes")
TAG = "litert"  # the machine's: it takes the TFLite form of `notes`


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path / "stage")
    try:
        stage.open()
        yield stage
    finally:
        stage.close()


@pytest.fixture
def machine(stage: Stage) -> FieldMachine:
    machine = stage.machine("line-1")
    with (machine.state / "device.toml").open("a") as settings:
        settings.write(f'\n[machine]\nhardware = ["{TAG}"]\n')
    machine.start()
    return machine


def put(machine: FieldMachine, name: str, data: bytes) -> None:
    """A frame, whole or not at all."""
    hidden = machine.frames / f".{name}"
    hidden.write_bytes(data)
    hidden.rename(machine.frames / name)


def install(
    stage: Stage, machine: FieldMachine, release: PublishedRelease, version: str, frames: dict[str, bytes]
) -> None:
    """Until it is committed. Frames for its trial come once its own workers serve: others could not read them."""
    stage.managers("release", "build", release.folder)
    stage.sign_and_push()
    stage.rollout(f"rollout-{version}", version)
    rounds = 0

    def committed() -> bool:
        nonlocal rounds
        status = machine.status()
        serves = status["serving"] and set(status["models"]) == set(release.models)
        if serves and not any(machine.frames.glob("trial-*")):
            for name, data in frames.items():
                put(machine, f"trial-{version}-{rounds:03d}-{name}", data)
            rounds += 1
        release_now = status["release"]
        return release_now is not None and release_now["version"] == version and status["trial"] is None

    wait_for(f"{version} to be committed: {machine.process.log}", committed, 120)
    wait_for("the frames of the trial to be inferred", lambda: not any(machine.frames.glob("trial-*")), 60)


def rows_of(stage: Stage, machine: FieldMachine, names: set[str], models: int) -> dict[tuple[str, str], ResultRow]:
    """The ingested rows of these frames, by frame and model digest, once there is one for each model."""

    def look() -> dict[tuple[str, str], ResultRow] | None:
        found: dict[tuple[str, str], ResultRow] = {}
        for entry in stage.server.results(machine.name):
            row = msgspec.convert(entry["row"], ResultRow)
            if row.frame in names:
                assert (row.frame, row.model) not in found, "one model spoke twice of one frame"
                found[row.frame, row.model] = row
        return found if len(found) == len(names) * models else None

    answer: dict[tuple[str, str], ResultRow] = wait_for(f"the rows of {sorted(names)}", look, 60)
    return answer


def chosen_variant(model: Model) -> str:
    return next(variant.name for variant in model.variants if not variant.hardware or TAG in variant.hardware)


def agree(
    stage: Stage,
    release: PublishedRelease,
    version: str,
    rows: dict[tuple[str, str], ResultRow],
    cases: dict[str, dict[str, Case]],
) -> None:
    """Holds each row against the direct outputs of its model, and the row's digests against the files."""
    shown: dict[str, Any] = stage.managers("release", "show", version)
    by_name = {one["name"]: msgspec.convert(one, Model) for one in shown["manifest"]["models"]}
    for frame, of_model in cases.items():
        for name, case in of_model.items():
            model = by_name[name]
            variant = chosen_variant(model)
            row = rows[frame, digest(release.files[name][variant].read_bytes())]
            assert row.manifest == shown["manifest_sha256"]
            assert row.accelerator == "cpu"
            size = Image.open(io.BytesIO(case.data)).size if case.suffix == ".png" else (0, 0)
            finding = Finding(scores=row.scores, detections=row.detections, anomaly=row.anomaly, alarm=row.alarm)
            hold(model, finding, release.direct[name][variant][case.name], size)


def test_pictures_then_tensors_by_models_of_others_arrive_as_their_runtimes_say_them(
    stage: Stage, machine: FieldMachine, published_model: Callable[..., PublishedRelease]
) -> None:
    pictures = published_model(*PICTURES, product=PRODUCT, version="1.0.0", counter=1)
    # All three models look at each picture; a picture is held against those of whose cases it is one.
    by_case: dict[str, dict[str, Case]] = {}
    for name in PICTURES:
        for case in pictures.models[name].cases():
            by_case.setdefault(f"{case.name}.png", {})[name] = case
    install(stage, machine, pictures, "1.0.0", {"leaf.png": by_case["leaf.png"]["nudenet"].data})
    for frame, of_model in by_case.items():
        put(machine, frame, next(iter(of_model.values())).data)
    rows = rows_of(stage, machine, set(by_case), len(PICTURES))
    agree(stage, pictures, "1.0.0", rows, by_case)

    # One archive holds the inputs of all three; each takes its own.
    tensors = published_model(*TENSORS, product=PRODUCT, version="2.0.0", counter=2)
    frames: dict[str, bytes] = {}
    cases: dict[str, dict[str, Case]] = {}
    for place in range(2):
        of_model = {name: tensors.models[name].cases()[place] for name in TENSORS}
        archive = io.BytesIO()
        np.savez(archive, **{key: value for case in of_model.values() for key, value in case.feeds.items()})
        frames[f"sensors-{place}.npz"] = archive.getvalue()
        cases[f"sensors-{place}.npz"] = of_model
    install(stage, machine, tensors, "2.0.0", {"sensors.npz": frames["sensors-0.npz"]})
    for frame, data in frames.items():
        put(machine, frame, data)
    rows = rows_of(stage, machine, set(frames), len(TENSORS))
    agree(stage, tensors, "2.0.0", rows, cases)

    assert machine.status()["frames_dropped"] == 0
