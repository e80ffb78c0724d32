"""README.md tells the truth about the commands."""

from pathlib import Path

from tests.unit.readme_help import BLOCK, COMMANDS, fill

PAGE = Path(__file__).parents[2] / "README.md"


def test_the_readme_shows_the_help_of_all_three_commands_as_they_print_it():
    page = PAGE.read_text()
    assert [match.group(1) for match in BLOCK.finditer(page)] == list(COMMANDS)
    assert fill(page) == page, "run scripts/readme-help"


def test_every_file_that_the_readme_links_to_is_there():
    import re

    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target
