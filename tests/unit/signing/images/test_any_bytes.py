"""Whatever bytes come for an image, an intake ends in an image that is whole or in an error of ours."""

import contextlib
import io
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from protocol.errors import HeadlandError, Refused
from protocol.image_config import parse_image_config
from signing.images.credentials import Logins
from signing.images.http import parse_url
from signing.images.registry_login import _read as read_challenge
from signing.images.tar_entries import read_entries
from tests.fakes.image_files import layer, make_image, sha256, write_archive, write_layout
from tests.fakes.intake import Taking

ONE = make_image([layer({"app": b"program"}), layer({"lib": b"library"})], steps=["ADD a /", "COPY b /"])
SOME = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text("aV/:.=\0\u017f\ud800", max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(["os", "architecture", "variant", "rootfs", "config", "history", "Volumes", "Env", "diff_ids"])


@SOME
@given(at=st.integers(0, 20_000), data=st.binary(min_size=1, max_size=40))
def test_an_archive_that_was_written_over(tmp_path_factory: pytest.TempPathFactory, at: int, data: bytes) -> None:
    taking = Taking(tmp_path_factory.mktemp("fresh"))  # what is there from a try before would not be read again
    path = taking.folder / "app.tar"
    write_archive(path, ONE)
    whole = bytearray(path.read_bytes())
    at %= len(whole)
    whole[at : at + len(data)] = data
    path.write_bytes(whole)
    try:
        (image,) = taking.take("archive:app.tar")
    except HeadlandError:
        assert taking.left_over() == []
    else:
        config = taking.workspace.read_blob(image.config.sha256, 1 << 20)
        assert tuple(each.artifact.sha256 for each in image.layers) == parse_image_config(config).layers
        for artifact in image.artifacts():
            content = taking.workspace.blob(artifact.sha256).read_bytes()
            assert (sha256(content), len(content)) == (artifact.sha256, artifact.length_bytes)


@SOME
@given(data=st.binary(max_size=3000))
@example(data=b"\0" * 511)
@example(data=b"0" * 1024)
def test_bytes_in_place_of_an_archive(data: bytes) -> None:
    with contextlib.suppress(Refused):
        read_entries(io.BytesIO(data))


@SOME
@given(changes=st.dictionaries(KEYS, JSON, max_size=3))
def test_a_config_with_anything_in_it(changes: dict[str, Any]) -> None:
    content = {**json.loads(ONE.config), **changes}
    content["config"] = {**(content["config"] if isinstance(content["config"], dict) else {}), **changes}
    try:
        read = parse_image_config(json.dumps(content).encode(errors="surrogatepass"))
    except Refused:
        return
    assert all(path.startswith("/") and ".." not in path.split("/") for path in read.volumes)
    assert all(read.variables) and len(read.origins()) == len(read.layers)


@SOME
@given(changed=st.dictionaries(st.sampled_from(["schemaVersion", "manifests", "config", "layers"]), JSON, max_size=2))
def test_a_manifest_and_an_index_with_anything_in_them(
    tmp_path_factory: pytest.TempPathFactory, changed: dict[str, Any]
) -> None:
    taking = Taking(tmp_path_factory.mktemp("fresh"))
    write_layout(taking.folder / "layout", {"": [ONE]})
    path = taking.folder / "layout/index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    try:
        (image,) = taking.take("oci:layout")
    except HeadlandError:
        assert taking.left_over() == []
    else:
        assert taking.is_whole(image, ONE)


@SOME
@given(text=st.text(max_size=60) | st.from_regex(r"(https?|ftp)://[^ ]{0,30}(:[0-9]{0,6})?/.{0,20}"))
def test_an_address_that_a_registry_names(text: str) -> None:
    try:
        url = parse_url(text)
    except Refused:
        return
    assert url.origin.scheme in ("http", "https") and url.origin.host and 0 < url.origin.port <= 65535
    assert url.target.startswith("/") and url.target.isprintable()


@SOME
@given(text=st.text(max_size=200))
def test_a_challenge_and_a_docker_config_of_any_text(taking: Taking, text: str) -> None:
    assert isinstance(read_challenge(f"Bearer {text}, Basic {text}"), dict)
    (taking.folder / "config.json").write_text(text, errors="surrogatepass")
    with contextlib.suppress(HeadlandError):
        assert Logins(taking.folder / "config.json").of("example.org", "app") is None
