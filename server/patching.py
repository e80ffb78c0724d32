"""Makes patches ahead: for the bases that machines report, most machines first, each once.

A survey asks the catalog which (base, result) would serve how many machines; jobs are claimed from there, so that
several servers share the work and a killed one only leaves a job that somebody else takes up. The encoder runs behind
a port, in a process of its own. What nobody needs any more is forgotten here, too.
"""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from protocol import limits
from protocol.delta.patch import CODEC
from protocol.errors import HeadlandError, LinkError, Reason, Refused
from protocol.release import parse_manifest
from server.clock import NowMs
from server.compress import LEASE_MS, RENEW_MS
from server.delta.process import Encoder, InterruptedEncodingError, Made
from server.failed_patches import name
from server.parts import likely, parts_of
from server.settings import Patches
from server.storage.blobs import BlobStore
from server.storage.catalog import Catalog, Session
from server.storage.jobs import PATCH, Claim
from server.storage.records import Pair, Patch

DAY_MS: Final = 86_400_000
SURVEY_MS: Final = 600_000  # also without a change: machines are revoked, rollouts end
TIDY_MS: Final = 600_000
ORPHAN_MS: Final = DAY_MS  # from writing a blob to naming it, at the very most
AT_ONCE: Final = 100  # blobs that one transaction deletes
LEAST_BYTES: Final = 1024  # a patch of what travels in fewer spares less than a round trip
OUTAGE_MS: Final = 60_000
TRIES: Final = 3  # then a pair is given up: it may be what ends us each time

log = logging.getLogger("headland.server")


class Patchmaker:
    """Does one job after another.

    Args:
        catalog: Holds jobs and what was made.
        blobs: Gives artifacts and takes payloads.
        scratch: A folder on a real disk.
        now_ms: The clock.
        settings: Limits.
        encoder: Makes patches.
    """

    def __init__(
        self,
        catalog: Catalog,
        blobs: BlobStore,
        scratch: Path,
        now_ms: NowMs,
        *,
        settings: Patches,
        encoder: Encoder,
    ) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._scratch = scratch
        self._now_ms = now_ms
        self._settings = settings
        self._encode = encoder
        self._stopped = threading.Event()
        self._surveyed: tuple[str, int] | None = None
        self._tidied_ms: int | None = None

    def stop(self) -> None:
        """Ends what is being made, soon; its job is taken up at the next start. For another thread."""
        self._stopped.set()

    def work(self) -> bool:
        """Does the next job. Blocks. Returns False when there is none."""
        if not self._settings.processes or self._stopped.is_set():
            return False
        self._survey()
        self._tidy()
        with self._catalog.write() as session:
            claim = session.jobs.claim(PATCH, self._now_ms(), LEASE_MS)
            patch = None if claim is None else session.patches.unmade(claim.subject)
            if claim is not None and patch is None:
                session.jobs.done(PATCH, claim.subject)
            if claim is not None and patch is not None and claim.tries > TRIES:
                self._give_up(session, claim, patch, f"given up: {TRIES} tries came to no end")
                return True
        if claim is None or patch is None:
            return claim is not None
        try:
            self._make(claim, patch)
        except InterruptedEncodingError:
            with self._catalog.write() as session:
                session.jobs.release(claim)
        except (HeadlandError, OSError) as error:
            log.warning("patch %s: %s", name(patch), error)
            with self._catalog.write() as session:
                if isinstance(
                    error, LinkError | OSError
                ):  # the store is away or the disk is full: no fault of the pair
                    session.jobs.release(claim, self._now_ms() + OUTAGE_MS)
                elif claim.tries >= TRIES:
                    self._give_up(session, claim, patch, f"given up: {error}")
                else:
                    session.jobs.fail(claim, str(error), self._now_ms())
        return True

    def _give_up(self, session: Session, claim: Claim, patch: Patch, why: str) -> None:
        now_ms = self._now_ms()
        session.patches.give_up(claim, why, now_ms)
        session.events.add(now_ms, "patch-given-up", what=name(patch), detail=why)

    def _make(self, claim: Claim, patch: Patch) -> None:
        pair = patch.pair
        with (
            TemporaryDirectory(dir=self._scratch) as folder,
            self._blobs.as_file(pair.base, self._scratch) as old,
            self._blobs.as_file(pair.result, self._scratch) as new,
        ):
            payload, index = Path(folder, "payload"), Path(folder, "index")
            made = self._encode(old, new, payload, index, _Beat(self._stopped, self._catalog, self._now_ms, claim))
            for said, meant in ((made.base, pair.base), (made.result, pair.result)):
                if said != meant:
                    raise Refused(Reason.HASH, f"the stored artifact {meant[:12]} is damaged")
            why = self._refusal(patch, made)
            if not why:
                self._put(made, payload, index)
        done = Patch(
            pair=pair,
            made=patch.made + 1,
            payload=None if why else made.payload,
            payload_bytes=made.payload_bytes,
            index=None if why else made.index,
            index_bytes=made.index_bytes,
            why=why,
        )
        with self._catalog.write() as session:
            now_ms = self._now_ms()
            if not session.patches.put(done, now_ms):
                return  # another one was faster; what was written and is not named is collected
            for digest, length_bytes in _blobs(done):
                session.payloads.add_blob(digest, length_bytes, now_ms)
            detail = f"{done.travels_bytes} bytes" + (f": {why}" if why else "")
            session.events.add(now_ms, "patch-made", what=name(patch), detail=detail)

    def _refusal(self, patch: Patch, made: Made) -> str:
        """Why only the number is kept, or empty."""
        result = patch.pair.result
        with self._catalog.read() as session:
            full = session.payloads.get([result]).get(result)
            failures = session.patches.failures(patch.pair.id, made.payload)
        full_bytes = None if full is None else full.payload_bytes + full.index_bytes
        if full_bytes is not None and made.payload_bytes + made.index_bytes >= full_bytes:
            return f"in full it takes {full_bytes}"
        if failures >= self._settings.withdraw_after:
            return f"given up: made again, these are the bytes that failed on {failures} machines"
        return ""

    def _put(self, made: Made, payload: Path, index: Path) -> None:
        """Writes the blobs. Condemned before, spared once they are named: a kill in between leaves nothing for good."""
        blobs = [(made.payload, payload), *([(made.index, index)] if made.index is not None else [])]
        with self._catalog.write() as session:
            session.condemned.add([digest for digest, _ in blobs], self._now_ms() + ORPHAN_MS)
        for digest, path in blobs:
            self._blobs.put_now(digest, _chunks(path))

    def _survey(self) -> None:
        """Looks at what machines hold and what they are to get, when that changed."""
        now_ms = self._now_ms()
        with self._catalog.read() as session:
            changes = session.fleet.changes()
            unnoted = session.fleet.unnoted() if self._surveyed is None else []
        if self._surveyed is not None:
            before, at_ms = self._surveyed
            if before == changes and 0 <= now_ms - at_ms < SURVEY_MS:
                return
        noted = [(product, manifest, self._parts(manifest)) for product, manifest in unnoted]
        with self._catalog.write() as session:
            session.fleet.lock()  # one survey at a time, also between processes
            for product, manifest, parts in noted:
                session.fleet.note_release(product, manifest, parts)
            found = likely(session.fleet.alike(_targets(session), LEAST_BYTES))
            session.patches.want(_foremost(found, self._settings.bases), now_ms)
            session.fleet.surveyed(changes)
        self._surveyed = (changes, now_ms)

    def _parts(self, manifest: str) -> dict[str, str]:
        """Of a release from before parts were noted. One whose manifest cannot be read has none."""
        try:
            return parts_of(parse_manifest(b"".join(self._blobs.read_now(manifest, limits.MIB))))
        except HeadlandError as error:
            log.warning("no patches for the release %s: %s", manifest[:12], error)
            return {}

    def _tidy(self) -> None:
        """Forgets patches that nobody needs, and deletes blobs whose time has come."""
        now_ms = self._now_ms()
        if self._tidied_ms is not None and 0 <= now_ms - self._tidied_ms < TIDY_MS:
            return
        self._tidied_ms = now_ms
        with self._catalog.write() as session:
            unwanted_since_ms = now_ms - int(self._settings.keep_days * DAY_MS)
            gone = session.patches.prune(unwanted_since_ms, now_ms - DAY_MS, now_ms)
            if gone:
                session.fleet.changed()
        if gone:
            log.info("forgot %d patches", len(gone))
        with self._catalog.write() as session:
            for digest in session.condemned.due(now_ms, AT_ONCE):
                self._blobs.delete_now(digest)


