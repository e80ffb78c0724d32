"""Bringing blobs into the store: resumable, verified segment by segment, capped above and below in speed.

A step of the plan is fetched whole (`spool`) or as a patch (`pieces`, `patching`, `applier`); a `purse` judges and
counts what travels, and `holding` tells what is here already.
"""

from device.transfer.applier import ApplierEndedError
from device.transfer.fetch import Source, Transfer, TransferSettings
from device.transfer.finished import adopt_finished
from device.transfer.holding import bases, begun_bases, held_bytes, part_names
from device.transfer.patching import PatchFailedError
from device.transfer.purse import OverBudgetError, Purse, Unlimited

__all__ = [
    "ApplierEndedError",
    "OverBudgetError",
    "PatchFailedError",
    "Purse",
    "Source",
    "Transfer",
    "TransferSettings",
    "Unlimited",
    "adopt_finished",
    "bases",
    "begun_bases",
    "held_bytes",
    "part_names",
]
