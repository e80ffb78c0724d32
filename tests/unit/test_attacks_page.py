"""The page that says which attack is held off where names every file that there is, and no file that there is not."""

import re
from pathlib import Path

ATTACKS = Path(__file__).resolve().parents[1] / "attacks"
ROOT = ATTACKS.parents[1]
PAGE = (ATTACKS / "README.md").read_text(encoding="utf-8")
ROWS = [f"T{n}" for n in range(1, 12)] + [f"U{n}" for n in range(1, 4)] + [f"O{n}" for n in range(1, 28)]


def test_every_attack_has_one_row_that_says_what_holds_it_off_or_what_it_waits_for() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| [TUO]\d", line)]
    assert [row.split("|")[1].strip() for row in rows] == ROWS
    for row in rows:
        held, waits = row.split("|")[3:5]
        assert held.strip() or waits.strip(), row


def test_the_page_names_every_file_of_attacks_and_only_files_that_are_there() -> None:
    here = {path.stem.removeprefix("test_attack_") for path in ATTACKS.glob("test_attack_*.py")}
    named = set(re.findall(r"`([tuo]\d+_[a-z0-9_]+)`", PAGE))
    assert named == here
    for path in re.findall(r"`(tests/[a-z0-9_/]+\.py)`", PAGE):
        assert (ROOT / path).is_file(), path


def test_each_file_of_attacks_holds_tests_named_after_its_attack() -> None:
    for path in ATTACKS.glob("test_attack_*.py"):
        attack = path.stem.split("_")[2]
        assert re.search(rf"def test_attack_{attack}_", path.read_text(encoding="utf-8"), re.IGNORECASE), path
