"""O3, as far as there are names: a set's files are named by the manifest, and no name in it leaves the set's folder."""

from typing import Any

import msgspec
import pytest

from protocol.errors import Reason, Refused
from protocol.release import parse_manifest
from tests.fakes.updates import Release, noise

GOOD = Release("1.0.0", 1, noise(100, 1))
HOSTILE = ("../x", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\n", "-rf", "A", "café", "a" * 65, "x/")


def named(where: str, name: str) -> bytes:
    document: Any = msgspec.json.decode(GOOD.manifest_bytes)
    model = document["models"][0]
    variant = model["variants"][0]
    records = {"config": document["configs"][0], "model": model, "variant": variant, "golden": variant["golden"][0]}
    records[where]["name"] = name
    return msgspec.json.encode(document)


@pytest.mark.parametrize("where", ["config", "model", "variant", "golden"])
def test_attack_o3_no_name_in_a_manifest_can_be_a_path_or_two_names_at_once(where: str) -> None:
    assert parse_manifest(named(where, "good-name.2"))
    for name in HOSTILE:
        with pytest.raises(Refused) as refused:
            parse_manifest(named(where, name))
        assert refused.value.reason is Reason.MANIFEST, name


@pytest.mark.parametrize("digest", ["../" + "a" * 61, "A" * 64, "a" * 63, "a" * 64 + "\n", ""])
def test_attack_o3_what_is_stored_is_named_by_a_digest_and_nothing_else(digest: str) -> None:
    document: Any = msgspec.json.decode(GOOD.manifest_bytes)
    document["configs"][0]["artifact"]["sha256"] = digest
    with pytest.raises(Refused) as refused:
        parse_manifest(msgspec.json.encode(document))
    assert refused.value.reason is Reason.MANIFEST


def test_attack_o3_two_files_of_one_name_do_not_meet_in_a_set() -> None:
    document: Any = msgspec.json.decode(GOOD.manifest_bytes)
    document["configs"] *= 2
    with pytest.raises(Refused, match="two"):
        parse_manifest(msgspec.json.encode(document))
