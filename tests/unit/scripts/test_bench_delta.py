"""The benchmark compares what is comparable: verified results only, a failure is a row and not an end."""

import ast
import dataclasses
import json
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from scripts.delta_bench import command, prepare, tools
from scripts.delta_bench.layers import UnavailableError, write_gzip, write_tar
from scripts.delta_bench.pairs import (
    FINE,
    HALF,
    HEAD,
    INT8,
    INT8_LONG,
    LONG,
    NATIVE,
    OTHER,
    OTHER_LAYER,
    PYTHON,
    REEXPORT,
    SCRATCH,
    SYSTEM,
    Class,
    class_of,
    find_pairs,
)
from scripts.delta_bench.plot import told_ratio
from scripts.delta_bench.runs import RunError, measured, size_of
from scripts.delta_bench.tools import Tool

OLD, NEW = b"the old file" * 100, b"the new file" * 100


def script(text: str, *files: Path) -> list[str]:
    """A tool's command in one line of Python; its files are `a`, `b` and `c`."""
    start = "import sys, pathlib; a, b, c = map(pathlib.Path, sys.argv[1:]); "
    return [sys.executable, "-I", "-S", "-c", start + text, *map(str, files)]


def tool(name: str, *, patch: str, result: str = "c.write_bytes(b.read_bytes()[:1200])") -> Tool:
    return Tool(name, name, lambda *files: script(patch, *files), lambda *files: script(result, *files))


