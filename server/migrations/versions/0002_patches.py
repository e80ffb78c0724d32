"""Patches: what releases name, what machines hold, the cache, failures, blobs that may go; budgets, bytes spent."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ADDED: dict[str, dict[str, tuple[sa.types.TypeEngine[Any], str | None]]] = {
    "devices": {"link": (sa.String(length=64), ""), "trusts": (sa.Text(), "[]")},
    "jobs": {"weight": (sa.Integer(), "0")},
    "rollouts": {"budget": (sa.Text(), "{}")},
    "members": {
        "plan_bytes": (sa.BigInteger(), None),
        "plan_full_bytes": (sa.BigInteger(), None),
        "needs_bytes": (sa.BigInteger(), None),
        "delta_bytes": (sa.BigInteger(), "0"),
        "full_bytes": (sa.BigInteger(), "0"),
        "saved_bytes": (sa.BigInteger(), "0"),
    },
}
"""Columns by table: type, and the value of rows that are there; None: may be absent."""


def upgrade() -> None:
    for table, columns in ADDED.items():
        for name, (kind, default) in columns.items():
            op.add_column(table, sa.Column(name, kind, nullable=default is None, server_default=default))
    op.create_table(
        "release_artifacts",
        sa.Column("product", sa.String(length=64), nullable=False),
        sa.Column("manifest", sa.String(length=64), nullable=False),
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("artifact", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("product", "manifest", "part", name=op.f("pk_release_artifacts")),
    )
    op.create_index("ix_release_artifacts_part", "release_artifacts", ["product", "part"], unique=False)
    op.create_index("ix_release_artifacts_artifact", "release_artifacts", ["artifact"], unique=False)
    op.create_table(
        "holdings",
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("artifact", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.id"], name=op.f("fk_holdings_device_devices")),
        sa.PrimaryKeyConstraint("device", "artifact", name=op.f("pk_holdings")),
    )
    op.create_index("ix_holdings_artifact", "holdings", ["artifact"], unique=False)
    op.create_table(
        "patches",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("base", sa.String(length=64), nullable=False),
        sa.Column("result", sa.String(length=64), nullable=False),
        sa.Column("codec", sa.Integer(), nullable=False),
        sa.Column("wanted_ms", sa.BigInteger(), nullable=False),
        sa.Column("made_ms", sa.BigInteger(), nullable=True),
        sa.Column("made", sa.Integer(), nullable=False),
        sa.Column("payload", sa.String(length=64), nullable=True),
        sa.Column("payload_bytes", sa.BigInteger(), nullable=False),
        sa.Column("index", sa.String(length=64), nullable=True),
        sa.Column("index_bytes", sa.BigInteger(), nullable=False),
        sa.Column("named_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_patches")),
        sa.UniqueConstraint("base", "result", "codec", name=op.f("uq_patches_base")),
    )
    op.create_index("ix_patches_result", "patches", ["result"], unique=False)
    op.create_table(
        "patch_failures",
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("patch", sa.String(length=64), nullable=False),
        sa.Column("payload", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.id"], name=op.f("fk_patch_failures_device_devices")),
        sa.PrimaryKeyConstraint("device", "patch", "payload", name=op.f("pk_patch_failures")),
    )
    op.create_index("ix_patch_failures_patch", "patch_failures", ["patch", "payload"], unique=False)
    op.create_table(
        "condemned",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("after_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_condemned")),
    )


def downgrade() -> None:
    op.drop_table("condemned")
    op.drop_index("ix_patch_failures_patch", table_name="patch_failures")
    op.drop_table("patch_failures")
    op.drop_index("ix_patches_result", table_name="patches")
    op.drop_table("patches")
    op.drop_index("ix_holdings_artifact", table_name="holdings")
    op.drop_table("holdings")
    op.drop_index("ix_release_artifacts_artifact", table_name="release_artifacts")
    op.drop_index("ix_release_artifacts_part", table_name="release_artifacts")
    op.drop_table("release_artifacts")
    for table, columns in ADDED.items():
        with op.batch_alter_table(table) as batch:
            for name in columns:
                batch.drop_column(name)
