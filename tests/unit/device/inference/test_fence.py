"""What runs models has no right of the agent's but to its devices: not to the engine's socket, not to write files."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from device.inference import fence
from device.inference.fence import kept_groups

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="capabilities and groups are Linux's")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process with the rights of a unit")

ROOT = Path(__file__).resolve().parents[4]
ENGINE, VIDEO = 64001, 44
UNIT = [
    *("setpriv", "--securebits", "+noroot,+noroot_locked", "--groups", f"{ENGINE},{VIDEO}"),
    *("--bounding-set", "-all,+chown,+setgid", "--inh-caps", "-all,+chown,+setgid", "--ambient-caps", "+chown,+setgid"),
]
"""An agent as its unit starts it: root's files, but no right over others' except to give them away, and two groups."""

AGENT = """
import asyncio, os, sys, time
from pathlib import Path
from device.inference import fence, spawning
from device.inference.workers import ProcessWorkers
from tests.fakes import tiny_models as tiny
from tests.fakes.release_sets import ModelSpec, make_release

own = fence.kept_groups  # the devices of this machine are nobody's but root's
spawning.kept_groups = lambda: own(Path(sys.argv[1]))

async def main():
    if sys.argv[2] == "worker":
        workers = ProcessWorkers(clock=time.monotonic)
        await workers.converge(make_release(Path(sys.argv[3]), ModelSpec(tiny.brightness())))
        pid = workers.status().models["light"].pid
        for task in Path(f"/proc/{pid}/task").iterdir():
            print((task / "status").read_text(), flush=True)
        await workers.close()
    else:
        tries = await spawning.start_process(
            sys.argv[2], *sys.argv[3:], environ=os.environ, stdout=asyncio.subprocess.PIPE
        )
        out, err = await tries.communicate()
        print(out.decode(), err.decode(), flush=True)

asyncio.run(main())
"""
TRIES = """
import json, os, socket, sys
done = {}
def attempt(name, what):
    try:
        what()
        done[name] = "done"
    except OSError as error:
        done[name] = error.strerror
attempt("engine", lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[1]))
attempt("camera", lambda: open(sys.argv[2], "rb").close())
attempt("settings", lambda: open(sys.argv[3], "a").write("x"))
attempt("memory", lambda: open(f"/proc/{os.getppid()}/mem", "rb").close())
attempt("give", lambda: os.chown(sys.argv[4], 64002, -1))
print(json.dumps(done))
"""


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """A camera, of whoever is in the group `video`."""
    folder = tmp_path / "dev" / "by-kind"
    folder.mkdir(parents=True)
    os.mknod(folder / "video0", 0o020660, os.makedev(1, 3))
    os.chown(folder / "video0", 64002, VIDEO)
    (folder / "video0").chmod(0o060)
    return tmp_path / "dev"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Path]:
    """A socket of its group's, as an engine's is."""
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        os.chown(path, 64002, ENGINE)
        path.chmod(0o660)
        yield path


def run(folder: Path, *command: object, rights: Sequence[str] = UNIT) -> str:
    done = subprocess.run(
        [*rights, sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fields(status: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)


@needs_root
def test_a_worker_has_the_groups_of_devices_and_no_capability_in_any_of_its_threads(
    tmp_path: Path, devices: Path
) -> None:
    threads = run(tmp_path, "-c", AGENT, devices, "worker", tmp_path / "release").strip().split("\n\n")
    assert len(threads) > 1, "a runtime starts threads"
    for thread in map(fields, threads):
        assert thread["Groups"].split() == [str(VIDEO)]
        assert {thread[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        assert thread["NoNewPrivs"] == "1"


@needs_root
def test_behind_the_fence_is_the_camera_and_neither_the_engine_nor_what_makes_one_root(
    tmp_path: Path, devices: Path, engine: Path
) -> None:
    (tmp_path / "tries.py").write_text(TRIES)
    given = tmp_path / "given"
    given.touch()
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as settings:
        words = (engine, devices / "by-kind" / "video0", settings.name, given)
        agent = json.loads(run(tmp_path, tmp_path / "tries.py", *words))
        model = json.loads(run(tmp_path, "-c", AGENT, devices, "tries", *words))
    assert {name for name, what in agent.items() if what == "done"} >= {"engine", "camera", "settings", "give"}
    denied, forbidden = "Permission denied", "Operation not permitted"
    assert model == {"engine": denied, "camera": "done", "settings": denied, "memory": denied, "give": forbidden}


@needs_root
def test_root_goes_on_reading_models_in_a_folder_of_somebody_else(tmp_path: Path, devices: Path) -> None:
    (tmp_path / "reads.py").write_text("import sys; print(open(sys.argv[1]).read())")
    model = tmp_path / "state" / "model"
    model.parent.mkdir(mode=0o700)
    model.write_text("a model")
    model.chmod(0o400)
    for path in (model, model.parent):
        os.chown(path, 64002, 64002)
    assert run(tmp_path, "-c", AGENT, devices, "reads", model, rights=()).split() == ["a", "model"]


def test_where_all_groups_are_of_devices_or_none_may_be_taken_away_all_stay(
    devices: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "getgroups", lambda: [VIDEO])
    assert kept_groups(devices) is None
    assert not caplog.messages
    monkeypatch.setattr(os, "getgroups", lambda: [VIDEO, ENGINE])
    monkeypatch.setattr(fence, "_may_set_groups", lambda: False)
    assert kept_groups(devices) is None
    assert caplog.messages == [f"models keep the agent's groups [{ENGINE}]: it has no CAP_SETGID to take them away"]


def test_a_filter_that_ends_whoever_asks_for_landlock_ends_no_model() -> None:
    assert not fence._survives(lambda: os.kill(os.getpid(), signal.SIGSYS))
    assert fence._survives(lambda: None)
