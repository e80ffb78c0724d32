"""The managers' tool follows the server's CA, as machines do: before the one that it pins has ended."""

from protocol.errors import Refused
from protocol.wire import Message
from signing import anchors
from signing.server_client import Operator
from signing.workspace import Workspace


class Trust(Message):
    """`GET /api/v1/ca`: the CAs to trust, newest first, and the links that lead to them (`signing.anchors`)."""

    trust_pem: str
    links_pem: str = ""


def follow_ca(workspace: Workspace, server: Operator) -> bool:
    """Takes the CAs that the server names into `server.json`, if the pinned ones vouch for them. Durable on return.

    A server that was restored from before a rotation names an older one: what is pinned stays, it is verified all the
    same.

    Returns:
        Whether they are others than before.

    Raises:
        LinkError: The server cannot be reached.
    """
    offered = server.get("/ca", Trust)
    pinned = anchors.read(workspace.server_access().ca_pem)
    links = anchors.read(offered.links_pem) if offered.links_pem else ()
    try:
        followed = anchors.follow(pinned, anchors.read(offered.trust_pem), links)
    except Refused:
        return False
    if followed == pinned:
        return False
    workspace.set_server_ca(anchors.render(followed))
    return True
