"""Releases of published models, ready for the builder; skipped with the reason where the files could not be fetched."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from scripts.fetch_published_models import cache_folder, cached_path, fetch, is_there, read_pins
from tests.published.catalogue import CATALOGUE, Arrays, PublishedModel, run_directly


@dataclass(frozen=True)
class PublishedRelease:
    """A folder with a `release.toml` and all that it names.

    Args:
        folder: For `headland release build`.
        model: What it is.
        files: The model file of each variant.
        direct: Raw outputs of each case by variant and case name, from the runtime called directly.
    """

    folder: Path
    model: PublishedModel
    files: dict[str, Path]
    direct: dict[str, dict[str, Arrays]]


@pytest.fixture(scope="session")
def fetched() -> Callable[[str], Path]:
    """The path of a file of `models.toml`."""
    folder, pins = cache_folder(os.environ), read_pins()

    def path_of(name: str) -> Path:
        if not is_there(folder, pins[name]):
            failed = fetch(folder, {name: pins[name]})
            if failed:
                missing = f"{pins[name]['package']} {pins[name]['version']} could not be fetched: {failed[name]}"
                if os.environ.get("CI") == "true":
                    pytest.fail(missing)
                pytest.skip(missing)
        return cached_path(folder, pins[name])

    return path_of


@pytest.fixture
def published_model(tmp_path: Path, fetched: Callable[[str], Path]) -> Callable[..., PublishedRelease]:
    """Writes the release of one model of the catalogue: `published_model("nudenet", version="1.0.0", counter=1)`."""

    def write(name: str, *, product: str = "published", version: str = "1.0.0", counter: int = 1) -> PublishedRelease:
        model = CATALOGUE[name]
        folder = tmp_path / f"{product}-{version}"
        folder.mkdir()
        lines = [
            f'product = "{product}"',
            f'version = "{version}"',
            f"counter = {counter}",
            "trial = { healthy_s = 1.0, min_healthy_s = 0.5, min_inferences = 1 }",
            "",
            *model_lines(folder, model, fetched),
        ]
        (folder / "release.toml").write_text("\n".join(lines) + "\n")
        cases = model.cases()
        files = {variant: fetched(pin) for variant, pin in model.files.items()}
        direct = {
            variant: {case.name: run_directly(path, case.feeds) for case in cases} for variant, path in files.items()
        }
        for variant, outputs in direct.items():
            for case in cases[:2]:
                np.savez(folder / f"{model.name}-{case.name}-{variant}.npz", **outputs[case.name])
        return PublishedRelease(folder=folder, model=model, files=files, direct=direct)

    return write


def model_lines(folder: Path, model: PublishedModel, fetched: Callable[[str], Path]) -> list[str]:
    """The description of one model; its files are laid beside it."""
    labels = ", ".join(f'"{label}"' for label in model.labels(fetched))
    lines = [
        "[[models]]",
        f'name = "{model.name}"',
        f"task = {model.task}",
        f"preprocessing = {model.preprocessing}",
        f"labels = [{labels}]",
        "",
    ]
    golden = model.cases()[:2]
    for case in golden:
        (folder / f"{model.name}-{case.name}{case.suffix}").write_bytes(case.data)
    for variant, pin in model.files.items():
        source = fetched(pin)
        file = f"{model.name}-{variant}{source.suffix}"
        shutil.copyfile(source, folder / file)
        lines += ["[[models.variants]]", f'name = "{variant}"', f'file = "{file}"']
        if variant in model.hardware:
            lines.append(f'hardware = ["{model.hardware[variant]}"]')
        lines += [
            "bounds = { latency_ms = 5000, memory_mib = 1024, load_s = 60 }",
            "golden = [",
            *(
                f'    {{ name = "{case.name}", input = "{model.name}-{case.name}{case.suffix}", '
                f'expected = "{model.name}-{case.name}-{variant}.npz", atol = 1e-3, rtol = 1e-3 }},'
                for case in golden
            ),
            "]",
            "",
        ]
    return lines
