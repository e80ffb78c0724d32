"""What comes and goes by stick: reports by number, technicians' forces, receipts that wait for their machine."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("devices", sa.Column("stick_number", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "forces",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("received_ms", sa.BigInteger(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.id"], name=op.f("fk_forces_device_devices")),
        sa.PrimaryKeyConstraint("id", "device", name=op.f("pk_forces")),
    )
    op.create_index("ix_forces_device", "forces", ["device", "received_ms"], unique=False)
    op.create_index("ix_forces_received", "forces", ["received_ms"], unique=False)
    op.create_table(
        "receipts",
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("made_ms", sa.BigInteger(), nullable=False),
        sa.Column("told", sa.BigInteger(), nullable=True),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.id"], name=op.f("fk_receipts_device_devices")),
        sa.PrimaryKeyConstraint("device", "id", name=op.f("pk_receipts")),
    )
