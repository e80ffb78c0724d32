"""A place to take images into."""

from pathlib import Path

import pytest

from tests.fakes.intake import Taking


@pytest.fixture
def taking(tmp_path: Path) -> Taking:
    return Taking(tmp_path)
