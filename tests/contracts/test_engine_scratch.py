"""Memory as a file system, on real engines: empty at each start, whatever the image has in its place."""

from pathlib import Path

import pytest

from tests.fakes.engine_bench import real_bench
from tests.fakes.images import SHELL, base_layer, file, link, tar


@pytest.mark.parametrize("kind", ["docker", "podman"])
async def test_scratch_is_empty_whatever_the_image_has_there(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    bench = real_bench(request.getfixturevalue(f"shared_{kind}"), tmp_path)
    old = tar([file("cache/old", bytes(2 << 20)), link("bin/ls", "busybox")])
    image = bench.images.build([base_layer(), old])
    await bench.engine.load(image.image, image.files)
    program = (*SHELL, "/bin/ls -a /cache; echo x >/cache/new && echo written; exit 0")
    code, said = await bench.run(bench.wish(image, program, scratch={"/cache": 1}))
    assert (code, "written" in said, "old" in said) == (0, True, False), said
    await bench.clear()
