"""A container engine of one's own in a folder: socket, images, containers and log, apart from any other engine here.

    scripts/engine install [--podman]           what Debian has of it, when it is missing and this is root
    scripts/engine start DIR [options]          starts it, or starts again what was killed; prints its socket
    scripts/engine stop DIR                     ends it and its containers and undoes its mounts; what it holds stays
    scripts/engine remove DIR                   the same, and deletes the folder
    scripts/engine run DIR [options] -- COMMAND   starts, runs COMMAND with HEADLAND_ENGINE=SOCKET, removes

With `--until PID` it is removed when that process has ended, however that was. A folder with something else in it is
never taken: it would be deleted.

It needs root and leaves neither network interfaces nor firewall rules: containers have the network of the machine
(`host`) or none. With `--network` a Docker engine stands in a network of its own, where it has its bridge and publishes
ports; `nsenter --net --target PID` goes there. Exit code 77: no engine can run here; the reason is on standard error.
"""

import argparse
import contextlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

CANNOT = 77
READY_S = 40.0
END_S = 30.0
PACKAGES = {
    "docker": ("docker.io", "runc", "iproute2"),
    "podman": ("podman", "runc", "golang-github-containers-common"),
}
PROGRAMS = {"docker": "dockerd", "podman": "podman"}
ENGINES = ("dockerd", "containerd", "containerd-shim", "containerd-shim-runc-v2", "podman", "conmon")
IN_A_NETWORK = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
EMPTY_CONFIG = "engine.json"
MARK = "headland-engine"  # in a folder that may be deleted with all that is in it


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("install", "start", "stop", "remove", "run", "guard"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--podman", action="store_true", help="Podman's Docker-compatible service instead of Docker")
    parser.add_argument("--size-mib", type=int, help="what it holds lies in memory and may take this much: disk full")
    parser.add_argument("--live-restore", action="store_true", help="containers outlive the engine")
    parser.add_argument("--network", action="store_true", help="a network of its own, with a bridge; Docker only")
    parser.add_argument("--until", type=int, metavar="PID", help="remove it when this process has ended")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    options, command = parser.parse_args(words[:cut]), words[cut + 1 :]
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"  # engines lie there
    kind = "podman" if options.podman else "docker"
    if options.what == "install":
        return install(kind)
    if options.folder is None:
        parser.error("which folder?")
    folder = options.folder.absolute()
    if not is_for_an_engine(folder):
        parser.error(f"{folder} is not a folder of an engine: there is something else in it")
    match options.what:
        case "start":
            path = start(folder, kind, options.size_mib, live_restore=options.live_restore, network=options.network)
            if options.until:
                let_guard(folder, options.until)
            print(path)
        case "guard":
            guard(folder, options.until)
        case "stop":
            stop(folder)
        case "remove":
            remove(folder)
        case "run":
            if not command:
                parser.error("run what?")
            try:
                path = start(folder, kind, options.size_mib, live_restore=options.live_restore, network=options.network)
                environment = {**os.environ, "HEADLAND_ENGINE": str(path), "DOCKER_HOST": f"unix://{path}"}
                return subprocess.run(command, env=environment, check=False).returncode
            finally:
                remove(folder)
    return 0


def is_for_an_engine(folder: Path) -> bool:
    """Whether there is nothing of somebody's in the folder."""
    return not folder.exists() or (folder / MARK).exists() or (folder.is_dir() and not any(folder.iterdir()))


def cannot(reason: str) -> NoReturn:
    print(f"engine: {reason}", file=sys.stderr)
    raise SystemExit(CANNOT)


def install(kind: str) -> int:
    """Brings the engine from the distribution's packages; does not let it start by itself."""
    if shutil.which(PROGRAMS[kind]):
        return 0
    if os.geteuid() != 0:
        cannot(f"{kind} is not installed and this is not root (apt-get install {' '.join(PACKAGES[kind])})")
    if not shutil.which("apt-get"):
        cannot(f"{kind} is not installed and there is no apt-get here")
    print(f"engine: installing {' '.join(PACKAGES[kind])}", file=sys.stderr)
    # RUNLEVEL=1 keeps Debian's service from starting at once where nothing else forbids it (invoke-rc.d(8)).
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES[kind]]):
        done = subprocess.run(["apt-get", "-qq", *words], env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not shutil.which(PROGRAMS[kind]):
        cannot(f"{kind} could not be installed: {(done.stderr or done.stdout).strip()[-300:]}")
    return 0


def start(folder: Path, kind: str, size_mib: int | None, *, live_restore: bool = False, network: bool = False) -> Path:
    """Starts the engine unless it runs. Safe to repeat after any death of it."""
    if os.geteuid() != 0:
        cannot("a private engine needs root")
    install(kind)
    path = folder / f"{kind}.sock"
    if len(str(path)) > 100:
        cannot(f"the path of a socket may have 108 bytes at most: {path}")
    if answers(path):
        return path
    data = folder / "data"
    data.parent.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    data.mkdir(exist_ok=True)
    if size_mib and not data.is_mount():
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0710", "tmpfs", str(data)]
        if subprocess.run(mount, check=False).returncode:
            cannot("no tmpfs can be mounted here")
    forget_the_dead(folder)
    environment = dict(os.environ)
    if kind == "docker":
        command = docker_command(folder, live_restore=live_restore, network=network)
    else:
        command = podman_command(folder, environment)
    with (folder / "log").open("ab") as log:
        began = log.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    (folder / "pid").write_text(f"{process.pid}\n")
    if not wait(lambda: answers(path) or process.poll() is not None, READY_S) or not answers(path):
        said = (folder / "log").read_bytes()[began:].decode(errors="replace").strip().splitlines()[-8:]
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        stop(folder)
        cannot(f"{kind} did not start here:\n" + "\n".join(said))
    # It is not our child's keeper any more: the engine goes on when this script ends.
    process.returncode = 0
    return path


def docker_command(folder: Path, *, live_restore: bool, network: bool) -> list[str]:
    (folder / EMPTY_CONFIG).write_text("{}\n")  # not the machine's own /etc/docker/daemon.json
    return [
        *(IN_A_NETWORK if network else ()),
        *("dockerd", "--config-file", str(folder / EMPTY_CONFIG), "--host", f"unix://{folder}/docker.sock"),
        *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
        *("--pidfile", str(folder / "docker.pid"), "--storage-driver", "overlay2", "--log-level", "warn"),
        *(() if network else ("--iptables=false", "--ip6tables=false", "--bridge=none")),
        *("--shutdown-timeout", "5"),
        *(("--live-restore",) if live_restore else ()),
    ]


def podman_command(folder: Path, environment: dict[str, str]) -> list[str]:
    # Podman asks for more files and processes than a machine without CAP_SYS_RESOURCE lets it have.
    files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1] % (1 << 63), 1 << 20)
    limits = [f"nofile={files}:{files}", "nproc=4096:4096"]
    settings = folder / "containers.conf"
    settings.write_text(f"[containers]\ndefault_ulimits = {json.dumps(limits)}\n")
    environment["CONTAINERS_CONF"] = str(settings)
    (folder / "tmp").mkdir(exist_ok=True)
    environment["TMPDIR"] = str(folder / "tmp")  # archives that are loaded are put down here, not in /var/tmp
    return [
        *podman_words(folder),
        *("system", "service", "--time=0", f"unix://{folder}/podman.sock"),
    ]


