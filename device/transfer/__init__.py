"""Bringing blobs into the store: resumable, verified segment by segment, capped above and below in speed."""

from device.transfer.fetch import Source, Transfer, TransferSettings, part_names

__all__ = ["Source", "Transfer", "TransferSettings", "part_names"]
