"""A machine that has run starts again, whatever became of its `device.toml`."""

from pathlib import Path

import pytest

from device.last_settings import load_or_last
from device.layout import Layout
from device.repair import settings_file
from device.repair.fault import Place
from protocol.errors import SettingsError, StateError

GOOD = '[inference]\nframes = "/camera"\n'


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    layout.settings.write_text(GOOD)
    return layout


def faults(layout: Layout) -> list[str]:
    return [fault.what for fault in settings_file.find(Place(layout, lambda: "0" * 32))]


@pytest.mark.parametrize("bad", [None, b"", b"\0" * 200, b"[inference\n", b"[inference]\nframe = 1\n", b"\xff\xfe"])
def test_what_an_editor_or_a_cut_left_is_reported_and_the_last_settings_hold(layout: Layout, bad: bytes | None) -> None:
    good, trouble = load_or_last(layout)
    assert not trouble and not faults(layout)
    layout.settings.unlink() if bad is None else layout.settings.write_bytes(bad)
    for _ in range(2):
        settings, trouble = load_or_last(layout)
        assert settings == good and settings.inference.frames == "/camera"
        assert "the settings of the last start hold" in trouble
        assert len(faults(layout)) == 1


def test_corrected_settings_hold_from_the_next_start_and_are_the_last_ones_from_then_on(layout: Layout) -> None:
    load_or_last(layout)
    layout.settings.write_text(GOOD.replace("camera", "other"))
    assert load_or_last(layout)[0].inference.frames == "/other"
    layout.settings.unlink()
    assert load_or_last(layout)[0].inference.frames == "/other"


def test_a_machine_that_never_ran_is_told_what_is_wrong(layout: Layout) -> None:
    layout.settings.write_text("[inference\n")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load_or_last(layout)
    layout.settings.unlink()
    with pytest.raises(StateError, match="is missing"):
        load_or_last(layout)


def test_settings_that_were_always_empty_are_none_that_were_lost(layout: Layout) -> None:
    layout.settings.write_text("")
    load_or_last(layout)
    assert load_or_last(layout)[1] == ""
    assert not faults(layout)
