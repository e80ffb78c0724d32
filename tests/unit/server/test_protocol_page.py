"""The page of the wire formats lists the requests that the two doors answer: each of them, and no other."""

import re
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from server.http.devices import DeviceDoor
from server.http.people import PeopleDoor

PAGE = Path(__file__).resolve().parents[3] / "protocol" / "README.md"


def answered(app: web.Application) -> set[tuple[str, str]]:
    """Methods with paths, a star for each part that varies. Every GET answers HEAD too."""
    return {
        (route.method, re.sub(r"\{[^}]*\}", "*", route.resource.canonical))
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }


def listed() -> set[tuple[str, str]]:
    found = re.findall(r"`(GET|POST|PUT|DELETE) (/[^`?]*)", PAGE.read_text(encoding="utf-8"))
    varying = r"\b(?:image|director|FILE|SHA256|ID(?=/|$)|NAME|pause|resume|halt)\b|\{image,director\}"
    return {(method, re.sub(varying, "*", path)) for method, path in found}


def test_the_page_lists_every_request_and_no_other() -> None:
    doors = (DeviceDoor(cast(Any, None)), PeopleDoor(cast(Any, None)))
    assert set().union(*(answered(door.application()) for door in doors)) == listed()
