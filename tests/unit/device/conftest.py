"""A command that runs in this process switches the log off for a person who reads its output: not for the next test."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _log_is_on() -> Iterator[None]:
    yield
    logging.disable(logging.NOTSET)
