"""Trust that believes: objects are the plain JSON of their bodies. For tests of what comes after the judging."""

from pathlib import Path

from device.trust.port import Complaint, KitVerdict, Roster, Terms, Verdict
from protocol import limits
from protocol.errors import LinkError, Reason, Refused
from protocol.messages import SyncAnswer
from protocol.objects import AssignmentBody, ClockBody, ReceiptsBody, ReportedBody
from protocol.wire import decode


class FakeTrust:
    """Implements `device.trust.port.Trust`."""

    def __init__(self) -> None:
        self.terms: Terms | None = None
        self.roster: Roster | None = None
        self.kits: dict[str, KitVerdict] = {}  # by the folder's name
        self.reported: ReportedBody | None = None
        self.complaints: tuple[Complaint, ...] = ()
        self.versions: dict[str, int] = {"image/timestamp": 1}
        self.may_install = True
        self.fails = False
        self.distrusts_receipts = False
        self.refuses_assignments = False
        self.judged: list[tuple[str, float]] = []

    async def judge(self, answer: SyncAnswer, nonce: str, asked_boot_s: float) -> Verdict:
        self.judged.append((nonce, asked_boot_s))
        if self.fails:
            raise LinkError("the metadata could not be fetched")
        clock = decode(answer.time, ClockBody, limit=limits.OBJECT_BYTES)
        return Verdict(
            time_ms=clock.time_ms if clock.nonce == nonce else None,
            terms=self.terms,
            assignment=None
            if answer.assignment is None or self.refuses_assignments
            else decode(answer.assignment, AssignmentBody, limit=limits.OBJECT_BYTES),
            reported=self.reported,
            receipts=await self.receipts(answer.receipts),
            complaints=self.complaints,
            versions=self.versions,
            may_install=self.may_install,
            roster=self.roster,
        )

    async def receipts(self, texts: tuple[str, ...]) -> tuple[ReceiptsBody, ...]:
        found = []
        for text in texts:
            try:
                found.append(decode(text, ReceiptsBody, limit=limits.OBJECT_BYTES))
            except Refused:
                continue
        return () if self.distrusts_receipts else tuple(found)

    async def judge_kit(self, folder: str) -> KitVerdict:
        refused = KitVerdict(complaint=Complaint(what="kit", reason=Reason.METADATA, detail="an unknown kit"))
        return self.kits.get(Path(folder).name, refused)

    async def close(self) -> None:
        """Nothing runs."""
