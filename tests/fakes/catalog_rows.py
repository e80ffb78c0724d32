"""Rows for a catalog, where a test is about other things than most of their fields."""

from dataclasses import replace
from typing import Any

from protocol.objects import Conditions
from server.storage.records import Device, Phase, Rollout


def a_device(name: str = "tractor-1", **more: Any) -> Device:
    base = Device(
        id=name, product="pest-detector", groups=("all",), public_key=b"\x00key", certificate_pem="pem", enrolled_ms=1
    )
    return replace(base, **more)


def a_rollout(name: str = "one", **more: Any) -> Rollout:
    base = Rollout(
        name=name,
        sequence=0,
        product="p",
        release="1.0.0",
        manifest="2" * 64,
        manifest_bytes=1,
        release_counter=1,
        era=0,
        group="all",
        phases=(Phase(percent=100),),
        conditions=Conditions(),
        created_ms=1,
    )
    return replace(base, **more)
