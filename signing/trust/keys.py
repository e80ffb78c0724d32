"""What a delegator may not do with keys, beyond TUF's own rules."""

from tuf.api.metadata import Role, Root, Targets

from protocol.errors import Reason, Refused
from signing.metadata import shared_public_keys


def check_keys(what: str, delegator: Root | Targets) -> None:
    """Refuses a role for which one public key stands under two key ids: it would meet a threshold of two alone.

    Args:
        what: The repository, for the message.
        delegator: Its signatures held.

    Raises:
        Refused: `SIGNATURE`.
    """
    if isinstance(delegator, Root):
        keys, roles = delegator.keys, dict[str, Role](delegator.roles)
    elif delegator.delegations is not None:
        keys, roles = delegator.delegations.keys, dict[str, Role](delegator.delegations.roles or {})
    else:
        return
    for name, role in roles.items():
        if shared_public_keys(keys[keyid] for keyid in role.keyids if keyid in keys):
            raise Refused(Reason.SIGNATURE, f"{what}: one public key stands for {name} under two key ids")
