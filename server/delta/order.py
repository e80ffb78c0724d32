"""What the server tells its encoding child, and what that answers: one line of JSON each."""

from protocol.wire import Message


class Order(Message):
    """What to make. `payload` and `index` are files to write; there is an index when the payload needs one."""

    old: str
    new: str
    payload: str
    index: str
    processes: int
    seconds: float
    nice: int
    memory_mib: int


class Answer(Message):
    """What was made, or why nothing was. Digests are sha256."""

    base: str = ""
    result: str = ""
    payload: str = ""
    payload_bytes: int = 0
    index: str | None = None
    index_bytes: int = 0
    error: str = ""
