"""What a person sees of a command's result."""

import pytest
from rich.console import Group
from rich.table import Table

from signing.console import emit


def table_of(*cells: str) -> Table:
    table = Table(*("column" for _ in cells))
    table.add_row(*cells)
    return table


def test_square_brackets_in_a_reason_from_elsewhere_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    emit(False, {}, Group(table_of("[/] closed", "[red]model[/red]")))

    shown = capsys.readouterr().out
    assert "[/] closed" in shown
    assert "[red]model[/red]" in shown


def test_no_name_is_cut_where_the_terminal_is_narrow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signing.console.PIPED_COLUMNS", 30)

    emit(False, {}, Group(table_of("a-name-without-any-space", "another-name-without-space")))

    shown = capsys.readouterr().out
    assert "…" not in shown
    first = "".join(line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│"))
    assert first == "a-name-without-any-space"
