"""Arrays from hostile archives: nothing is unpickled, and nothing is allocated that a header only claims."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from device.inference.npz import read_npz, write_npz
from protocol.errors import Reason, Refused


def archive(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return out.getvalue()


def npy(array: np.ndarray, **options) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int8).reshape(2, 3)),
        np.array(7, np.int64),
        np.zeros((0, 4), np.float16),
        np.arange(3, dtype=">f4"),
        np.array([True, False]),
    ],
    ids=str,
)
@pytest.mark.parametrize("save", [lambda **a: write_npz(a), np.savez, np.savez_compressed], ids=["ours", "z", "zc"])
def test_what_is_written_is_read(array, save):
    if save in (np.savez, np.savez_compressed):
        out = io.BytesIO()
        save(out, **{"a/b:0": array})
        data = out.getvalue()
    else:
        data = write_npz({"a/b:0": array})
    got = read_npz(data)["a/b:0"]
    assert got.shape == array.shape
    assert got.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(got, array)


def test_the_same_arrays_give_the_same_bytes():
    assert write_npz({"x": np.ones(3)}) == write_npz({"x": np.ones(3)})


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle ran')",))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.METADATA),
        (b"PK\x03\x04rubbish", Reason.METADATA),
        (archive(**{"x.npy": b"\x93NUMPY\x01\x00"}), Reason.METADATA),
        (archive(**{"x.npy": npy(np.array([Bomb()], object), allow_pickle=True)}), Reason.METADATA),
        (archive(**{"x.npy": pickle.dumps(Bomb())}), Reason.METADATA),
        (archive(x=npy(np.ones(2))), Reason.METADATA),
        (archive(**{"x.npy": npy(np.array(["text"]))}), Reason.METADATA),
        (archive(**{f"x{i}.npy": npy(np.ones(1)) for i in range(65)}), Reason.LIMIT),
        (archive(**{"x.npy": npy(np.zeros(100_000))}), Reason.LIMIT),
    ],
    ids=["empty", "rubbish", "short", "objects", "pickle", "no-npy", "text", "many", "large"],
)
def test_anything_else_is_refused(data, reason):
    with pytest.raises(Refused) as refused:
        read_npz(data, limit_bytes=500_000)
    assert refused.value.reason is reason


def test_a_header_that_claims_more_than_there_is_allocates_nothing():
    whole = npy(np.zeros(10))
    claim = whole.replace(b"(10,)", b"(99999999999,)")[: len(whole)]
    assert claim != whole
    with pytest.raises(Refused):
        read_npz(archive(**{"x.npy": claim}))


def test_each_flipped_byte_is_refused_or_gives_plain_arrays():
    data = write_npz({"x": np.arange(8, dtype=np.float32)})
    for place in range(len(data)):
        try:
            arrays = read_npz(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        except Refused:
            continue
        assert all(array.dtype.kind in "biuf" for array in arrays.values())
