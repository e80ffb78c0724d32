"""The pairs that the benchmark prepares itself: published files by name and version, and models trained for it."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.delta_bench.debs import SYSTEM_LAYERS, make_system_layer
from scripts.delta_bench.layers import UnavailableError, fetch_wheel, install_wheels, take_member, write_gzip, write_tar
from scripts.delta_bench.tools import install_packages

TRAINER = Path(__file__).resolve().parent.parent / "train_delta_pairs.py"
TRAINING_PACKAGES = ("torch==2.13.0", "onnx==1.23.2", "onnxruntime==1.32.0", "safetensors==0.8.0")
TRAINING_S = 3600
TRAINED = (
    *("head-fp32", "small-fp32", "medium-fp32", "long-fp32", "arch-fp32", "scratch-fp32", "small-fp16", "medium-fp16"),
    *("medium-bf16", "small-int8", "medium-int8", "long-int8", "mediumstat-fp32", "medium-int8tensorwise"),
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class PublishedFile:
    """One file of a package at two versions."""

    name: str
    package: str
    versions: tuple[str, str]
    members: tuple[str, str]
    platform: str = ""

    @property
    def suffix(self) -> str:
        return Path(self.members[1]).suffix


@dataclass(frozen=True)
class PythonLayer:
    """A layer of installed packages, before and after an update."""

    name: str
    old: Sequence[str]
    new: Sequence[str]
    platform: str = ""
    packed: bool = False  # also as .tar.gz


def _same(path: str) -> tuple[str, str]:
    return path, path


WEB = (
    *("annotated-types==0.7.0", "anyio==4.9.0", "blinker==1.9.0", "click==8.1.8", "idna==3.10", "itsdangerous==2.2.0"),
    *("jinja2==3.1.6", "markupsafe==3.0.2", "pydantic==2.10.6", "sniffio==1.3.1", "starlette==0.46.1"),
    *("typing-extensions==4.12.2", "werkzeug==3.1.3"),
)
PUBLISHED = (
    PublishedFile(
        "openwakeword-reexport",
        "openwakeword",
        ("0.4.0", "0.5.1"),
        _same("openwakeword/resources/models/embedding_model.onnx"),
    ),
    PublishedFile("silero-vad-retrained", "silero-vad", ("5.1.2", "6.0.0"), _same("silero_vad/data/silero_vad.onnx")),
    PublishedFile(
        "magika-retrained",
        "magika",
        ("0.6.1", "0.6.3"),
        ("magika/models/standard_v3_2/model.onnx", "magika/models/standard_v3_3/model.onnx"),
        "manylinux_2_28_x86_64",
    ),
    PublishedFile(
        "rapidocr-rec-retrained",
        "rapidocr-onnxruntime",
        ("1.2.13", "1.3.25"),
        (
            "rapidocr_onnxruntime/models/ch_PP-OCRv3_rec_infer.onnx",
            "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        ),
    ),
)
LAYERS = (
    PythonLayer(
        "layer-flask-fastapi",
        ("flask==3.1.0", "fastapi==0.115.11", *WEB),
        ("flask==3.1.1", "fastapi==0.115.12", *WEB),
        packed=True,
    ),
    PythonLayer(
        "native-onnxruntime-aarch64", ("onnxruntime==1.20.0",), ("onnxruntime==1.20.1",), "manylinux_2_28_aarch64"
    ),
    PythonLayer("native-numpy-aarch64", ("numpy==2.1.2",), ("numpy==2.1.3",), "manylinux_2_17_aarch64"),
    PythonLayer("native-numpy-x86_64", ("numpy==2.1.2",), ("numpy==2.1.3",), "manylinux_2_17_x86_64"),
)


def prepare(folder: Path, cache: Path, say: Say, *, quick: bool) -> dict[str, str]:
    """Fills a folder with pairs; what lies there already is kept.

    Args:
        quick: Only published files and the smaller layers: nothing is trained.

    Returns:
        What could not be prepared, by name, with the reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    work = _Work(folder, cache, say)
    for file in PUBLISHED:
        work.attempt(file.name, file.suffix, lambda old, new, scratch, it=file: _published(it, old, new, scratch))
    for layer in LAYERS[:1] if quick else LAYERS:
        work.attempt(layer.name, ".tar", lambda old, new, scratch, it=layer: _layer(it, old, new, scratch))
        if layer.packed and layer.name not in work.failed:
            work.attempt(
                f"{layer.name}-gz", ".tar.gz", lambda old, new, scratch, it=layer: _packed(it, folder, old, new)
            )
    if not quick:
        for system in SYSTEM_LAYERS:
            work.attempt(
                system.name,
                ".tar",
                lambda old, new, scratch, it=system: make_system_layer(it, old, new, scratch, say),
            )
        work.train()
    return work.failed