def podman_words(folder: Path) -> list[str]:
    return [
        *("podman", "--root", str(folder / "data"), "--runroot", str(folder / "exec"), "--tmpdir", str(folder / "tmp")),
        *(("--runtime", runc) if (runc := shutil.which("runc")) else ()),
        *("--cgroup-manager=cgroupfs", "--events-backend=file", "--log-level=warn"),
    ]


def stop(folder: Path) -> None:
    """Ends the engine and its containers, and undoes its mounts. Repeating does no harm."""
    pid = read_pid(folder / "pid")
    if pid is not None and is_ours(pid, folder):
        if (folder / "podman.sock").exists():
            # The service does not end its containers: it only started them.
            environment = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}
            with contextlib.suppress(subprocess.TimeoutExpired):
                words = [*podman_words(folder), "kill", "--all"]
                subprocess.run(words, env=environment, capture_output=True, timeout=END_S, check=False)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if wait(lambda: not is_ours(pid, folder), END_S):
                break
    kill_the_rest(folder)
    for name in ("docker.sock", "podman.sock", "pid"):
        (folder / name).unlink(missing_ok=True)
    for point in reversed(mounts_below(folder)):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)


def let_guard(folder: Path, pid: int) -> None:
    """Starts what removes the engine when `pid` is gone; once for each engine."""
    if living_guard(folder) is not None:
        return
    command = [sys.executable, "-P", __file__, "guard", str(folder), "--until", str(pid)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    (folder / "guard").write_text(f"{process.pid}\n")
    process.returncode = 0  # it stays when this script ends


def guard(folder: Path, pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(pid)], [], [])
    (folder / "guard").unlink(missing_ok=True)  # not to be ended by ourselves
    remove(folder)


def living_guard(folder: Path) -> int | None:
    """The process that the note names, unless that is a stranger by now."""
    pid = read_pid(folder / "guard")
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    return pid if {b"guard", os.fsencode(folder)} <= set(words) else None


def remove(folder: Path) -> None:
    if (pid := living_guard(folder)) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    stop(folder)
    shutil.rmtree(folder, ignore_errors=True)


def forget_the_dead(folder: Path) -> None:
    """Takes away the notes of processes that were killed: an engine believes a zombie to be alive, and waits for it."""
    for name in ("docker.pid", "exec/containerd/containerd.pid"):
        pid = read_pid(folder / name)
        if pid is not None and not is_ours(pid, folder):
            (folder / name).unlink(missing_ok=True)
    # Killed as well, its containerd is on its way out; a new one may not start before.
    note = folder / "exec/containerd/containerd.pid"
    if (pid := read_pid(note)) is not None and wait(lambda: not is_ours(pid, folder), END_S):
        note.unlink(missing_ok=True)


def kill_the_rest(folder: Path) -> None:
    """What a killed engine left running: the shims of its containers, and what they hold."""
    ours = [pid for pid in processes() if is_ours(pid, folder)]
    parents = {pid: parent_of(pid) for pid in processes()}
    inside = [pid for pid, parent in parents.items() if parent in ours]
    for pid in (*inside, *ours):
        if pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    wait(lambda: not any(is_ours(pid, folder) for pid in ours), END_S)


def processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def is_ours(pid: int, folder: Path) -> bool:
    """Whether a process of this engine lives: a zombie does not, nor does a stranger who got the number."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    inside = os.fsencode(folder) + b"/"
    program = Path(os.fsdecode(words[0])).name
    return state not in "ZX" and program in ENGINES and any(inside in word for word in words[1:])


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = (line.split()[4].encode().decode("unicode_escape") for line in lines)
    return [point for point in points if point.startswith(f"{folder}/")]


def answers(path: Path) -> bool:
    """Whether the engine answers a ping."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(5)
        try:
            line.connect(str(path))
            line.sendall(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")
            return b" 200 " in line.recv(64)
        except OSError:
            return False


def wait(seen: Callable[[], bool], limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while not seen():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


if __name__ == "__main__":
    sys.exit(main())
