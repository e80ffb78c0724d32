"""The delta codec's format and its applier. Pure: numpy, zstandard and the standard library's LZMA; no I/O.

`patch` is the container (groups, index, file), `apply` executes one group, `streams` and the models beside it decode
what travels. The encoder and its front-ends stand in `server/delta`; `protocol/README.md` specifies the bytes.
"""
