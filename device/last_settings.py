"""The settings of the last good start, for one at which `device.toml` is of no use.

A person's editor that is cut off leaves an empty file or none, and a slip keeps the agent from starting at the next
turn of the key, when that person is gone. A machine that has run goes on as it was, and says so.
"""

import contextlib
from pathlib import Path

from device.layout import Layout
from device.settings import DeviceSettings, load
from protocol.errors import SettingsError, StateError
from signing import durable


def load_or_last(layout: Layout) -> tuple[DeviceSettings, str]:
    """Reads the settings, or those of the last start; what is good is kept for the next one. Blocking.

    Returns:
        The settings, and what is wrong with `device.toml`; empty when nothing is.

    Raises:
        SettingsError: It is wrong, and none were kept.
        StateError: It is missing, and none were kept.
    """
    wrong = why_unusable(layout)
    if wrong is None:
        settings = load(layout.settings)
        _keep(layout)
        return settings, ""
    try:
        return load(layout.last_settings), f"{wrong.message}; the settings of the last start hold"
    except (OSError, SettingsError, StateError):
        raise wrong from None


def why_unusable(layout: Layout) -> SettingsError | StateError | None:
    """What is wrong with `device.toml`. One that became empty is a file that its writer lost. Blocking."""
    try:
        load(layout.settings)
    except (SettingsError, StateError) as error:
        return error
    except OSError as error:
        return StateError(f"{layout.settings} cannot be read: {error}")
    if not _content(layout.settings).strip() and _content(layout.last_settings).strip():
        return StateError(
            f"{layout.settings} is empty, and was not", hint=f"write it anew; {layout.last_settings} is what it was"
        )
    return None


def _keep(layout: Layout) -> None:
    content = _content(layout.settings)
    if content != _content(layout.last_settings):
        with contextlib.suppress(OSError):  # a disk that takes nothing now takes it at a later start
            durable.write(layout.last_settings, content, mode=0o644)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
