"""Signed receipts for what came by stick, kept until the machine showed that it had them."""

from sqlalchemy import Connection, delete, insert, select, update

from server.storage.schema import receipts


class Receipts:
    """A receipt goes with the answer to a contact, and is forgotten with the contact that shows that answer's token."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def keep(self, device: str, name: str, text: str, at_ms: int) -> None:
        """Keeps a receipt; one that says the same is replaced, and goes with the next contact again.

        Args:
            device: Whom it is for.
            name: Hash of what it says.
            text: The signed object.
            at_ms: When it was signed.
        """
        here = (receipts.c.device == device, receipts.c.id == name)
        self._connection.execute(delete(receipts).where(*here))
        self._connection.execute(insert(receipts).values(device=device, id=name, made_ms=at_ms, body=text))

    def waiting(self, device: str, most_bytes: int) -> list[tuple[str, str]]:
        """Name and text of the oldest that wait, together at most so long."""
        rows = self._connection.execute(
            select(receipts.c.id, receipts.c.body)
            .where(receipts.c.device == device)
            .order_by(receipts.c.made_ms, receipts.c.id)
        )
        found: list[tuple[str, str]] = []
        for name, text in rows:
            most_bytes -= len(text)
            if most_bytes < 0:
                break
            found.append((name, text))
        return found

    def tell(self, device: str, names: list[str], number: int) -> None:
        """Notes that these go with the sync token of this number."""
        if names:
            here = (receipts.c.device == device, receipts.c.id.in_(names))
            self._connection.execute(update(receipts).where(*here).values(told=number))

    def shown(self, device: str, number: int) -> None:
        """Forgets what went with the token of this number: the machine shows it."""
        self._connection.execute(delete(receipts).where(receipts.c.device == device, receipts.c.told == number))
