"""A server in memory, as far as one machine meets it: contacts with rolling tokens, and results with receipts."""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from device.link import Answer
from protocol import limits
from protocol.errors import LinkError
from protocol.ids import digest
from protocol.messages import ErrorAnswer, GivenBack, SyncAnswer, SyncRequest
from protocol.objects import AssignmentBody, ClockBody, ReceiptsBody, RowRange
from protocol.results import SIGNING_CONTEXT, Loss, SignedBatch, open_batch, rows_sha256
from protocol.wire import decode, encode, unpack


class FakeServer:
    """Implements the `post` of `device.link.Link`. Objects are unsigned JSON, for `tests.fakes.trust.FakeTrust`."""

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        self.key = key
        self.generation = "a" * 32
        self.requests: list[SyncRequest] = []
        self.rows: dict[tuple[str, str, int], bytes] = {}  # by epoch, lane, number
        self.order: list[tuple[str, str, int]] = []
        self.losses: set[tuple[str, bytes]] = set()
        self.statuses: dict[str, object] = {}
        self.alerts: dict[str, object] = {}
        self.conflicts: list[tuple[str, str, int]] = []
        self.assignment: AssignmentBody | None = None
        self.set_apart = False
        self.poll_s = 30.0
        self.want_metadata: tuple[str, ...] = ()
        self.given: list[GivenBack] = []
        self.cut_requests = 0  # so many next requests do not arrive
        self.cut_answers = 0  # so many next requests arrive and their answers do not
        self.refuse: tuple[int, ErrorAnswer] | None = None
        self.clones: list[str] = []
        self._token: str | None = None
        self._contact: str | None = None
        self._answered: SyncAnswer | None = None
        self._counter = 0

    async def post(self, path: str, body: bytes, *, limit: int, content_type: str = "application/json") -> Answer:
        if self.cut_requests:
            self.cut_requests -= 1
            raise LinkError("the connection broke on the way there")
        if self.refuse is not None:
            return Answer(self.refuse[0], encode(self.refuse[1]))
        if path == "/v1/metadata":
            self.given.append(decode(body, GivenBack, limit=limits.GIVEN_BACK_BYTES))
            return Answer(409, encode(ErrorAnswer(error="nothing of this is missing here")))
        answer = self._sync(body) if path == "/v1/sync" else self._results(body)
        if self.cut_answers:
            self.cut_answers -= 1
            raise LinkError("the connection broke on the way back")
        return answer

    def _sync(self, body: bytes) -> Answer:
        request = decode(body, SyncRequest, limit=limits.SYNC_BYTES)
        self.requests.append(request)
        for status in request.statuses:
            self.statuses.setdefault(status.id, status)
        for alert in request.alerts:
            self.alerts.setdefault(alert.id, alert)
        time = encode(ClockBody(device=request.device, nonce=request.nonce, time_ms=1_800_000_000_000)).decode()
        if request.contact_id == self._contact and self._answered is not None:
            answer = SyncAnswer(
                contact_id=self._answered.contact_id,
                sync_token=self._answered.sync_token,
                generation=self.generation,
                time=time,
                image_timestamp="",
                director_timestamp="",
                poll_s=self.poll_s,
            )
            return Answer(200, encode(answer))
        if request.sync_token != self._token:
            self.clones.append(request.contact_id)
        self._counter += 1
        self._token, self._contact = f"{self._counter:032x}", request.contact_id
        self._answered = SyncAnswer(
            contact_id=request.contact_id,
            sync_token=self._token,
            generation=self.generation,
            time=time,
            image_timestamp="",
            director_timestamp="",
            assignment=None if self.assignment is None else encode(self.assignment).decode(),
            poll_s=self.poll_s,
            set_apart=self.set_apart,
            want_metadata=self.want_metadata,
        )
        return Answer(200, encode(self._answered))

    def _results(self, body: bytes) -> Answer:
        batch = unpack(body, SignedBatch, limit=limits.BATCH_BYTES)
        self.key.verify(batch.signature, SIGNING_CONTEXT + batch.payload, ec.ECDSA(hashes.SHA256()))
        content = open_batch(batch)
        ranges, conflict = [], False
        for part in content.lanes:
            kept: list[bytes] = []
            for number, row in enumerate(part.rows, start=part.first):
                key = (content.epoch, part.lane, number)
                if self.rows.get(key, row) != row:
                    self.conflicts.append(key)
                    conflict = True
                    break
                if key not in self.rows:
                    self.order.append(key)
                self.rows[key] = row
                kept.append(row)
            if kept:
                last = part.first + len(kept) - 1
                ranges.append(RowRange(lane=part.lane, first=part.first, last=last, rows_sha256=rows_sha256(kept)))
        losses = []
        for record in content.losses:
            loss = decode(record, Loss, limit=limits.ROW_BYTES)
            self.losses.add((content.epoch, record))
            losses.append(RowRange(lane=loss.lane, first=loss.first, last=loss.last, rows_sha256=digest(record)))
        receipt = ReceiptsBody(
            device=content.device,
            epoch=content.epoch,
            generation=self.generation,
            rows=tuple(ranges),
            losses=tuple(losses),
        )
        return Answer(409 if conflict else 200, encode(receipt))

    def count_lost(self) -> int:
        """Rows that loss records name."""
        found = [decode(record, Loss, limit=limits.ROW_BYTES) for _, record in self.losses]
        return sum(loss.last - loss.first + 1 for loss in found)
