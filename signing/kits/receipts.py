"""Receipts for what came home by stick, onto the next stick that goes to those machines."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

from protocol.ids import DeviceId, Digest, ProductName
from protocol.kits import RESULTS_FOLDER
from protocol.wire import Message
from signing.kits.bringing import write_receipt
from signing.server_client import Operator
from signing.stick import stick_folder


class Waiting(Message):
    """One that the machine has not shown to have."""

    id: Digest
    receipt: str


def put_receipts(server: Operator, out: Path, product: ProductName, machines: Sequence[DeviceId] | None) -> int:
    """Writes what waits for machines; one that lies there is written anew.

    Args:
        server: Has them.
        out: The stick.
        product: Of the machines.
        machines: None: all of the product.

    Returns:
        How many.

    Raises:
        LinkError: The server cannot be reached.
        OSError: The stick is full, or gone.
    """
    if machines is None:
        devices = server.get("/devices", dict[str, list[dict[str, Any]]])["devices"]
        machines = [each["device"] for each in devices if each["product"] == product]
    count = 0
    with ExitStack() as stack:
        root = stack.enter_context(stick_folder(out))
        for machine in machines:
            waiting = server.get(f"/devices/{quote(machine)}/receipts", dict[str, tuple[Waiting, ...]])["receipts"]
            if not waiting:
                continue
            with root.below(RESULTS_FOLDER, make=True) as results, results.below(machine, make=True) as folder:
                for each in waiting:
                    write_receipt(folder, each.id, each.receipt)
            count += len(waiting)
    return count
