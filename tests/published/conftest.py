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
        models: What it holds, by name.
        files: The model file by model and variant.
        direct: Raw outputs by model, variant and case, from the runtime called directly.
    """

    folder: Path
    models: dict[str, PublishedModel]
    files: dict[str, dict[str, Path]]
    direct: dict[str, dict[str, dict[str, Arrays]]]


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
    """Writes a release of models of the catalogue: `published_model("nudenet", version="1.0.0", counter=1)`."""

    def write(
        *names: str, product: str = "published", version: str = "1.0.0", counter: int = 1, healthy_s: float = 1.0
    ) -> PublishedRelease:
        folder = tmp_path / f"{product}-{version}"
        folder.mkdir()
        models = {name: CATALOGUE[name] for name in names}
        lines = [
            f'product = "{product}"',
            f'version = "{version}"',
            f"counter = {counter}",
            f"trial = {{ healthy_s = {healthy_s}, min_healthy_s = {healthy_s / 2}, min_inferences = 1 }}",
            "",
        ]
        files: dict[str, dict[str, Path]] = {}
        direct: dict[str, dict[str, dict[str, Arrays]]] = {}
        for name, model in models.items():
            lines += model_lines(folder, model, fetched)
            cases = model.cases()
            files[name] = {variant: fetched(pin) for variant, pin in model.files.items()}
            direct[name] = {
                variant: {case.name: run_directly(path, case.feeds) for case in cases}
                for variant, path in files[name].items()
            }
            for variant, outputs in direct[name].items():
                for case in cases[:2]:
                    np.savez(folder / f"{name}-{case.name}-{variant}.npz", **outputs[case.name])
        (folder / "release.toml").write_text("\n".join(lines) + "\n")
        return PublishedRelease(folder=folder, models=models, files=files, direct=direct)

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
