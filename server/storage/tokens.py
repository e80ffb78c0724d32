"""Tokens, known by the sha256 of their secret only: who reads the catalog cannot use one."""

from sqlalchemy import Connection, delete, insert, select, update

from server.storage.codec import from_json, to_json
from server.storage.records import EnrolmentToken, OperatorToken
from server.storage.schema import enrolment_tokens, operator_tokens


class Tokens:
    """Permissions to enrol, and the tools that people use."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add_enrolment(self, secret_sha256: str, token: EnrolmentToken, created_ms: int) -> None:
        """Keeps a new permission and drops those that ended more than a month ago."""
        month_ms = 30 * 86_400_000
        self._connection.execute(delete(enrolment_tokens).where(enrolment_tokens.c.expires_ms < created_ms - month_ms))
        self._connection.execute(
            insert(enrolment_tokens).values(
                secret_sha256=secret_sha256,
                device=token.device,
                product=token.product,
                groups=to_json(token.groups),
                created_ms=created_ms,
                expires_ms=token.expires_ms,
                used_by=token.used_by,
            )
        )

    def enrolment(self, secret_sha256: str) -> EnrolmentToken | None:
        """The permission, locked until the transaction ends."""
        row = self._connection.execute(
            select(enrolment_tokens).where(enrolment_tokens.c.secret_sha256 == secret_sha256).with_for_update()
        ).one_or_none()
        if row is None:
            return None
        return EnrolmentToken(
            device=row.device,
            product=row.product,
            groups=from_json(row.groups, tuple[str, ...]),
            expires_ms=row.expires_ms,
            used_by=row.used_by,
        )

    def use_enrolment(self, secret_sha256: str, public_key: bytes) -> None:
        """Marks the permission as used, for ever, by this key."""
        self._connection.execute(
            update(enrolment_tokens).where(enrolment_tokens.c.secret_sha256 == secret_sha256).values(used_by=public_key)
        )

    def void_enrolments(self, now_ms: int) -> None:
        """Ends every permission to enrol: which of them were used since a backup is not known."""
        self._connection.execute(
            update(enrolment_tokens).where(enrolment_tokens.c.expires_ms > now_ms).values(expires_ms=now_ms)
        )

    def add_operator(self, secret_sha256: str, name: str, created_ms: int, expires_ms: int) -> None:
        """Keeps a new operator token."""
        self._connection.execute(
            insert(operator_tokens).values(
                secret_sha256=secret_sha256, name=name, created_ms=created_ms, expires_ms=expires_ms
            )
        )

    def operators(self) -> list[OperatorToken]:
        """The newest token of each name, ended or not."""
        rows = self._connection.execute(select(operator_tokens).order_by(operator_tokens.c.created_ms))
        return list({row.name: OperatorToken(row.name, row.created_ms, row.expires_ms) for row in rows}.values())

    def operator(self, secret_sha256: str, now_ms: int) -> str | None:
        """The name of the unexpired operator token with this hash, or None."""
        return self._connection.execute(
            select(operator_tokens.c.name).where(
                operator_tokens.c.secret_sha256 == secret_sha256, operator_tokens.c.expires_ms > now_ms
            )
        ).scalar_one_or_none()
