"""T2, O16: metadata without end, or built to be expensive: bounded memory, bounded time, a reason and no crash."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import DelegatedRole, Metadata, MetaFile, Targets

from protocol import limits
from protocol.objects import Step, TransferPlan
from signing.trust_store import HttpSource
from tests.fakes.field import NONCE, PRODUCT, Field, reasons
from tests.fakes.repository_server import http_server

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def field(tmp_path: Path) -> Field:
    field = Field(tmp_path, NOW)
    field.house.release("1.0.0", 1, b"genuine")
    field.contact()
    field.passes(hours=1)
    field.serve()
    return field


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


@pytest.mark.parametrize("role", ["root", "snapshot", PRODUCT])
def test_attack_t2_a_file_without_end_is_cut_at_its_limit(field: Field, role: str) -> None:
    field.house.rotate_online("image", "timestamp")
    field.house.release("1.1.0", 2, b"newer")
    field.serve()
    newest = max(name for name in field.image_shelf.files if name.endswith(f".{role}.json"))
    sent = 0

    def endless(handler: Any) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        try:
            while sent < 200_000_000:
                handler.wfile.write(b"[" * 65536)
                sent += 65536
        except OSError:
            pass

    del field.image_shelf.files[newest]
    path = f"/m/{newest}"
    with http_server({"/n/": field.image_shelf}, {path: endless}) as url:
        answer = field.answer()
        field.image_shelf = EitherSource(url, newest)  # type: ignore[assignment]  # a source is all that is needed
        with within(20):
            verdict = field.judge().judge(answer, NONCE, field.boot_ms / 1000)
    assert reasons(verdict) == [("image", "length")]
    assert verdict.terms is not None
    assert verdict.terms.role_version == 2
    assert sent < limits.METADATA_BYTES + 20_000_000


class EitherSource:
    """One file from the hostile server, the rest from the honest one."""

    def __init__(self, url: str, hostile: str) -> None:
        self._hostile = hostile
        self._bad = HttpSource(f"{url}/m/")
        self._good = HttpSource(f"{url}/n/")

    def read(self, name: str, limit_bytes: int) -> bytes:
        return (self._bad if name == self._hostile else self._good).read(name, limit_bytes)


@pytest.mark.parametrize("what", ["image_timestamp", "director_timestamp", "time", "assignment"])
@pytest.mark.parametrize(
    "shape",
    [
        lambda size: "[" * size,
        lambda size: '{"a":' * size,
        lambda size: (
            '{"signed":{"_type":"targets"},"signatures":[' + '{"keyid":"a","sig":"b"},' * (size // 25) + "{}]}"
        ),
        lambda size: json.dumps({"signed": {str(number): number for number in range(size // 20)}, "signatures": []}),
        lambda size: '"' + "\\u0041" * (size // 6) + '"',
        lambda size: '{"signed":' + "9" * size + "}",
    ],
)
def test_attack_o16_nested_wide_and_long_json_is_a_complaint_in_bounded_time(
    field: Field, what: str, shape: Any
) -> None:
    text = shape(1_000_000)
    with within(10):
        verdict = field.contact(serve=False, **{what: text})
    assert verdict.complaints
    assert verdict.terms is not None


@pytest.mark.parametrize("what", ["image_timestamp", "assignment", "time"])
def test_attack_o16_text_just_below_the_limit_is_as_harmless(field: Field, what: str) -> None:
    size = 16_000 if "timestamp" in what else limits.OBJECT_BYTES - 10
    for text in ("[" * size, '{"a":' * (size // 5), '{"signed":' + "9" * (size - 20) + "}"):
        with within(10):
            assert field.contact(serve=False, **{what: text}).complaints


def test_attack_o16_a_hundred_thousand_signatures_cost_no_verification_each(field: Field) -> None:
    text = json.loads(field.assignment())
    text["signatures"] = [{"keyid": f"{number:064x}", "sig": "00"} for number in range(2000)] + text["signatures"]
    with within(5):
        verdict = field.contact(serve=False, assignment=json.dumps(text))
    assert reasons(verdict) == [("assignment", "limit")]


def test_attack_o16_three_hundred_delegations_cost_one(field: Field) -> None:
    targets = field.house.make_image_targets(2)
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    own = targets.delegations.roles[PRODUCT]
    for number in range(300):
        name = f"p{number}"
        targets.delegations.roles[name] = DelegatedRole(name, list(own.keyids), 2, terminating=True, paths=["*"])
    field.hostile(
        "image",
        {"targets": (2, field.house.sign(targets)), PRODUCT: (2, field.house.image.delegated[PRODUCT])},
    )
    with within(10):
        verdict = field.contact(serve=False)
    assert verdict.may_install
    assert len(field.image_shelf.asked) == 3


def test_attack_o16_a_product_that_delegates_in_a_circle_is_never_followed(field: Field) -> None:
    role = field.house.current_product()
    role.version = 3
    role.delegations = field.house.make_image_targets(1).delegations
    field.hostile("image", {"targets": (1, field.house.image.targets), PRODUCT: (3, field.house.sign(role))})
    with within(10):
        field.contact(serve=False)
    assert len(field.image_shelf.asked) == 3


def test_attack_o16_a_snapshot_of_a_hundred_thousand_names_is_read_or_refused_in_bounded_time(field: Field) -> None:
    field.hostile(
        "image", {"targets": (1, field.house.image.targets), PRODUCT: (2, field.house.image.delegated[PRODUCT])}
    )
    number = int(field.now.timestamp())
    name = f"{number}.snapshot.json"
    snapshot: Metadata[Any] = Metadata.from_bytes(field.image_shelf.files[name])
    snapshot.signed.meta |= {f"n{index}.json": MetaFile(1) for index in range(100_000)}
    snapshot.signatures.clear()
    snapshot.sign(field.house.online["image"]["snapshot"])
    field.image_shelf.files[name] = snapshot.to_bytes()
    with within(10):
        verdict = field.contact(serve=False)
    assert reasons(verdict)[0][0] == "image"


def test_attack_o16_versions_beyond_all_numbers_are_refused(field: Field) -> None:
    signed: Targets = field.house.current_product()
    signed.version = 1 << 70
    field.hostile(
        "image", {"targets": (1, field.house.image.targets), PRODUCT: (signed.version, field.house.sign(signed))}
    )
    verdict = field.contact(serve=False)
    assert reasons(verdict) == [("image", "limit")]
    assert field.contact(serve=False).terms == verdict.terms


def test_attack_t2_a_rightly_signed_object_beyond_its_limit_is_refused_unread(field: Field) -> None:
    step = Step(artifact="a" * 64, length_bytes=1, method="have")
    text = field.assignment(plan=TransferPlan(steps=(step,) * 3000, full_bytes=0))
    assert len(text) > limits.OBJECT_BYTES
    assert reasons(field.contact(serve=False, assignment=text)) == [("assignment", "length")]
