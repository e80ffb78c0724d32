"""A limit on everything that comes from outside, each with its reason. Checked before memory is allocated."""

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

# Transfer
SEGMENT_OUTPUT_BYTES: Final = MIB  # what one cut can cost at most
UNINDEXED_PAYLOAD_BYTES: Final = MIB  # smaller transfers are spooled and hashed whole: an index would cost more
SEGMENT_PAYLOAD_BYTES: Final = MIB + 64 * KIB  # a segment that does not compress, and zstd's framing around it
INDEX_BYTES: Final = 16 * MIB  # 128 bytes a segment is ample: this reaches 128 GiB of output
ARTIFACT_BYTES: Final = 64 * GIB  # larger than any model that a machine in a field runs
ZSTD_WINDOW_BYTES: Final = 8 * MIB  # decoder memory on a small machine; the encoder is told the same

# Patches: what bounds the memory to apply one, whatever its size
GROUP_CODED_BYTES: Final = 4 * MIB  # decoded streams of the open group, held in memory; see `delta.patch.held_bytes`
GROUP_PAYLOAD_BYTES: Final = 9 * MIB  # the same when nothing of it compressed, with room for the operations
GROUP_OUTPUT_BYTES: Final = 64 * MIB  # copies cost no memory, but a cut applies the open group again
GROUP_CONTROL_BYTES: Final = 512 * KIB  # the coded operations of one group
GROUP_OPERATIONS: Final = 1 << 16  # kept as numbers between the two passes over them
GROUP_NEW_BYTES: Final = 4096  # new bytes among the operations: slow to decode
GROUP_CHANGED_BYTES: Final = 64 * KIB  # changed bytes among them
PATCH_SEGMENT_BYTES: Final = 256 * KIB  # what one cut can cost at most
PATCH_SEGMENTS: Final = 1 << 18  # reaches the largest artifact
PATCH_MEMORY_MIB: Final = 32  # what applying takes above an interpreter with numpy, for any file
PATCH_CODECS: Final = 16  # versions that one agent applies

# Signed objects
METADATA_BYTES: Final = 5_000_000  # ngclient's own cap for targets metadata
WANTED_FILES: Final = 512  # that a server out of a backup asks for: a chain of roots of many years
GIVEN_BACK_BYTES: Final = 16 * METADATA_BYTES
OBJECT_BYTES: Final = 256 * KIB  # one signed object of an answer: an assignment with a plan of a thousand steps
ROOT_ROTATIONS_A_REFRESH: Final = 4096  # 300 genuine roots are walked; endless ones are not
MANIFEST_BYTES: Final = MIB
MANIFEST_ARTIFACTS: Final = 1024
INTERLOCKS: Final = 64  # signals of one machine; each is a file that is looked at
TIME_STATEMENT_AGE_S: Final = 60  # a nonce older than this is refused: a kept answer must not hold time back

# Messages
SYNC_BYTES: Final = 256 * KIB
ANSWER_BYTES: Final = 4 * MIB
INVENTORY_BYTES: Final = 64 * KIB
HAVE_DIGESTS: Final = 4096
STATUSES: Final = 64
FAILED_PATCHES: Final = 32  # one contact's; what is left comes with the next
PARTS: Final = 64  # transfers that one machine has open
BUDGET_LINKS: Final = 16  # kinds of link that one machine may have
ENROL_BYTES: Final = 32 * KIB
TRUSTED_CAS: Final = 8  # the newest, and those that are on their way out
RENEW_ANSWER_BYTES: Final = 512 * KIB  # with every CA there ever was

# Results
BATCH_BYTES: Final = MIB  # compressed, on the wire: one retry on a bad link stays cheap
BATCH_BODY_BYTES: Final = 8 * MIB  # decompressed
BATCH_ROWS: Final = 10_000
ROW_BYTES: Final = 256 * KIB
RECEIPT_RANGES: Final = 4096
ROW_NUMBERS: Final = 1 << 36  # of a lane in one epoch: eleven years at 200 rows a second; then a new epoch begins

# Field kits
KIT_BYTES: Final = METADATA_BYTES  # `kit.json`: the steps of all its releases, from every base
KIT_STEPS: Final = 16_384  # a release of a thousand artifacts from a dozen bases
KIT_RELEASES: Final = 64
KIT_MACHINES: Final = 10_000
KIT_METADATA_BYTES: Final = 64 * MIB  # all metadata of a kit, copied to the machine before it is looked at
KIT_METADATA_FILES: Final = 8192  # two chains of roots of many years
KITS_LOOKED_AT: Final = 64  # on one stick, by their names
TECHNICIANS: Final = 1000
FORCE_REQUEST_BYTES: Final = 4 * 4096  # of `SignedForce.request`, were each of its characters of four bytes
FORCES: Final = 16  # that one contact tells
REPORT_BODY_BYTES: Final = MIB
PIECE_BYTES: Final = BATCH_BYTES + 64 * KIB  # a sealed batch, its envelope and its header

# Models
GOLDEN_BYTES: Final = 64 * MIB
TENSORS: Final = 64
TENSOR_BYTES: Final = 256 * MIB
IMAGE_PIXELS: Final = 50_000_000  # a decompression bomb is larger, a farm camera is not
LABELS: Final = 100_000

# Containers
CONTAINERS: Final = 32  # of one release
CONTAINER_IMAGES: Final = 16  # of one container, one a platform
CONTAINER_MOUNTS: Final = 32
CONTAINER_WORDS: Final = 128  # of a command, and variables of an environment
CONTAINER_TEXT_BYTES: Final = 8192  # of one of them
IMAGE_LAYERS: Final = 127  # overlay2 stacks no more
IMAGE_CONFIG_BYTES: Final = MIB