HONEST = tool("zstd", patch="c.write_bytes(b.read_bytes() + bytes(300))")
SMALLER = tool("headland", patch="c.write_bytes(b.read_bytes())")
WRONG = tool("xdelta3", patch="c.write_bytes(b'tiny')")
BROKEN = tool("bsdiff4", patch="sys.exit('no such trick')")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "small-fp32.old.onnx").write_bytes(OLD)
    (pairs / "small-fp32.new.onnx").write_bytes(NEW)
    return pairs


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The benchmark without its real tools."""
    monkeypatch.setattr(command, "install_packages", lambda *_: True)
    monkeypatch.setattr(command, "install_debian_peers", lambda _: None)
    monkeypatch.setattr(command, "why_missing", lambda *_: "")
    return monkeypatch


def run(capsys: pytest.CaptureFixture[str], folder: Path, *more: str) -> tuple[int, dict]:
    code = command.main([str(folder), "--json", "--plot", str(folder.parent / "plot.svg"), *more])
    return code, json.loads(capsys.readouterr().out)


def test_pairs_are_files_of_one_name_with_an_old_and_a_new(tmp_path: Path) -> None:
    for name in ("a.old.tar.gz", "a.new.tar.gz", "b.old", "b.new", "lone.old.onnx", "c.old.onnx", "c.new.tflite"):
        (tmp_path / name).touch()
    (tmp_path / ".unfinished.old.tar").touch()
    (tmp_path / ".unfinished.new.tar").touch()
    assert [(pair.name, pair.suffix) for pair in find_pairs(tmp_path)] == [("a", ".tar.gz"), ("b", "")]


@pytest.mark.parametrize(
    ("name", "suffix", "kind"),
    [
        ("head-fp32", ".onnx", HEAD),
        ("small-fp32", ".onnx", FINE),
        ("medium-fp32tflite", ".tflite", FINE),
        ("arch-fp32", ".onnx", FINE),
        ("long-fp32", ".onnx", LONG),
        ("long-fp16", ".onnx", HALF),
        ("medium-bf16", ".safetensors", HALF),
        ("small-int8", ".onnx", INT8),
        ("long-int8", ".onnx", INT8_LONG),
        ("scratch-fp16", ".onnx", SCRATCH),
        ("magika-retrained", ".onnx", SCRATCH),
        ("openwakeword-reexport", ".onnx", REEXPORT),
        ("layer-flask-fastapi-gz", ".tar.gz", PYTHON),
        ("native-numpy-aarch64", ".tar", NATIVE),
        ("system-base-arm64", ".tar", SYSTEM),
        ("somebodys", ".tar", OTHER_LAYER),
        ("somebodys", ".onnx", OTHER),
    ],
)
def test_a_pairs_name_says_its_class(name: str, suffix: str, kind: Class) -> None:
    assert class_of(name, suffix) is kind


def test_every_tool_stands_beside_ours_with_the_ratio_and_the_goal(
    bench: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.setattr(command, "all_tools", lambda _: [HONEST, SMALLER])
    code, report = run(capsys, folder)
    assert code == 0
    (pair,) = report["pairs"]
    assert (pair["results"]["zstd"]["patch_bytes"], pair["results"]["headland"]["patch_bytes"]) == (1500, 1200)
    assert (pair["best_peer"], pair["ratio"]) == ("zstd", 1.25)
    for verb in ("encode", "apply"):
        assert pair["results"]["zstd"][verb]["seconds"] > 0
        assert pair["results"]["zstd"][verb]["peak_bytes"] > 1 << 20
    assert pair["apply_above_bare_bytes"] < 0  # it imports no numpy
    assert report["classes"] == [
        {"class": FINE.title, "pairs": 1, "mean_ratio": 1.25, "worst_ratio": 1.25, "goal": 1.5, "reached": False}
    ]


def test_a_wrong_result_is_a_failure_however_small_the_patch(
    bench: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.setattr(command, "all_tools", lambda _: [HONEST, WRONG, SMALLER])
    code, report = run(capsys, folder)
    assert code == 1
    assert report["failures"] == ["small-fp32, xdelta3: the result is not the new file"]
    assert report["pairs"][0]["best_peer"] == "zstd"


def test_a_tool_that_gives_another_file_back_is_tried_without_its_tricks(
    bench: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.setattr(
        command,
        "all_tools",
        lambda _: [dataclasses.replace(WRONG, plainer=dataclasses.replace(HONEST, name="xdelta3")), SMALLER],
    )
    code, report = run(capsys, folder)
    assert code == 0
    assert report["pairs"][0]["results"]["xdelta3"]["patch_bytes"] == 1500
    real = {one.name: one for one in tools.all_tools(Path("packages"))}["xdelta3"]
    assert real.plainer is not None
    here = Path(__file__)
    assert {"-D", "-R"} <= set(real.plainer.encode(here, here, here)) - set(real.encode(here, here, here))


def test_a_tool_that_fails_costs_its_cell_only_and_says_why(
    bench: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "z.old").write_bytes(OLD)
    (folder / "z.new").write_bytes(NEW)
    bench.setattr(command, "all_tools", lambda _: [BROKEN, SMALLER])
    code, report = run(capsys, folder)
    assert code == 1
    assert [pair["results"]["headland"]["patch_bytes"] for pair in report["pairs"]] == [1200, 1200]
    assert report["failures"][0] == "small-fp32, bsdiff4: exit code 1: no such trick"


def test_only_what_is_asked_for_runs(
    bench: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.setattr(command, "all_tools", lambda _: [BROKEN, HONEST])
    code, report = run(capsys, folder, "--only", "zstd")
    assert (code, list(report["tools"])) == (0, ["zstd"])
    assert command.main([str(folder), "--only", "nobody"]) == 2
    assert command.main([str(folder / "nowhere")]) == 2


def test_a_tool_that_is_not_there_leaves_its_column_empty_and_is_named(
    bench: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.setattr(command, "all_tools", lambda _: [HONEST, SMALLER])
    bench.setattr(command, "why_missing", lambda it, _: "not installed" if it.name == "zstd" else "")
    code, report = run(capsys, folder)
    assert (code, report["missing"], report["pairs"][0]["ratio"]) == (0, {"zstd": "not installed"}, None)


def test_peers_of_an_earlier_run_are_taken_over_for_the_same_bytes_only(
    bench: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = folder.parent / "earlier.json"
    bench.setattr(command, "all_tools", lambda _: [HONEST])
    run(capsys, folder, "--results", str(earlier))
    bench.setattr(command, "all_tools", lambda _: [tool("zstd", patch="sys.exit(1)"), SMALLER])
    code, report = run(capsys, folder, "--peers-from", str(earlier))
    assert (code, report["pairs"][0]["ratio"]) == (0, 1.25)
    (folder / "small-fp32.new.onnx").write_bytes(NEW[::-1])
    code, report = run(capsys, folder, "--peers-from", str(earlier))
    assert (code, "failed" in report["pairs"][0]["results"]["zstd"]) == (1, True)


def test_people_get_tables_and_a_plot_that_is_an_svg(
    bench: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.setattr(command, "all_tools", lambda _: [HONEST, BROKEN, SMALLER])
    plot = folder.parent / "plot.svg"
    assert command.main([str(folder), "--plot", str(plot)]) == 1
    printed = capsys.readouterr().out
    for word in ("small-fp32", "1200", "1.250", "failed: small-fp32, bsdiff4: exit code 1: no such trick", FINE.title):
        assert word in printed
    drawn = "".join(ElementTree.fromstring(plot.read_text()).itertext())
    assert "small-fp32" in drawn
    assert "1.25" in drawn
    assert "failed: bsdiff4" in drawn


def test_peak_memory_is_the_childs_own_and_not_that_of_the_benchmark() -> None:
    ballast = bytearray(200 << 20)
    ballast[:: 1 << 12] = b"x" * (len(ballast) >> 12)
    small = measured([sys.executable, "-I", "-S", "-c", ""], 30)
    large = measured([sys.executable, "-I", "-S", "-c", "x = bytearray(64 << 20); x[::4096] = b'x' * (64 << 8)"], 30)
    assert small.peak_bytes < 40 << 20
    assert large.peak_bytes - small.peak_bytes > 60 << 20


def test_memory_of_several_processes_counts_together() -> None:
    hold = "x = bytearray(64 << 20); x[::4096] = b'x' * (64 << 8); import time; time.sleep(1)"
    both = (
        f"import subprocess, sys; run = [subprocess.Popen([sys.executable, '-I', '-S', '-c', {hold!r}]) for _ in '12']"
    )
    took = measured([sys.executable, "-I", "-c", both + "; [it.wait() for it in run]"], 30)
    assert took.peak_bytes > 128 << 20


def test_a_command_that_does_not_end_is_ended_with_all_that_it_started() -> None:
    sleeper = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    with pytest.raises(RunError, match="not done after 1 s"):
        measured([sys.executable, "-c", sleeper], 1)


def test_a_command_that_is_not_there_is_a_failure() -> None:
    with pytest.raises(RunError, match="no-such-command"):
        measured(["no-such-command-anywhere"], 30)


def test_a_patch_that_is_a_folder_counts_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "chunks").mkdir()
    (tmp_path / "index").write_bytes(bytes(10))
    (tmp_path / "chunks" / "one").write_bytes(bytes(32))
    assert size_of(tmp_path) == 42


def test_a_layer_is_sorted_owned_by_root_and_packed_the_same_every_time(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("usr/b/second", "usr/a/first", "usr/link"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "usr/link").unlink()
    (root / "usr/link").symlink_to("a")
    layer, packed = tmp_path / "layer.tar", [tmp_path / "one.gz", tmp_path / "two.gz"]
    write_tar(root, layer)
    with tarfile.open(layer) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == ["usr", "usr/link", "usr/a", "usr/a/first", "usr/b", "usr/b/second"]
    assert {(member.uid, member.gid, member.uname) for member in members} == {(0, 0, "")}
    assert all(member.mtime == int(member.mtime) for member in members)
    for to in packed:
        write_gzip(layer, to)
    assert packed[0].read_bytes() == packed[1].read_bytes()


def test_the_real_tools_are_asked_for_their_strongest_and_named_once() -> None:
    known = {one.name: one for one in tools.all_tools(Path("packages"))}
    assert list(known) == ["zstd", "zstd-patch", "xdelta3", "bsdiff4", "hdiffpatch", "casync", "headland"]
    here = Path(__file__)
    assert "-19" in known["zstd"].encode(here, here, here)
    assert f"--patch-from={here}" in known["zstd-patch"].encode(here, here, here)
    assert "-9" in known["xdelta3"].encode(here, here, here)
    assert known["headland"].encode(here, here, here)[0].endswith("scripts/delta")


def test_what_is_trained_by_default_is_what_the_trainer_knows() -> None:
    """Read and not imported: torch is no dependency of ours."""
    source = ast.parse(prepare.TRAINER.read_text())
    written = next(
        node.value for node in source.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "PAIRS"
    )
    assert written is not None
    known = {f"{tuning}-{kind}" for tuning, kinds in ast.literal_eval(written).items() for kind in kinds}
    assert set(prepare.TRAINED) <= known
    assert {class_of(name, ".onnx") for name in prepare.TRAINED} == {HEAD, FINE, LONG, HALF, INT8, INT8_LONG, SCRATCH}


def test_a_pair_that_cannot_be_prepared_is_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(requirement: str, platform: str, into: Path) -> Path:
        if requirement.startswith("silero"):
            raise UnavailableError("no answer")
        return Path(requirement)

    monkeypatch.setattr(prepare, "fetch_wheel", fetch)
    monkeypatch.setattr(prepare, "take_member", lambda wheel, member, to: to.write_text(f"{wheel} {member}"))
    monkeypatch.setattr(prepare, "install_wheels", lambda requirements, platform, root: root.mkdir())
    said: list[str] = []
    failed = prepare.prepare(tmp_path / "pairs", tmp_path, said.append, quick=True)
    assert failed == {"silero-vad-retrained": "no answer"}
    names = {pair.name for pair in find_pairs(tmp_path / "pairs")}
    assert names >= {"openwakeword-reexport", "magika-retrained", "layer-flask-fastapi", "layer-flask-fastapi-gz"}
    assert "silero-vad-retrained" not in names
    said.clear()
    assert prepare.prepare(tmp_path / "pairs", tmp_path, said.append, quick=True) == failed
    assert said == ["preparing silero-vad-retrained"]  # what is there stays


@pytest.mark.parametrize(
    ("ratio", "told"), [(1.4964, "1.49"), (1.5, "1.50"), (1.15, "1.15"), (0.9999, "0.99"), (918.99, "918")]
)
def test_what_misses_a_goal_is_not_drawn_as_the_goal(ratio: float, told: str) -> None:
    assert told_ratio(ratio) == told
