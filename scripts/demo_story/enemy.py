"""The enemy: holds the server's machine, its database and every online key, and changes what it says.

Run as a program it is headland-server with two lies: files in `EVIL/served/REPOSITORY/` are served instead of the
published ones, and `EVIL/assignments/DEVICE` is the assignment that DEVICE gets to hear. `Evil` is the demo's hand on
those files.
"""

import argparse
import asyncio
import json
import logging
import os
import shutil
import sqlite3
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Signature

from protocol.objects import AssignmentBody
from protocol.wire import decode
from server import contact
from server.app import run
from server.clock import system_now_ms
from server.keyring import Keyring
from server.notify import Notifier
from server.storage.repository import Repositories
from signing.objects import sign_object
from signing.repository import RepositorySet, render_online


@dataclass(frozen=True)
class Payload:
    """What travels for one artifact: references as they stand in a plan's step."""

    payload: dict[str, Any]
    index: dict[str, Any] | None

    @property
    def travels(self) -> int:
        """In bytes."""
        return int(self.payload["length_bytes"]) + (int(self.index["length_bytes"]) if self.index else 0)


class Evil:
    """Prepares lies. All it uses is what lies on the server, and what one manager signed."""

    def __init__(self, folder: Path, server_state: Path) -> None:
        self.folder = folder
        self.server_state = server_state
        self.before: dict[tuple[str, str], bytes] = {}

    def remember_published(self) -> None:
        """Takes a copy of all that is served now."""
        self.before = self.published()

    def published(self) -> dict[tuple[str, str], bytes]:
        rows = self._ask("SELECT repository, name, content FROM served_files")
        return {(repository, name): bytes(content) for repository, name, content in rows}

    def replay(self) -> None:
        """Serves what was published at `remember_published`."""
        self._serve(self.before)

    def publish_signed_by_one(self, event_folder: Path, product: str, manager: str) -> None:
        """Publishes a proposed product role with the one signature that it has, under the stolen online keys."""
        proposed = Metadata.from_bytes((event_folder / "payload" / "image" / f"{product}.json").read_bytes())
        entries = json.loads((event_folder / "signatures" / f"{manager}.json").read_text())["files"][f"image/{product}"]
        for entry in entries:
            proposed.signatures[entry["keyid"]] = Signature(entry["keyid"], entry["sig"])
        published = {name: data for (repository, name), data in self.published().items() if repository == "image"}
        newest = max(int(name.split(".")[0]) for name in published if name.endswith(".targets.json"))
        honest = RepositorySet(
            roots={int(name.split(".")[0]): data for name, data in published.items() if name.endswith(".root.json")},
            targets=published[f"{newest}.targets.json"],
            delegated={product: proposed.to_bytes()},
        )
        keys = Keyring(self.server_state / "keys", {}, lambda name: "")["image"]
        files = render_online(honest, keys["snapshot"], keys["timestamp"], int(time.time()), datetime.now(UTC))
        self._serve({("image", name): data for name, data in files.items()})

    def sign_assignment(self, body: bytes) -> str:
        """Signs whatever it likes to assign, with the stolen key."""
        parsed = decode(body, AssignmentBody, limit=len(body))
        keys = Keyring(self.server_state / "keys", {}, lambda name: "")["director"]
        version = self._ask("SELECT object_version + 1 FROM devices WHERE id = ?", parsed.device)[0][0]
        return sign_object(parsed, keys["assignments"], version, datetime.now(UTC) + timedelta(days=1))

    def assign(self, device: str, *, signed: str) -> None:
        """Makes `device` hear this assignment at each contact."""
        folder = self.folder / "assignments"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / device).write_text(signed)

    def payloads(self) -> dict[str, "Payload"]:
        """The server's payloads by artifact."""
        rows = self._ask('SELECT artifact, payload, payload_bytes, "index", index_bytes FROM compressed')
        return {
            artifact: Payload(
                {"sha256": payload, "length_bytes": payload_bytes},
                {"sha256": index, "length_bytes": index_bytes} if index else None,
            )
            for artifact, payload, payload_bytes, index, index_bytes in rows
        }

    def stop_lying(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ask(self, query: str, *values: str) -> list[Any]:
        database = sqlite3.connect(f"file:{self.server_state / 'catalog.db'}?mode=ro", uri=True)
        try:
            return database.execute(query, values).fetchall()
        finally:
            database.close()

    def _serve(self, files: dict[tuple[str, str], bytes]) -> None:
        for (repository, name), data in files.items():
            path = self.folder / "served" / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def main() -> None:
    """Runs the server in enemy hands."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--evil", type=Path, required=True)
    arguments = parser.parse_args()

    honest_served, honest_offer = Repositories.served, contact.Contacts._offer

    def served(self: Any, repository: Any, name: str) -> bytes | None:
        lie = arguments.evil / "served" / repository / name
        return lie.read_bytes() if lie.exists() else honest_served(self, repository, name)

    def offer(self: Any, session: Any, device: Any, *rest: Any, **known: Any) -> Any:
        lie = arguments.evil / "assignments" / device.id
        if lie.exists():
            return contact._Offer(lie.read_text())
        return honest_offer(self, session, device, *rest, **known)

    Repositories.served = served  # type: ignore[method-assign]  # that is the attack
    contact.Contacts._offer = offer  # type: ignore[method-assign]  # as above
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    asyncio.run(run(arguments.state, system_now_ms, lambda name: "", Notifier(os.environ)))


if __name__ == "__main__":
    main()
