"""The trust store: what a device, or anyone who is given metadata, believes and why. The front of `signing.trust`.

- `TrustStore`: one TUF repository, durable and floored; `ImageStore` and `DirectorStore` are the two that a device
  keeps, with what Headland asks of them beyond TUF.
- `DirectorView.verify_object`, `.verify_receipts`, `.verify_time`: the one place that verifies the director's objects.
  `.verify_kit`: those that a stick brings.
- `Floors`, `Source`: the ports. `HttpSource`, `MetadataFolder` and `Offered` are sources.
"""

from signing.trust.director import DirectorStore, DirectorView, TechniciansList
from signing.trust.floors import Floors, KeyedFloor, MemoryFloors
from signing.trust.http import HttpSource
from signing.trust.image import ImageStore, ImageView
from signing.trust.kits import SignedKit
from signing.trust.source import MetadataFolder, Nowhere, Offered, Source
from signing.trust.store import NEVER, Search, Trusted, TrustStore

__all__ = [
    "NEVER",
    "DirectorStore",
    "DirectorView",
    "Floors",
    "HttpSource",
    "ImageStore",
    "ImageView",
    "KeyedFloor",
    "MemoryFloors",
    "MetadataFolder",
    "Nowhere",
    "Offered",
    "Search",
    "SignedKit",
    "Source",
    "TechniciansList",
    "TrustStore",
    "Trusted",
]
