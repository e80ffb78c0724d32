"""U3 on the stick: whoever finds it reads whose results lie there and how many, and nothing of a result."""

from pathlib import Path

from device.kits.forces import keep_force
from protocol.kits import read_piece
from protocol.messages import Alert, SignedForce
from tests.fakes.contact_machine import opened
from tests.unit.device.kits.test_export import BIG, KEY, Place

SECRETS = (b"pest", b"field-7", b"the header is off", b"theo", b"a nozzle is blocked")


async def test_attack_u3_a_found_stick_shows_nothing_of_a_result_a_frame_or_a_report(tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    async with opened(tmp_path, budget_bytes=BIG, key=KEY) as machine:
        place = Place(machine, stick)
        rows = [b'{"label": "pest", "frame": "field-7.jpg", "n": %d}' % n for n in range(50)]
        await machine.outbox.enqueue_all([("alarms", rows[0]), *(("results", row) for row in rows)])
        machine.state.add_alert(Alert(id="a" * 32, kind="nozzle", at_ms=1, detail="a nozzle is blocked"))
        keep_force(machine.state, SignedForce(request='{"theo": "the header is off"}', signature="0" * 128))
        assert (await place.put_in()).end == "complete"
        found = [path for path in stick.rglob("*") if path.is_file()]
        assert {read_piece(path.read_bytes())[0].kind for path in found} == {"batch", "report"}
        for path in found:
            for secret in SECRETS:
                assert secret not in path.read_bytes()
                assert secret.decode() not in str(path.relative_to(stick))
        assert len(place.rows()) == 51, "who has the key reads all"
