"""A device node and its group, on a real engine: what is granted opens, and for nobody but who is in its group."""

import os
import stat
import tempfile
from pathlib import Path

from tests.fakes.engine_bench import real_bench
from tests.fakes.images import SHELL
from tests.fakes.private_engine import PrivateEngine

GROUP = 4242


def _make_node(path: Path) -> None:
    """`null` by another name."""
    os.mknod(path, 0o660 | stat.S_IFCHR, os.makedev(1, 3))
    os.chown(path, 0, GROUP)
    path.chmod(0o660)  # past the umask


async def test_a_granted_device_opens_for_its_group_alone(shared_docker: PrivateEngine, tmp_path: Path) -> None:
    bench = real_bench(shared_docker, tmp_path)
    image = bench.images.app("one")
    await bench.engine.load(image.image, image.files)
    with tempfile.TemporaryDirectory(prefix="headland-dev-", dir="/dev") as folder:  # else it may lie on a `nodev` disk
        node = f"{folder}/apex_0"
        _make_node(Path(node))
        program = (*SHELL, f"echo x >{node} && echo opened; mknod /tmp/other c 1 1; exit 0")
        for groups, opened in (((GROUP,), True), ((), False)):
            wish = bench.wish(image, program, devices=(node,), groups=groups, scratch={"/tmp": 1})
            code, said = await bench.run(wish)
            assert (code, "opened" in said) == (0, opened), said
            assert "mknod: /tmp/other: Operation not permitted" in said
    await bench.clear()
