"""Cuts in mid-download of a patch: the link drops, the machine's agent is killed. What each one cost is measured.

Two who know nothing of each other are asked. The machine's log says at which byte each request for the patch began and
which group was applied; the proxy says how many bytes went to the machine. So what came before a cut is known at most:
where the request began, and every byte since. TLS, contacts and metadata count there as if they were patch.
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
        self._wire = link.counts.to_machine
        self._began_at = 0  # of the patch: where the open request began
        self._made: list[tuple[int, Cut]] = []  # with the length of the log at the cut
        self._patch = ""
        link.cap(price / DOWNLOAD_S)

    def make(self, drops: int) -> None:
        """So many drops at even distances, a kill between two of them, and one while the patch is being applied."""
        # In the first third of a segment: what else travels meanwhile must not look like a second one.
        kill_at = self._price // 2 // PATCH_SEGMENT_BYTES * PATCH_SEGMENT_BYTES + PATCH_SEGMENT_BYTES // 4
        places = [(self._price * number // (drops + 2), "drop") for number in range(1, drops + 1)]
        try:
            for least, how in sorted([*places, (min(kill_at, self._price // 2), "kill")]):
                wait_for(f"{least:,} of {self._price:,} bytes to come", lambda least=least: self._has(least), 60, 0.05)
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

    def _has(self, least: int) -> bool:
        """As far as the proxy saw, which is never late."""
        if not self._patch:  # of all that travels it is most
            asked = (request for request in self._requests(self._log) if 2 * request[2] > self._price)
            self._patch = next(asked, ("",))[0]
            return False
        expect(not self._is_applying(), "the download ended before it could be cut", self._patch)
        return self._began_at + self._link.counts.to_machine - self._wire >= least

    def _cut(self, how: str) -> None:
        """Cuts, and waits until the machine has asked for the rest."""
        place = self._log_bytes()
        if how == "drop":
            self._link.drop()
        else:
            self._machine.process.kill()
        wire = self._link.counts.to_machine
        if how == "kill":
            self._machine.process.start()

        def asked() -> Any:
            return next((r for r in self._requests(place) if r[0] == self._patch), None)

        _, went_on_at, of_bytes = wait_for(f"the machine to go on after a {how}", asked, pause_s=0.1)
        came = min(self._began_at + wire - self._wire, of_bytes)
        self._note(place, how, came, of_bytes, went_on_at)
        self._wire, self._began_at = wire, went_on_at

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

    def _requests(self, after: int) -> list[tuple[str, int, int]]:
        return [(found[1], int(found[2]), int(found[3])) for found in _REQUEST.finditer(self._said(after))]

    def _said(self, after: int) -> str:
        with self._machine.process.log.open("rb") as log:
            log.seek(after)
            return log.read().decode("ascii", "replace")  # a character for each byte

    def _log_bytes(self) -> int:
        return self._machine.process.log.stat().st_size
