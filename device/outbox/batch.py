"""Batches as they travel: compressed and signed by the device's key, so that network and stick verify alike."""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.results import SIGNING_CONTEXT, BatchBody, SignedBatch, compress_body
from protocol.wire import pack


def sign_batch(body: BatchBody, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The bytes of a `SignedBatch` in MessagePack. Blocking: a few milliseconds for a full batch.

    Args:
        body: What to send.
        key: The private key of the device's certificate, P-256.
    """
    payload, body_bytes = compress_body(body)
    signature = key.sign(SIGNING_CONTEXT + payload, ec.ECDSA(hashes.SHA256()))
    return pack(SignedBatch(device=body.device, body_bytes=body_bytes, payload=payload, signature=signature))
