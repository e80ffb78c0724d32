"""Work that a killed process left is taken up soon, and nobody takes it from one who is slow."""

from collections.abc import Iterator
from pathlib import Path

from protocol import limits
from protocol.ids import digest
from server.compress import LEASE_MS, Compressor
from server.storage.blobs import FolderBlobs
from server.storage.catalog import Catalog
from server.storage.jobs import COMPRESS


def test_a_killed_job_is_taken_up_within_a_minute_and_a_slow_one_is_left_alone(tmp_path: Path) -> None:
    data = bytes(4 * limits.MIB)
    now_ms = 1_790_000_000_000

    class SlowBlobs(FolderBlobs):
        def read_now(self, digest: str, chunk_bytes: int) -> Iterator[bytes]:
            nonlocal now_ms
            for chunk in super().read_now(digest, chunk_bytes):
                now_ms += LEASE_MS // 2
                with catalog.write() as session:
                    assert session.jobs.claim(COMPRESS, now_ms, LEASE_MS) is None
                yield chunk

    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    blobs = SlowBlobs(tmp_path / "blobs")
    blobs.put_now(digest(data), [data])
    with catalog.write() as session:
        session.payloads.want([digest(data)], now_ms)
        assert session.jobs.claim(COMPRESS, now_ms, LEASE_MS) is not None  # and then it was killed
    now_ms += 60_000
    assert Compressor(catalog, blobs, tmp_path, lambda: now_ms, 3).work()
    with catalog.read() as session:
        assert session.jobs.waiting(COMPRESS) == 0
    catalog.close()
