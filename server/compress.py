"""Makes payloads ahead: each artifact of a published release is compressed once, segment by segment, and kept as blobs.

Jobs are claimed from the catalog, so that a killed process only leaves one that somebody else takes up.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from protocol import limits
from protocol.errors import HeadlandError, Reason, Refused
from protocol.transfer import Segment, SegmentIndex, cut
from protocol.wire import pack
from server.clock import NowMs
from server.storage.blobs import BlobStore
from server.storage.catalog import Catalog
from server.storage.jobs import COMPRESS, Claim
from server.storage.records import Compressed

LEASE_MS = 60_000  # after a crash this is the wait of other servers; who works renews it
RENEW_MS = LEASE_MS // 4


class Compressor:
    """Does one job after another.

    Args:
        catalog: Holds the jobs.
        blobs: Gives artifacts and takes payloads.
        scratch: A folder on a real disk: payloads are spooled there until their hash is known.
        now_ms: The clock.
        level: Of zstd.
    """

    def __init__(self, catalog: Catalog, blobs: BlobStore, scratch: Path, now_ms: NowMs, level: int) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._scratch = scratch
        self._now_ms = now_ms
        self._level = level

    def work(self) -> bool:
        """Does the next job. Blocks. Returns False when there is none."""
        with self._catalog.write() as session:
            claim = session.jobs.claim(COMPRESS, self._now_ms(), LEASE_MS)
        if claim is None:
            return False
        artifact = claim.subject
        try:
            made = self._make(claim)
        except (HeadlandError, OSError) as error:
            with self._catalog.write() as session:
                session.jobs.fail(claim, str(error), self._now_ms())
                session.events.add(self._now_ms(), "payload-failed", what=artifact, detail=str(error))
            return True
        with self._catalog.write() as session:
            now_ms = self._now_ms()
            session.payloads.add_blob(made.payload, made.payload_bytes, now_ms)
            if made.index is not None:
                session.payloads.add_blob(made.index, made.index_bytes, now_ms)
            session.payloads.put(made)
            session.fleet.changed()  # its price is known: now a patch can be held against it
        return True

    def _make(self, claim: Claim) -> Compressed:
        artifact = claim.subject
        source = hashlib.sha256()
        length_bytes = 0
        renewed_ms = self._now_ms()

        def chunks() -> Iterator[bytes]:
            nonlocal length_bytes, renewed_ms
            for chunk in self._blobs.read_now(artifact, limits.SEGMENT_OUTPUT_BYTES):
                source.update(chunk)
                length_bytes += len(chunk)
                if not 0 <= self._now_ms() - renewed_ms < RENEW_MS:
                    renewed_ms = self._now_ms()
                    with self._catalog.write() as session:
                        session.jobs.renew(claim, renewed_ms, LEASE_MS)
                yield chunk

        segments: list[Segment] = []
        payload = hashlib.sha256()
        with tempfile.TemporaryFile(dir=self._scratch) as spool:
            for data, segment in cut(chunks(), self._level):
                segments.append(segment)
                payload.update(data)
                spool.write(data)
            if source.hexdigest() != artifact:
                raise Refused(Reason.HASH, f"the stored artifact {artifact[:12]} is damaged")
            payload_bytes = spool.tell()
            if not segments:
                return self._empty(artifact)
            spool.seek(0)
            payload_digest = payload.hexdigest()
            self._blobs.put_now(payload_digest, iter(lambda: spool.read(limits.MIB), b""))
        made = Compressed(artifact, length_bytes, payload_digest, payload_bytes, None, 0)
        if len(segments) == 1 and payload_bytes <= limits.UNINDEXED_PAYLOAD_BYTES:
            return made  # one frame, spooled and hashed whole: an index would say the same again
        index = pack(
            SegmentIndex(
                format=1,
                output_bytes=length_bytes,
                segment_bytes=limits.SEGMENT_OUTPUT_BYTES,
                segments=tuple(segments),
            )
        )
        index_digest = hashlib.sha256(index).hexdigest()
        self._blobs.put_now(index_digest, [index])
        return Compressed(artifact, length_bytes, payload_digest, payload_bytes, index_digest, len(index))

    def _empty(self, artifact: str) -> Compressed:
        """A file without content still travels as one frame, so that the device has one path for all."""
        ((data, _),) = cut(iter([b""]), self._level)
        digest = hashlib.sha256(data).hexdigest()
        self._blobs.put_now(digest, [data])
        return Compressed(artifact, 0, digest, len(data), None, 0)
