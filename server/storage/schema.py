"""The catalog's tables, in SQL that SQLite and PostgreSQL both speak. Changes come as migrations, never by hand.

Times are milliseconds since 1970 UTC. What only the application reads is JSON in a text column.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only in a column spelt INTEGER.
_Serial = BigInteger().with_variant(Integer, "sqlite")

facts = Table(
    "facts",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

devices = Table(
    "devices",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("product", String(64), nullable=False),
    Column("groups", Text, nullable=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("certificate_pem", Text, nullable=False),
    Column("enrolled_ms", BigInteger, nullable=False),
    Column("revoked_ms", BigInteger),
    Column("set_apart", Text, nullable=False, default=""),
    Column("returned", Text, nullable=False, default=""),  # enrolled after the backup restored here
    Column("token_counter", BigInteger, nullable=False, default=0),
    Column("contact_id", String(32)),
    Column("recent", Text, nullable=False, default="{}"),  # its last contacts
    Column("answer", LargeBinary),
    Column("object_version", BigInteger, nullable=False, default=0),
    Column("last_contact_ms", BigInteger),
    Column("inventory", Text),
    Column("inventory_sha256", String(64), nullable=False, default=""),
    Column("report", Text, nullable=False, default="{}"),
    Column("epoch", String(32), nullable=False, default=""),
    Column("lanes", Text, nullable=False, default="{}"),
    Column("versions", Text, nullable=False, default="{}"),
    Column("counters", Text, nullable=False, default="{}"),
    Column("unsure_of_time", Boolean, nullable=False, default=False),
    Column("link", String(64), nullable=False, default=""),
    Column("trusts", Text, nullable=False, default="[]"),
    Column("stick_number", BigInteger, nullable=False, default=0),  # of the newest report by stick that is known of
)

# The groups of `devices.groups` once more, for counting. Revoked machines count in none.
group_members = Table(
    "group_members",
    metadata,
    Column("device", String(64), ForeignKey("devices.id"), primary_key=True),
    Column("device_group", String(64), primary_key=True),
    Column("product", String(64), nullable=False),
    Index("ix_group_members_group", "device_group", "product"),
)

enrolment_tokens = Table(
    "enrolment_tokens",
    metadata,
    Column("secret_sha256", String(64), primary_key=True),
    Column("device", String(64), nullable=False),
    Column("product", String(64), nullable=False),
    Column("groups", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("used_by", LargeBinary),
)

operator_tokens = Table(
    "operator_tokens",
    metadata,
    Column("secret_sha256", String(64), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
)

# Offline-signed metadata, every version for ever: the root chain is walked by machines that slept for years.
signed_metadata = Table(
    "signed_metadata",
    metadata,
    Column("repository", String(16), primary_key=True),
    Column("role", String(64), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("content", LargeBinary, nullable=False),
)

served_files = Table(
    "served_files",
    metadata,
    Column("repository", String(16), primary_key=True),
    Column("name", String(96), primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

releases = Table(
    "releases",
    metadata,
    Column("product", String(64), primary_key=True),
    Column("manifest", String(64), primary_key=True),
    Column("version", String(96), nullable=False),
    Column("manifest_bytes", BigInteger, nullable=False),
    Column("release_counter", BigInteger, nullable=False),
    Column("era", BigInteger, nullable=False),
    Column("artifacts", Integer, nullable=False),
    Column("total_bytes", BigInteger, nullable=False),
    Column("listed", Boolean, nullable=False),
)

compressed = Table(
    "compressed",
    metadata,
    Column("artifact", String(64), primary_key=True),
    Column("length_bytes", BigInteger, nullable=False),
    Column("payload", String(64), nullable=False),
    Column("payload_bytes", BigInteger, nullable=False),
    Column("index", String(64)),
    Column("index_bytes", BigInteger, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("kind", String(32), primary_key=True),
    Column("subject", String(64), primary_key=True),
    Column("created_ms", BigInteger, nullable=False),
    Column("claimed_until_ms", BigInteger, nullable=False, default=0),
    Column("tries", Integer, nullable=False, default=0),
    Column("error", Text, nullable=False, default=""),
    Column("weight", Integer, nullable=False, default=0),  # machines that wait for it
)

# What each release names, so that a machine's artifact of one release finds its successor in another.
release_artifacts = Table(
    "release_artifacts",
    metadata,
    Column("product", String(64), primary_key=True),
    Column("manifest", String(64), primary_key=True),
    Column("part", Text, primary_key=True),
    Column("artifact", String(64), nullable=False),
    Index("ix_release_artifacts_part", "product", "part"),
    Index("ix_release_artifacts_artifact", "artifact"),
)

# Which artifacts of ours a machine said it holds, when it last called.
holdings = Table(
    "holdings",
    metadata,
    Column("device", String(64), ForeignKey("devices.id"), primary_key=True),
    Column("artifact", String(64), primary_key=True),
    Index("ix_holdings_artifact", "artifact"),
)

# One row a (base, result, codec): wanted, made, or made and found useless. The number stays when the blob does not.
patches = Table(
    "patches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("base", String(64), nullable=False),
    Column("result", String(64), nullable=False),
    Column("codec", Integer, nullable=False),
    Column("wanted_ms", BigInteger, nullable=False),
    Column("made_ms", BigInteger),
    Column("made", Integer, nullable=False, default=0),
    Column("payload", String(64)),
    Column("payload_bytes", BigInteger, nullable=False, default=0),
    Column("index", String(64)),
    Column("index_bytes", BigInteger, nullable=False, default=0),
    Column("named_until_ms", BigInteger, nullable=False, default=0),
    Column("why", Text, nullable=False, default=""),
    Column("lifted_ms", BigInteger, nullable=False, default=0),  # a person let it be tried again
    UniqueConstraint("base", "result", "codec"),
    Index("ix_patches_result", "result"),
)

patch_failures = Table(
    "patch_failures",
    metadata,
    Column("device", String(64), ForeignKey("devices.id"), primary_key=True),
    Column("patch", String(64), primary_key=True),
    Column("payload", String(64), primary_key=True),
    Column("reason", String(32), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Index("ix_patch_failures_patch", "patch", "payload"),
)

# Blobs that may go once the moment has come and nothing names them.
condemned = Table(
    "condemned",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("after_ms", BigInteger, nullable=False),
)

blobs = Table(
    "blobs",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("length_bytes", BigInteger, nullable=False),
    Column("added_ms", BigInteger, nullable=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("sequence", _Serial, primary_key=True, autoincrement=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("product", String(64), nullable=False),
    Column("release", String(96), nullable=False),
    Column("manifest", String(64), nullable=False),
    Column("manifest_bytes", BigInteger, nullable=False),
    Column("release_counter", BigInteger, nullable=False),
    Column("era", BigInteger, nullable=False),
    Column("device_group", String(64), nullable=False),
    Column("phases", Text, nullable=False),
    Column("conditions", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("why", Text, nullable=False, default=""),
    Column("phase", Integer, nullable=False, default=0),
    Column("judged_from_ms", BigInteger, nullable=False, default=0),
    Column("budget", Text, nullable=False, default="{}"),
)

members = Table(
    "members",
    metadata,
    Column("rollout", String(64), ForeignKey("rollouts.name"), primary_key=True),
    Column("device", String(64), ForeignKey("devices.id"), primary_key=True),
    Column("phase", Integer, nullable=False),
    Column("offered_ms", BigInteger, nullable=False),
    Column("outcome", String(16)),
    Column("reason", String(32)),
    Column("ended_ms", BigInteger),
    Column("plan_bytes", BigInteger),  # what the plan that was offered last takes, and all of it as compressed full
    Column("plan_full_bytes", BigInteger),
    Column("needs_bytes", BigInteger),  # by the machine's word, when a budget defers it
    Column("delta_bytes", BigInteger, nullable=False, default=0),
    Column("full_bytes", BigInteger, nullable=False, default=0),
    Column("saved_bytes", BigInteger, nullable=False, default=0),
    Index("ix_members_device", "device"),
)

statuses = Table(
    "statuses",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("device", String(64), ForeignKey("devices.id"), primary_key=True),
    Column("received_ms", BigInteger, nullable=False),
    Column("ordinal", Integer, nullable=False),  # among those that came together
    Column("body", Text, nullable=False),
    Index("ix_statuses_device", "device", "received_ms"),
    Index("ix_statuses_received", "received_ms"),
)

alerts = Table(
    "alerts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("device", String(64), ForeignKey("devices.id"), primary_key=True),
    Column("received_ms", BigInteger, nullable=False),
    Column("ordinal", Integer, nullable=False),  # among those that came together
    Column("body", Text, nullable=False),
    Index("ix_alerts_device", "device", "received_ms"),
    Index("ix_alerts_received", "received_ms"),
)

# What technicians forced, as machines told it.
forces = Table(
    "forces",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("device", String(64), ForeignKey("devices.id"), primary_key=True),
    Column("received_ms", BigInteger, nullable=False),
    Column("ordinal", Integer, nullable=False),  # among those that came together
    Column("body", Text, nullable=False),
    Index("ix_forces_device", "device", "received_ms"),
    Index("ix_forces_received", "received_ms"),
)

# Signed receipts for what came by stick, until the machine showed that it had them.
receipts = Table(
    "receipts",
    metadata,
    Column("device", String(64), ForeignKey("devices.id"), primary_key=True),
    Column("id", String(64), primary_key=True),  # hash of what it says
    Column("made_ms", BigInteger, nullable=False),
    Column("told", BigInteger),  # number of the sync token that went with it
    Column("body", Text, nullable=False),
)

results = Table(
    "results",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("device", String(64), nullable=False),
    Column("epoch", String(32), nullable=False),
    Column("lane", String(64), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("device", "epoch", "lane", "seq"),
)

# Loss records as they came, for people. What counts as lost stands in `lost_ranges`.
losses = Table(
    "losses",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("epoch", String(32), primary_key=True),
    Column("lane", String(64), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    Index("ix_losses_received", "received_ms"),
)

# All numbers of a lane that its machine ever gave up, as few ranges as possible: disjoint, and none adjoins another.
lost_ranges = Table(
    "lost_ranges",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("epoch", String(32), primary_key=True),
    Column("lane", String(64), primary_key=True),
    Column("first", BigInteger, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
)

lane_totals = Table(
    "lane_totals",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("epoch", String(32), primary_key=True),
    Column("lane", String(64), primary_key=True),
    Column("ingested", BigInteger, nullable=False),
    Column("lost", BigInteger, nullable=False),
    Column("next_seq", BigInteger, nullable=False),  # one above the highest that was ingested or reported lost
)

conflicts = Table(
    "conflicts",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("epoch", String(32), primary_key=True),
    Column("lane", String(64), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("sha256", LargeBinary, primary_key=True),
    Column("body", LargeBinary, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("who", String(128), nullable=False, default=""),
    Column("device", String(64), nullable=False, default=""),
    Column("what", String(256), nullable=False, default=""),
    Column("reason", String(32), nullable=False, default=""),
    Column("detail", Text, nullable=False, default=""),
    Column("hash", String(64), nullable=False),  # `protocol.audit.line_hash`
)
