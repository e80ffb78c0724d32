"""Cuts in mid-download of a patch: the link drops, the machine's agent is killed. What each one cost is measured.

Two who know nothing of each other are asked. The machine's log says at which byte each request for the patch began and
which group was applied; the proxy says how many bytes each connection took to the machine. A payload travels on one
connection, contacts and metadata meanwhile on others. So what came of the patch before a cut is known at most: where
its last request began, and the most that one connection carried since. Of all else only TLS and the answer's head count
as if they were patch.
"""

import re
import time
from typing import Any

from protocol.limits import PATCH_SEGMENT_BYTES
from scripts.cast import CastError, Machine, expect, wait_for
from scripts.demo_story.proxy import Link
from scripts.demo_story.report import Cut

DOWNLOAD_S = 10.0  # the link is made so slow that the download takes about so long: cuts must fall into it
APPLYING_S = 20.0
_REQUEST = re.compile(r"payload (\w+): from byte (\d+) of (\d+)$", re.MULTILINE)
_GROUP = re.compile(r"patch (\w+): applying the group at byte (\d+)$", re.MULTILINE)


class Cuts:
    """Of one machine's download of one release. To be made before the rollout begins: it slows the link down.

    Args:
        machine: Which.
        link: Its way to the server.
        release: Version.
        price: What travels for it if nothing is cut, in bytes.
    """

    def __init__(self, machine: Machine, link: Link, release: str, price: int) -> None:
        self._machine = machine
        self._link = link
        self._release = release
        self._price = price
        self._log = self._log_bytes()
        self._before = link.carried()  # when the open request for the patch had not begun yet
        self._made: list[tuple[int, Cut]] = []  # with the length of the log at the cut
        self._patch = ""
        link.cap(price / DOWNLOAD_S)

    def make(self, drops: int) -> None:
        """So many drops at even distances, a kill between two of them, and one while the patch is being applied."""
        try:
            self._patch, _, of_bytes = wait_for("the patch to be asked for", lambda: self._asked(self._log), 60, 0.05)
            # In the first third of a segment: TLS' own bytes must not look like a second one.
            kill_at = of_bytes // 2 // PATCH_SEGMENT_BYTES * PATCH_SEGMENT_BYTES + PATCH_SEGMENT_BYTES // 4
            places = [(of_bytes * number // (drops + 2), "drop") for number in range(1, drops + 1)]
            for least, how in sorted([*places, (min(kill_at, of_bytes // 2), "kill")]):
                wait_for(f"{least:,} of {of_bytes:,} bytes to come", lambda least=least: self._has(least), 60, 0.05)
                self._cut(how)
        finally:
            self._link.cap(None)
        self._kill_applying()

    def told(self) -> tuple[list[Cut], int]:
        """What each cut cost, and how many groups were applied, each counted once. After the last group."""
        begun: set[str] = set()
        ends = [place for place, _ in self._made]
        for match in _GROUP.finditer(self._said(self._log)):
            if match[1] != self._patch:
                continue
            at = self._log + match.start()
            if match[2] in begun:
                expect(any(end <= at for end in ends), "a group was applied again without a cut", match[0])
                next(cut for end, cut in reversed(self._made) if end <= at).groups_again += 1
            begun.add(match[2])
        for _, cut in self._made:
            expect(cut.segments_again <= 1, "a cut cost more than one segment", cut)
            expect(cut.groups_again <= 1, "a cut cost more than one group", cut)
        expect(begun, "no group of the patch was applied", self._patch)
        return [cut for _, cut in self._made], len(begun)

    def _asked(self, after: int) -> Any:
        """The first request for the patch that the log tells behind a place: digest, from which byte, of how many."""
        carried = self._link.carried()  # before the log is read: a request that it does not tell comes later
        found = next((request for request in self._requests(after) if self._is_patch(request)), None)
        if found is None:
            self._before = carried
        return found

    def _has(self, least: int) -> bool:
        """As far as the proxy saw, which is never late."""
        expect(not self._is_applying(), "the download ended before it could be cut", self._patch)
        return self._began_at() + self._link.most_since(self._before) >= least

    def _began_at(self) -> int:
        """Of the patch: where the open request began."""
        return [request[1] for request in self._requests(self._log) if self._is_patch(request)][-1]

    def _cut(self, how: str) -> None:
        """Cuts, and waits until the machine has asked for the rest."""
        place, began_at = self._log_bytes(), self._began_at()
        if how == "drop":
            self._link.drop()
        else:
            self._machine.process.kill()
        came, self._before = began_at + self._link.most_since(self._before), self._link.carried()
        if how == "kill":
            self._machine.process.start()
        _, went_on_at, of_bytes = wait_for(
            f"the machine to go on after a {how}", lambda: self._asked(place), pause_s=0.1
        )
        self._note(place, how, min(came, of_bytes), of_bytes, went_on_at)

    def _kill_applying(self) -> None:
        """A kill as soon as the machine says that it applies a group: all bytes have come then."""
        end = time.monotonic() + APPLYING_S
        while not self._is_applying():
            if time.monotonic() > end:
                raise CastError(f"waited {APPLYING_S:.0f} s in vain for the patch to be applied")
            time.sleep(0.01)  # applying takes some tenths of a second
        place = self._log_bytes()
        self._machine.process.kill()
        self._machine.process.start()
        of_bytes = self._made[-1][1].of_bytes
        self._note(place, "kill", of_bytes, of_bytes, of_bytes)

    def _is_applying(self) -> bool:
        return any(group[1] == self._patch for group in _GROUP.finditer(self._said(self._log)))

    def _note(self, place: int, how: str, came: int, of_bytes: int, went_on_at: int) -> None:
        again = max(came - went_on_at, 0)
        cut = Cut(
            release=self._release,
            machine=self._machine.name,
            how=how,
            came_bytes=came,
            of_bytes=of_bytes,
            from_bytes=went_on_at,
            bytes_again=again,
            segments_again=-(-again // PATCH_SEGMENT_BYTES),
        )
        self._made.append((place, cut))

    def _is_patch(self, request: tuple[str, int, int]) -> bool:
        """Of all that travels the patch is most."""
        return request[0] == self._patch if self._patch else 2 * request[2] > self._price

    def _requests(self, after: int) -> list[tuple[str, int, int]]:
        return [(found[1], int(found[2]), int(found[3])) for found in _REQUEST.finditer(self._said(after))]

    def _said(self, after: int) -> str:
        with self._machine.process.log.open("rb") as log:
            log.seek(after)
            return log.read().decode("ascii", "replace")  # a character for each byte

    def _log_bytes(self) -> int:
        return self._machine.process.log.stat().st_size
