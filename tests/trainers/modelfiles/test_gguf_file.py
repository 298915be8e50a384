"""GGUF files: what is read, and what is refused."""

from __future__ import annotations

import contextlib
import struct
import sys

import gguf
import numpy as np
import pytest
import torch

from trainers.errors import UserError
from trainers.modelfiles import gguf_file
from trainers.modelfiles.weights import open_weights

from .synthetic import write_gguf

REMEDY = "give another file"
NAME = "blocks.0.ffn.0.weight"


@pytest.fixture
def matrix():
    return torch.randn(6, 512, generator=torch.Generator().manual_seed(0)) * 0.02


def read(path, dtype=torch.float32):
    with open_weights(path, "the model", REMEDY) as weights:
        weights.require_readable(weights.keys, path, REMEDY)
        return {key: weights.read(key, dtype) for key in weights.keys}


def test_the_package_reads_the_same_tensors_and_entries(tmp_path, matrix):
    path = write_gguf(tmp_path / "m.gguf", {NAME: matrix, "b": torch.ones(3), "c": torch.ones(2, 3, 4, 5, 6)}, "Q8_0")
    theirs, ours = gguf.GGUFReader(path), gguf_file.GgufFile(path, REMEDY)
    assert {t.name: (t.tensor_type.name, t.data_offset) for t in theirs.tensors} == {
        name: (ours.dtype(name), tensor.place) for name, tensor in ours._tensors.items()
    }
    entries = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours._fields == entries


def dequantised(path, name):
    """The tensor by the package's own function on the whole of it."""
    (tensor,) = (t for t in gguf.GGUFReader(path).tensors if t.name == name)
    return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))


@pytest.mark.parametrize("form", ["Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16"])
def test_a_quantised_matrix_is_that_of_the_package_also_when_read_in_parts(tmp_path, matrix, monkeypatch, form):
    path = write_gguf(tmp_path / "m.gguf", {NAME: matrix}, form)
    monkeypatch.setattr(gguf_file, "_AT_ONCE", 1024)
    assert torch.equal(read(path)[NAME], dequantised(path, NAME))
    assert torch.equal(read(path, torch.bfloat16)[NAME], dequantised(path, NAME).bfloat16())


def test_a_tensor_of_five_dimensions_has_its_shape(tmp_path):
    tensor = torch.randn(8, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    path = write_gguf(tmp_path / "m.gguf", {"patch_embedding.weight": tensor}, "Q8_0")
    assert torch.equal(read(path)["patch_embedding.weight"], tensor)


def test_another_quantisation_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "wan")
    kind = gguf.GGMLQuantizationType.Q2_K
    writer.add_tensor(NAME, np.ones((4, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=f"in a form that is not read: {NAME} is Q2_K; {REMEDY}"):
        read(tmp_path / "m.gguf")


@pytest.mark.parametrize("length", [8, 30, 100, -1])
def test_a_truncated_file_is_named(tmp_path, matrix, length):
    path = write_gguf(tmp_path / "m.gguf", {NAME: matrix}, "Q8_0")
    path.write_bytes(path.read_bytes()[:length] if length > 0 else path.read_bytes()[:-400])
    with pytest.raises(UserError, match=f"cannot read .*m.gguf.*{REMEDY}, downloaded to its end"):
        read(path)


@pytest.mark.parametrize("place", range(8, 120, 7))
def test_a_damaged_header_is_one_error_or_harmless(tmp_path, matrix, place):
    path = write_gguf(tmp_path / "m.gguf", {NAME: matrix}, "Q8_0")
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)
    # Any other exception fails the test.
    with contextlib.suppress(UserError):
        read(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "rest",
    [
        struct.pack("<QQ", 0, 2**40),
        struct.pack("<QQ", 2**40, 0),
        struct.pack("<QQQ", 0, 1, 2**62),
        struct.pack("<QQQ3sIIQ", 0, 1, 3, b"abc", 9, 0, 2**40),
        struct.pack("<QQQ3sIIQ", 0, 1, 3, b"abc", 9, 8, 2**40),
        struct.pack("<QQQ3sIIQ", 0, 1, 3, b"abc", 9, 9, 2**40),
        struct.pack("<QQQ1sI", 1, 0, 1, b"a", 2**31),
    ],
)
def test_a_header_of_absurd_lengths_is_refused_quickly(tmp_path, rest):
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3) + rest + bytes(64))
    with pytest.raises(UserError, match=r"cannot read .*m\.gguf"):
        read(tmp_path / "m.gguf")


def test_damaged_blocks_are_found(tmp_path, matrix):
    path = write_gguf(tmp_path / "m.gguf", {NAME: matrix}, "Q6_K")
    content = bytearray(path.read_bytes())
    content[-2 - 10 :] = b"\xff" * 12  # the scale of the last block: NaN
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"m.gguf is damaged: {NAME} holds numbers that are not finite"):
        read(path)


def test_the_missing_package_is_named(tmp_path, matrix, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf", {NAME: matrix}, "Q8_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"is a GGUF file, which needs the package gguf \(pip install gguf\)"):
        read(path)