class _Work:
    """What is being prepared, and what could not be."""

    def __init__(self, folder: Path, cache: Path, say: Say) -> None:
        self._folder, self._cache, self._say = folder, cache, say
        self.failed: dict[str, str] = {}

    def attempt(self, name: str, suffix: str, make: Callable[[Path, Path, Path], None]) -> None:
        """Makes one pair in a scratch folder and moves it over when both files are whole."""
        old, new = _places(self._folder, name, suffix)
        if old.is_file() and new.is_file():
            return
        self._say(f"preparing {name}")
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".making-") as scratch_name:
            scratch = Path(scratch_name)
            try:
                make(scratch / "old", scratch / "new", scratch)
            except (UnavailableError, OSError) as error:
                self.failed[name] = str(error)
                return
            (scratch / "old").rename(old)
            (scratch / "new").rename(new)

    def train(self) -> None:
        """Trains the pairs that are not there, where torch can be had."""
        missing = [name for name in TRAINED if not self._is_trained(name)]
        if not missing:
            return
        python, environment = sys.executable, dict(os.environ)
        own = os.environ.get("HEADLAND_TRAINING_VENV")  # one that stands already, as for scripts/train-demo-models
        if own:
            python = str(Path(own) / "bin" / "python")
        else:
            packages = self._cache / "training"
            what = "torch to train pairs (1 GB; several where pip takes the build with CUDA)"
            if not install_packages(TRAINING_PACKAGES, packages, what, self._say):
                self.failed |= dict.fromkeys(missing, "torch could not be installed, so it was not trained")
                return
            environment["PYTHONPATH"] = str(packages)
        self._say("training models on one core (some ten minutes where nothing else runs, once)")
        command = [python, "-W", "ignore", str(TRAINER), str(self._folder), "--only", *missing]
        try:
            # Its progress is ours: it prints on standard error alone.
            subprocess.run(command, stdout=subprocess.DEVNULL, timeout=TRAINING_S, check=False, env=environment)
        except (OSError, subprocess.TimeoutExpired) as error:
            self._say(f"training stopped: {error}")
        self.failed |= {name: "its training failed" for name in missing if not self._is_trained(name)}

    def _is_trained(self, name: str) -> bool:
        return any(self._folder.glob(f"{name}.new.*"))


def _places(folder: Path, name: str, suffix: str) -> tuple[Path, Path]:
    return folder / f"{name}.old{suffix}", folder / f"{name}.new{suffix}"


def _published(it: PublishedFile, old: Path, new: Path, scratch: Path) -> None:
    for version, member, to in zip(it.versions, it.members, (old, new), strict=True):
        wheel = fetch_wheel(f"{it.package}=={version}", it.platform, scratch / version)
        take_member(wheel, member, to)


def _layer(it: PythonLayer, old: Path, new: Path, scratch: Path) -> None:
    for requirements, to in ((it.old, old), (it.new, new)):
        root = scratch / "root"
        install_wheels(requirements, it.platform, root)
        write_tar(root, to)
        shutil.rmtree(root)


def _packed(it: PythonLayer, folder: Path, old: Path, new: Path) -> None:
    for plain, to in zip(_places(folder, it.name, ".tar"), (old, new), strict=True):
        write_gzip(plain, to)
