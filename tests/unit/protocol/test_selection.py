"""Which variant a machine takes: one rule, on the machine and on the server."""

import msgspec
import pytest

from protocol.errors import Reason, Refused
from protocol.messages import Inventory
from protocol.release import ReleaseManifest, parse_manifest
from protocol.selection import needed_artifacts, select_variants
from tests.unit.protocol.test_release import IMAGE, ONNX, manifest, variant


def machine(*accelerators: str, hardware: tuple[str, ...] = ()) -> Inventory:
    return Inventory(agent="0.1.0", platform="linux-x86_64", accelerators=accelerators, hardware=hardware)


def artifact(letter: str) -> dict[str, object]:
    return ONNX | {"sha256": letter * 64}


def release(**changes) -> ReleaseManifest:
    variants = [
        variant(name="orin", accelerator="cuda", hardware=["jetson-orin"], artifact=artifact("1")),
        variant(name="gpu", accelerator="cuda", artifact=artifact("2")),
        variant(name="cpu", artifact=artifact("3")),
    ]
    return parse_manifest(msgspec.json.encode(manifest(variants, **changes)))


@pytest.mark.parametrize(
    ("inventory", "chosen"),
    [
        (machine("cpu"), "cpu"),
        (machine("cuda", "cpu"), "gpu"),
        (machine("cuda", "cpu", hardware=("jetson-orin",)), "orin"),
        (machine("cpu", "cuda"), "cpu"),
        (machine("edgetpu", "cpu"), "cpu"),
    ],
)
def test_the_machines_order_of_accelerators_decides_then_the_publishers(inventory, chosen):
    assert select_variants(release(), inventory)["pests"].name == chosen


def test_attack_t11_wrong_hardware_is_refused_with_what_is_missing():
    with pytest.raises(Refused) as refusal:
        select_variants(release(), machine("edgetpu"))
    assert refusal.value.reason is Reason.WRONG_HARDWARE
    with pytest.raises(Refused, match="sprayer"):
        select_variants(release(hardware=["sprayer"]), machine("cpu"))


def test_only_the_chosen_variant_travels_with_its_golden_inputs_and_the_config_files():
    parsed = release(configs=[{"name": "rates", "artifact": artifact("9")}])
    needed = needed_artifacts(parsed, select_variants(parsed, machine("cpu")), {})
    assert [item.sha256[0] for item in needed] == ["3", IMAGE["sha256"][0], "c", "9"]
