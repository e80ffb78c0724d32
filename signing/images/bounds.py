"""The bounds of what is read of an image, each with its reason."""

from typing import Final

from protocol import limits

MANIFEST_BYTES: Final = 4 * limits.MIB  # what registries take
INDEX_ENTRIES: Final = 256  # platforms and attestations of one image
INDEX_DEPTH: Final = 2  # an index of a layout, which names the index of an image
LAYER_BYTES: Final = 16 * limits.GIB  # uncompressed; a layer with all of CUDA has four
LAYER_FREE_BYTES: Final = 256 * limits.MIB  # that a compressed layer may unfold to whatever its length
LAYER_RATIO: Final = 64  # beyond: real layers shrink three-fold, a bomb a thousand-fold
ZSTD_WINDOW_BYTES: Final = 128 * limits.MIB  # the widest that zstd uses without being asked
ARCHIVE_ENTRIES: Final = 100_000  # files of an archive; a layer is one of them
LAYER_ENTRIES: Final = 500_000  # of a layer that is looked through; a whole Debian with CUDA has a fifth
ARCHIVE_NAME_BYTES: Final = 64 * limits.KIB  # a name of an entry, which nothing makes a path of
CHUNK_BYTES: Final = limits.MIB
