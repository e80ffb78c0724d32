"""A kit built from a real server: over TLS, by ranges, from what real managers published."""

import asyncio
from pathlib import Path

import msgspec
from tuf.api.metadata import Targets

from protocol.ids import digest
from protocol.kits import BLOBS_FOLDER, KITS_FOLDER
from protocol.objects import Conditions
from signing.durable import TEMPORARY_PREFIX
from signing.kits.building import write_kit
from signing.kits.checking import check_kit
from signing.kits.choosing import choose
from signing.kits.kit_file import add_signature, put_kit
from signing.kits.offer import KitQuestion
from signing.kits.preparing import KitRequest, prepare
from signing.metadata import parse
from signing.server_client import Progress, ServerClient
from signing.stick import stick_folder
from signing.workspace import KINDS, ServerAccess, Workspace
from tests.fakes.server_house import PATCHING, House
from tests.fakes.updates import noise

OLD = noise(3_000_000, 1)
NEW = OLD[:1_000_000] + b"something else" + OLD[1_000_000:]


class Quiet:
    """Implements `signing.publishing.Meter`."""

    def start(self, what: str, total_bytes: int) -> Progress:
        return lambda count: None


def workspace_of(house: House, folder: Path) -> Workspace:
    """A workspace that has what the managers published."""
    workspace = Workspace.create(folder)
    for kind, published in (("image", house.managers.image), ("director", house.managers.director)):
        assert kind in KINDS
        for number, data in published.roots.items():
            workspace.keep(kind, "root", number, data)
        for role, data in {"targets": published.targets, **published.delegated}.items():
            workspace.keep(kind, role, parse(data, Targets, role).signed.version, data)
    return workspace


async def test_a_kit_for_real_machines_is_whole_and_goes_on_where_it_broke_off(house: House, tmp_path: Path) -> None:
    await house.release("1.0.0", 1, [OLD])
    machine = await house.enrol("tractor-1", groups=("north",))
    machine.inventory = msgspec.structs.replace(PATCHING, memory_mib=4096)
    machine.have = (digest(OLD), digest(b"golden"))
    await machine.sync()
    await house.release("1.1.0", 2, [NEW])
    await house.patches()
    stick = tmp_path / "stick"
    await asyncio.to_thread(stick.mkdir)

    def build() -> tuple[Path, list[str]]:
        workspace = workspace_of(house, tmp_path / "workspace")
        server = ServerClient(ServerAccess(url=house.running.operator_url, ca_pem=house.ca_pem, token=house.token))
        question = KitQuestion(product="pest-detector", groups=("north",))
        prepared = prepare(workspace, server, KitRequest(question, 180, Conditions()), house.now(), lambda count: False)
        assert prepared.offer.machines == ("tractor-1",)
        largest = max(prepared.plan.blobs, key=lambda blob: blob.length_bytes)
        chosen = choose(stick, prepared)
        name, kit = chosen.name, chosen.kit
        write_kit(prepared, chosen, workspace, server, Quiet())
        blobs = stick / KITS_FOLDER / name / BLOBS_FOLDER
        # As a pulled stick leaves it: a part under a temporary name.
        whole = (blobs / largest.sha256).read_bytes()
        (blobs / largest.sha256).unlink()
        (blobs / f"{TEMPORARY_PREFIX}{largest.sha256}").write_bytes(whole[:1_234_567])
        assert choose(stick, prepared).name == name
        write_kit(prepared, chosen, workspace, server, Quiet())
        assert (blobs / largest.sha256).read_bytes() == whole
        for key in ("alice", "bob"):
            add_signature(kit, house.managers.keys[key])
        folder = stick / KITS_FOLDER / name
        with stick_folder(folder) as opened:
            put_kit(opened, kit, met=True)
        server.close()
        report = check_kit(folder, workspace, house.now(), lambda count: None)
        assert report.kit is not None
        return folder, [*report.faults, *(step.method for r in report.kit.body.releases for step in r.steps)]

    folder, found = await asyncio.to_thread(build)
    assert sorted(found) == ["delta", "full", "full"]
    assert await asyncio.to_thread((folder / "kit.json").exists)
