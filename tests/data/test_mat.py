"""MATLAB files against scipy's writer."""

from __future__ import annotations

import io

import numpy as np
import pytest

from ovsdino.data.mat import read_mat

scipy_io = pytest.importorskip("scipy.io", reason="needs scipy")


@pytest.mark.parametrize("compressed", [False, True])
def test_numbers_cells_and_structures(compressed: bool) -> None:
    cells = np.empty((1, 2), object)
    for i in range(2):
        cells[0, i] = {"Segmentation": np.arange(6, dtype=np.uint16).reshape(2, 3) + 300 * i, "B": np.eye(2) > 0}
    numbers = {
        f"n_{kind}": np.arange(24).reshape(2, 3, 4).astype(kind) for kind in ("i1", "u1", "i4", "u8", "f4", "f8")
    }
    file = io.BytesIO()
    scipy_io.savemat(file, {"groundTruth": cells, "word": "text", **numbers}, do_compression=compressed)
    found = read_mat(file.getvalue())
    assert [person[0]["Segmentation"].tolist() for person in found["groundTruth"]] == [
        [[0, 1, 2], [3, 4, 5]],
        [[300, 301, 302], [303, 304, 305]],
    ]
    assert found["groundTruth"][0][0]["B"].tolist() == [[1, 0], [0, 1]] and found["word"] is None
    for name, expected in numbers.items():
        assert np.array_equal(found[name], expected)


def test_files_of_big_endian_machines() -> None:
    # one variable x = [7, 8] of uint16, byte by byte as in MathWorks' description of the format
    inner = bytes.fromhex(
        "00000006 00000008 0000000b 00000000"  # flags: class 11, uint16
        "00000005 00000008 00000001 00000002"  # shape 1 x 2
        "00010001 78000000"  # the name, short form
        "00040004 00070008"  # the numbers, short form
    )
    data = b" " * 124 + b"\x01\x00MI" + bytes.fromhex("0000000e") + len(inner).to_bytes(4, "big") + inner
    assert read_mat(data)["x"].tolist() == [[7, 8]]


@pytest.mark.parametrize(
    "data", [b"", b"MATLAB no more", bytes(200), b" " * 124 + b"\x00\x01IM" + b"\x0e\0\0\0\xff\0\0\0"]
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"no MATLAB file|cut off"):
        read_mat(data)