class _Beat:
    """Holds the job while it is being done; False once it is not ours any more, or we are to stop."""

    def __init__(self, stopped: threading.Event, catalog: Catalog, now_ms: NowMs, claim: Claim) -> None:
        self._stopped = stopped
        self._catalog = catalog
        self._now_ms = now_ms
        self._claim = claim
        self._renewed_ms = now_ms()

    def __call__(self) -> bool:
        if self._stopped.is_set():
            return False
        now_ms = self._now_ms()
        if 0 <= now_ms - self._renewed_ms < RENEW_MS:
            return True
        self._renewed_ms = now_ms
        with self._catalog.write() as session:
            return session.jobs.renew(self._claim, now_ms, LEASE_MS)


def _targets(session: Session) -> set[tuple[str, str]]:
    """Releases that machines are to get: those of rollouts that are not halted, and each product's newest."""
    found: set[tuple[str, str]] = set()
    going = {rollout.manifest for rollout in session.rollouts.all() if rollout.state != "halted"}
    newest: set[str] = set()
    for release in session.repositories.releases():  # by product, the highest counter first
        if release.listed and (release.product not in newest or release.manifest in going):
            newest.add(release.product)
            found.add((release.product, release.manifest))
    return found


def _foremost(found: dict[tuple[str, str], int], bases: int) -> dict[Pair, int]:
    """For each result the bases that most machines hold."""
    chosen: dict[Pair, int] = {}
    taken: dict[str, int] = {}
    for (base, result), machines in sorted(found.items(), key=lambda item: (-item[1], item[0])):
        if taken.setdefault(result, 0) < bases:
            taken[result] += 1
            chosen[Pair(base, result, CODEC)] = machines
    return chosen


def _blobs(patch: Patch) -> list[tuple[str, int]]:
    parts = ((patch.payload, patch.payload_bytes), (patch.index, patch.index_bytes))
    return [(digest, length_bytes) for digest, length_bytes in parts if digest is not None]


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(limits.MIB), b"")
