"""Signs the director's objects: assignment, time statement, receipts. Verified in `signing.trust_store`."""

from datetime import UTC, datetime

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Targets

from protocol.objects import ObjectBody
from signing.metadata import terms_field


def sign_object(body: ObjectBody, signer: Signer, version: int, expires: datetime) -> str:
    """Makes a signed object: `Metadata[Targets]` in JSON with `body` inside the signed bytes.

    Args:
        body: The record; its type is the object's kind.
        signer: The key of the role that `protocol.objects.ROLES` names for this kind.
        version: Never goes down for a role and device: at least the unix seconds, so that a restored server goes on.
        expires: Aware.

    Returns:
        The JSON text.
    """
    signed = Targets(version=version, expires=expires.astimezone(UTC), unrecognized_fields=terms_field(body))
    metadata = Metadata(signed)
    metadata.sign(signer)
    return metadata.to_bytes().decode("ascii")
