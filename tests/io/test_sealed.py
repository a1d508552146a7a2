"""Weight files carry a hash: every flipped bit is found, files without a hash pass, other readers read both."""

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from ovsdino.errors import OVSDinoError
from ovsdino.io.sealed import check_safetensors, check_zip, seal_safetensors, seal_zip

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(5).half()}


def zipped(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_a_sealed_file_holds_the_same_tensors_and_the_same_bytes_each_time():
    sealed = seal_safetensors(save(TENSORS, {"kind": "test"}))
    assert sealed == seal_safetensors(save(TENSORS, {"kind": "test"}))
    found = load(sealed)
    assert found.keys() == TENSORS.keys() and all(torch.equal(found[key], TENSORS[key]) for key in found)
    length = int.from_bytes(sealed[:8], "little")
    metadata = json.loads(sealed[8 : 8 + length])["__metadata__"]
    assert metadata.keys() == {"kind", "writer", "sha256"} and length % 8 == 0
    zeroed = sealed.replace(metadata["sha256"].encode(), b"0" * 64)
    assert hashlib.sha256(zeroed).hexdigest() == metadata["sha256"]


def test_every_flipped_bit_of_a_sealed_safetensors_file_is_found():
    sealed = seal_safetensors(save(TENSORS))
    check_safetensors(sealed, "a")
    for place in range(len(sealed)):
        for bit in range(8):
            damaged = bytearray(sealed)
            damaged[place] ^= 1 << bit
            with pytest.raises(Exception) as caught:
                check_safetensors(bytes(damaged), "a")
                load(bytes(damaged))
            assert isinstance(caught.value, OVSDinoError) or type(caught.value).__name__ == "SafetensorError"


def test_every_flipped_bit_of_a_sealed_checkpoint_is_found():
    sealed = seal_zip(zipped({"step": 3}))
    check_zip(sealed, "a")
    assert torch.load(io.BytesIO(sealed), weights_only=True) == {"step": 3}
    assert zipfile.ZipFile(io.BytesIO(sealed)).comment.startswith(b"ovsdino sha256 ")
    for place in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[place] ^= 1 << (place % 8)
        with pytest.raises(OVSDinoError, match="damaged"):
            check_zip(bytes(damaged), "a")


def test_files_without_a_hash_and_of_others_pass():
    check_safetensors(save(TENSORS), "a")
    check_safetensors(save(TENSORS, {"format": "pt", "sha256": "of something else"}), "a")
    check_safetensors(b"not a safetensors file", "a")
    check_safetensors(b"", "a")
    check_zip(zipped({"step": 3}), "a")


def test_a_cut_off_file_is_damaged():
    sealed = seal_zip(zipped({"step": 3}))
    rng = np.random.default_rng(0)
    for end in rng.integers(0, len(sealed), 50):
        with pytest.raises(OVSDinoError, match="damaged"):
            check_zip(sealed[:end], "a")
