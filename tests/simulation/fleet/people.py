"""The managers of a play. Their roots have keys of their own, and every new root is a change of keys: root N is held by
the keys N, N + 1 and N + 2 of its repository, any two of them, so that after three roots no key is what it was.
"""

from collections.abc import Iterable
from typing import Any

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata, Root, Targets

from signing.repository import RepositoryKind
from tests.fakes.managers import NAMES, Managers


class RotatingManagers(Managers):
    """As `Managers`, but for the keys of roots. Who holds a root follows from its number, so that roots that were
    signed ahead and roots that are signed when they are due go on from each other."""

    _holders: dict[str, dict[int, Signer]]

    def make_root(self, kind: RepositoryKind, version: int, managers: Iterable[str] = NAMES) -> Root:
        if not hasattr(self, "_holders"):  # the first root is made before anything else
            self._holders = {"image": {}, "director": {}}
        root = super().make_root(kind, version, managers)
        for keyid in list(root.roles["root"].keyids):
            root.revoke_key(keyid, "root")
        for number in range(version, version + len(NAMES)):
            root.add_key(self._holders[kind].setdefault(number, CryptoSigner.generate_ed25519()).public_key, "root")
        return root

    def sign(self, signed: Root | Targets, by: Iterable[str] = NAMES[:2]) -> bytes:
        if not isinstance(signed, Root):
            return super().sign(signed, by)
        # The first two hold the root before it as well.
        keyids = signed.roles["root"].keyids[:2]
        held = {one.public_key.keyid: one for kind in self._holders.values() for one in kind.values()}
        metadata: Metadata[Any] = Metadata(signed)
        for keyid in keyids:
            metadata.sign(held[keyid], append=True)
        return metadata.to_bytes()
