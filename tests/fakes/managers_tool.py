"""The managers' tool in one process: a workspace, an operator's server in memory, a checker that says what it is told.

tool = ManagersTool(tmp_path)
tool.run("keys", "add", "alice")
tool.begin()                        # alice, bob, carol; pest-detector, 2 of 3, published
tool.build("1.0.0", 1)
tool.sign("alice", "bob")
tool.push()
"""

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from click.testing import CliRunner, Result

from protocol.errors import Refused
from protocol.ids import Digest
from protocol.release import ReleaseManifest, Runtime, Tensor
from signing.checker import Described
from signing.cli import main
from signing.commands.app import App
from signing.workspace import Workspace
from tests.fakes.operator_server import OperatorServer

CHEAP_SCRYPT = 1 << 10
NOW = datetime(2026, 5, 4, 8, 0, tzinfo=UTC)
IMAGE = Tensor(name="image", shape=(1, 3, 8, 8), dtype="float32", layout="NCHW")
SCORES = Tensor(name="scores", shape=(1, 2), dtype="float32")

DESCRIPTION = """
product = "{product}"
version = "{version}"
counter = {counter}
{top}

[[models]]
name = "leaf"
labels = ["healthy", "pest"]
task = {{ kind = "classify", output = "scores" }}
preprocessing = {{ kind = "image", width = 8, height = 8 }}

[[models.variants]]
name = "onnx"
file = "{file}"
{variant}
golden = [{{ name = "leaf", input = "leaf.png", expected = "leaf.npz" }}]
{more}
"""


class FakeChecker:
    """Implements `signing.checker.Checker`; `refusal` is what `attempt` raises, `unreadable` what `describe` raises."""

    def __init__(self) -> None:
        self.runtimes: set[Runtime] = {"onnxruntime", "litert"}
        self.described = Described(inputs=(IMAGE,), outputs=(SCORES,))
        self.refusal: Refused | None = None
        self.unreadable: Refused | None = None
        self.attempts: list[dict[str, str]] = []

    def can_read(self, runtime: Runtime) -> bool:
        return runtime in self.runtimes

    def describe(self, model: Path) -> Described:
        if self.unreadable is not None:
            raise self.unreadable
        return self.described

    def attempt(self, manifest: ReleaseManifest, files: Mapping[Digest, Path], variants: Mapping[str, str]) -> None:
        assert all(files[artifact.sha256].exists() for artifact in manifest.artifacts())
        self.attempts.append(dict(variants))
        if self.refusal is not None:
            raise self.refusal


class ManagersTool:
    """See the module. `now` may be moved on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = NOW
        self.server = OperatorServer(NOW)
        self.checker = FakeChecker()
        self.path = folder / "workspace"
        self.passphrase = folder / "passphrase"
        self.passphrase.write_text("correct horse battery\n")
        self.operator_json = folder / "operator.json"
        self.operator_json.write_bytes(self.server.operator_json())
        self.app = App(
            workspace_path=self.path,
            passphrase_file=self.passphrase,
            now=lambda: self.now,
            random=os.urandom,
            checker=self.checker,
            key_cost=CHEAP_SCRYPT,
            connect=self.server.connect,
        )

    @property
    def workspace(self) -> Workspace:
        return Workspace.open(self.path)

    def later(self, **how_long: float) -> None:
        self.now += timedelta(**how_long)
        self.server.now = self.now

    def invoke(self, *arguments: object, answer: str | None = None) -> Result:
        """Runs a command, whatever its end."""
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], obj=self.app, input=answer)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def run(self, *arguments: object) -> dict[str, Any]:
        """Runs a command that must succeed; its JSON."""
        result = self.invoke(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        answer: dict[str, Any] = msgspec.json.decode(result.stdout)
        return answer

    def fail(self, *arguments: object, code: int) -> str:
        """Runs a command that must fail with this exit code; what it says."""
        result = self.invoke(*arguments)
        assert result.exit_code == code, f"{result.exit_code}: {result.stdout} {result.stderr}"
        return result.stderr

    def begin(self, product: str = "pest-detector", managers: tuple[str, ...] = ("alice", "bob", "carol")) -> None:
        """Registers managers, and publishes both repositories with one product."""
        for name in managers:
            self.run("keys", "add", name)
        self.run("keys", "init", "--product", product, "--server", self.operator_json)
        self.sign(*managers[:2])
        self.push()

    def describe(
        self,
        version: str,
        counter: int,
        *,
        product: str = "pest-detector",
        file: str = "leaf.onnx",
        top: str = "",
        variant: str = "",
        more: str = "",
        model: bytes | None = None,
    ) -> Path:
        """Writes a description with its files."""
        folder = self.folder / f"release-{version}"
        folder.mkdir(exist_ok=True)
        (folder / file).write_bytes(model if model is not None else b"model " + version.encode())
        (folder / "leaf.png").write_bytes(b"a picture")
        (folder / "leaf.npz").write_bytes(b"the outputs")
        text = DESCRIPTION.format(
            product=product, version=version, counter=counter, file=file, top=top, variant=variant, more=more
        )
        (folder / "release.toml").write_text(text)
        return folder

    def build(self, version: str, counter: int, *options: str, **more: Any) -> dict[str, Any]:
        return self.run("release", "build", self.describe(version, counter, **more), *options)

    def sign(self, *names: str) -> None:
        for name in names:
            self.run("keys", "sign", "--as", name, "--yes")

    def push(self) -> dict[str, Any]:
        return self.run("release", "push")

    def publish(self, version: str, counter: int, *by: str) -> dict[str, Any]:
        """Builds, signs and pushes."""
        built = self.build(version, counter)
        self.sign(*(by or ("alice", "bob")))
        self.push()
        return built
