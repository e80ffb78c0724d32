"""A fixed sample of the two sweeps over field kits; `scripts/soak --kit-reads` and `--kit-tamper` play them whole."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation import kit_reads, kit_tamper
from tests.simulation.fleet.template import scratch

ONE_READ_IN = 23
ONE_BYTE_IN = 307
ONE_PLACE_IN = 5
SEED = 6


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = scratch()
    yield folder
    shutil.rmtree(folder)


async def test_a_stick_that_fails_at_any_call_harms_nothing_and_a_good_one_goes_on(folder: Path) -> None:
    report = await kit_reads.sweep(folder, share=ONE_READ_IN)
    print(f"one in {ONE_READ_IN}: {report.line()}")
    assert report.broken == []
    assert sum(report.tried.values()) > 30
    assert report.calls["pread"] > 20


def test_a_changed_byte_of_metadata_is_refused_or_without_effect(folder: Path) -> None:
    report = kit_tamper.sweep(folder, seed=SEED, share=ONE_BYTE_IN)
    print(f"one in {ONE_BYTE_IN}, seed {SEED}", *report.lines(), sep="\n")
    assert report.broken == []
    assert sum(report.tried.values()) > 200
    assert {"signature", "metadata", "length"} <= set(report.refused)


async def test_a_changed_byte_of_a_blob_is_refused_and_a_good_stick_goes_on(folder: Path) -> None:
    report = await kit_tamper.sweep_blobs(folder, share=ONE_PLACE_IN)
    print(f"one in {ONE_PLACE_IN}", *report.lines(), sep="\n")
    assert report.broken == []
    assert report.refused["blob"] > 5
