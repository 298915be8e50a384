"""Reading .safetensors files: shards, scaled float8, and files that are something else."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trainers.errors import UserError
from trainers.modelfiles.places import weight_files
from trainers.modelfiles.weights import open_weights

REMEDY = "give another file"
FLOAT8 = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


def save(path, tensors, metadata=None):
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def read(path, dtype=torch.float32):
    """All weights at `path`, after the check for what cannot be read."""
    with open_weights(path, "the model", REMEDY) as weights:
        weights.require_readable(weights.keys, path, REMEDY)
        return {key: weights.read(key, dtype) for key in weights.keys}


class RunsCode:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def matrix():
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(0)) * 0.02


@pytest.fixture
def shards(tmp_path):
    """Three shards of one tensor each."""
    return [
        save(tmp_path / f"model-0000{i + 1}-of-00003.safetensors", {f"w{i}": torch.full((2,), float(i))})
        for i in range(3)
    ]


@pytest.mark.parametrize("kind", FLOAT8)
@pytest.mark.parametrize("spelling", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_float8_weight_is_its_value_times_its_scale(tmp_path, matrix, kind, spelling, shape):
    scale = float(matrix.abs().max()) / FLOAT8[kind]
    stored = (matrix / scale).to(kind)
    tensors = {"a.weight": stored, f"a.{spelling}": torch.full(shape, scale), "a.bias": torch.ones(6)}
    found = read(save(tmp_path / "m.safetensors", tensors))
    assert found.keys() == {"a.weight", "a.bias"}
    expected = np.asarray(stored.double()) * np.float64(np.float32(scale))
    np.testing.assert_allclose(found["a.weight"], expected, rtol=1e-6)
    assert (found["a.weight"] - matrix).abs().max() < matrix.abs().max() / 8


def test_float8_without_scales_is_its_value(tmp_path, matrix):
    stored = matrix.to(torch.float8_e4m3fn)
    assert torch.equal(read(save(tmp_path / "m.safetensors", {"a.weight": stored}))["a.weight"], stored.float())


def test_notes_on_8_bit_weights_are_not_weights(tmp_path):
    extra = {
        "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn),
        "model.scaled_fp8": torch.zeros(0).to(torch.float8_e4m3fn),
        "a.input_scale": torch.ones(()),
        "a.scale_input": torch.ones(()),
        "a.weight_scale": torch.full((), 2.0),
        "a.comfy_quant": torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8),
    }
    weight = torch.eye(2).to(torch.float8_e4m3fn)
    found = read(save(tmp_path / "m.safetensors", {"a.weight": weight, **extra}))
    assert found.keys() == {"a.weight"}
    assert torch.equal(found["a.weight"], 2 * torch.eye(2))


E4M3 = torch.ones(4, 4).to(torch.float8_e4m3fn)
INT8 = torch.arange(-8, 8, dtype=torch.int8).view(4, 4)


def note(**values):
    """What ComfyUI stores of a weight's quantisation beside it."""
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


ROTATED = note(format="int8_tensorwise", convrot=True)


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({"a.weight": torch.zeros(4, 4, dtype=torch.int8), "a.weight_scale": torch.ones(())}, "a.weight is I8"),
        ({"a.weight": torch.zeros(4, 2, dtype=torch.uint8), "a.weight_scale": torch.ones(4)}, "a.weight is U8"),
        ({"a.weight": INT8, "a.weight_scale": torch.ones(()), "a.comfy_quant": ROTATED}, "with rotated weights"),
        (
            {"a.weight": E4M3, "a.weight_scale": torch.ones(4, 2)},
            "a.weight has scales of shape \\[4, 2\\] instead of one, or one per row",
        ),
        (
            {"a.weight": E4M3, "a.weight_scale": torch.ones(1, 4)},
            "a.weight has scales of shape \\[1, 4\\] instead of one, or one per row",
        ),
        ({"a.weight": E4M3, "a.weight_scale": torch.ones(()), "b.weight": E4M3}, "b.weight has no scale"),
        ({"a.weight": E4M3, "a.comfy_quant": note(format="mxfp8")}, "a.weight is mxfp8"),
        ({"a.weight": E4M3, "a.weight_scale": torch.ones(()), "a.comfy_quant": note(format="odd")}, "a.weight is odd"),
        ({"a.weight": E4M3, "a.weight_scale_inv": torch.ones(1, 1)}, "a.weight_scale_inv"),
        ({"a.weight": torch.zeros(4, 4), "a.weight.absmax": torch.ones(4)}, "a.weight.absmax"),
        ({"a.weight": E4M3, "a.weight_scale": torch.ones(()), "a.pre_quant_scale": torch.ones(4)}, "a.pre_quant_scale"),
        ({"a.qweight": torch.zeros(4, 4), "a.scales": torch.ones(4)}, "a.qweight"),
    ],
)
def test_other_quantisations_are_named_and_never_read(tmp_path, tensors, found):
    with pytest.raises(UserError, match=f"8-bit in a form that is not read: .*{found}; {REMEDY}"):
        read(save(tmp_path / "m.safetensors", tensors))


@pytest.mark.parametrize("header", ['{"layers": {"a": {"format": "nvfp4"}}}', "[]", "{", '{"layers": {"a": 1}}'])
def test_the_quantisation_stated_in_the_header_is_checked(tmp_path, header):
    path = save(tmp_path / "m.safetensors", {"a.weight": torch.eye(2)}, {"_quantization_metadata": header})
    with pytest.raises(UserError, match="a.weight is (nvfp4|in an unknown format)"):
        read(path)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("form", [torch.float8_e4m3fn, torch.int8])
def test_a_scale_for_each_row_is_used_for_its_row(tmp_path, shape, form):
    scales = torch.tensor([1.0, 2.0, 0.5, 4.0])
    tensors = {"a.weight": INT8.to(form), "a.weight_scale": scales.view(shape)}
    if form is torch.int8:
        tensors["a.comfy_quant"] = note(format="int8_tensorwise")
    found = read(save(tmp_path / "m.safetensors", tensors))["a.weight"]
    assert torch.equal(found, INT8.float() * scales[:, None])


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_scale_that_is_not_a_positive_number_is_refused(tmp_path, scale, rows):
    scales = torch.ones(rows)
    scales[-1] = scale
    path = save(tmp_path / "m.safetensors", {"a.weight": E4M3, "a.weight_scale": scales})
    with pytest.raises(UserError, match=rf"its scale a\.weight_scale is {scale:g}, a positive number"):
        read(path)


def test_two_scales_that_differ_are_refused(tmp_path):
    tensors = {"a.weight": E4M3, "a.weight_scale": torch.tensor(2.0), "a.scale_weight": torch.tensor([2.0])}
    assert torch.equal(read(save(tmp_path / "m.safetensors", tensors))["a.weight"], torch.full((4, 4), 2.0))
    tensors["a.scale_weight"] = torch.tensor(3.0)
    with pytest.raises(UserError, match="has two scales of a.weight, a.scale_weight and a.weight_scale, which differ"):
        read(save(tmp_path / "m.safetensors", tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_found(tmp_path, matrix, dtype, value):
    matrix[3, 4] = value
    path = save(tmp_path / "m.safetensors", {"a.weight": matrix.to(dtype)})
    with pytest.raises(UserError, match="m.safetensors is damaged: a.weight holds numbers that are not finite"):
        read(path)


def test_a_matrix_of_zeros_is_damage_and_a_vector_of_zeros_or_a_sum_of_zero_is_not(tmp_path):
    tensors = {"a.weight": torch.tensor([[1.0, -1.0]]), "a.bias": torch.zeros(3)}
    assert read(save(tmp_path / "m.safetensors", tensors)).keys() == tensors.keys()
    with pytest.raises(UserError, match="m.safetensors is damaged: b.weight holds only zeros; download it again"):
        read(save(tmp_path / "m.safetensors", tensors | {"b.weight": torch.zeros(2, 2)}))


def test_large_numbers_of_half_precision_are_not_taken_for_damage(tmp_path):
    path = save(tmp_path / "m.safetensors", {"a.weight": torch.full((9, 9), 60000.0, dtype=torch.float16)})
    assert torch.equal(read(path)["a.weight"], torch.full((9, 9), 60000.0))


def test_weights_are_not_copied_when_they_have_the_right_type(tmp_path, matrix):
    with open_weights(save(tmp_path / "m.safetensors", {"a": matrix}), "the model", REMEDY) as weights:
        raw = weights.raw("a")
        weights.raw = lambda key: raw
        assert weights.read("a", torch.float32).data_ptr() == raw.data_ptr()


def test_any_shard_or_the_index_or_the_folder_gives_all_shards(tmp_path, shards):
    index = tmp_path / "model.safetensors.index.json"
    assert weight_files(tmp_path, REMEDY) == shards
    index.write_text(json.dumps({"weight_map": {f"w{i}": path.name for i, path in enumerate(shards)}}))
    for place in (*shards, index, tmp_path):
        assert weight_files(place, REMEDY) == shards
        assert {key: float(tensor[0]) for key, tensor in read(place).items()} == {"w0": 0.0, "w1": 1.0, "w2": 2.0}


def test_a_missing_shard_is_named(tmp_path, shards):
    shards[1].unlink()
    for place in (shards[0], tmp_path):
        with pytest.raises(UserError, match=r"in 3 files, of which 1 are missing: model-00002-of-00003\.safetensors;"):
            weight_files(place, REMEDY)


def test_a_tensor_in_two_shards_is_refused(tmp_path, shards):
    save(shards[2], {"w0": torch.zeros(2)})
    with pytest.raises(UserError, match=r"holds tensors of another shard too \(w0\)"):
        read(shards[0])


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        "{",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../../etc/passwd.safetensors"}}',
        "[" * 100_000,
    ],
)
def test_a_broken_index_is_refused(tmp_path, index):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
        weight_files(path, REMEDY)


def test_a_folder_with_several_models_is_ambiguous_unless_one_has_the_standard_name(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.safetensors", {"w": torch.zeros(1)})
    with pytest.raises(UserError, match=r"several models \(a\.safetensors, b\.safetensors\)"):
        weight_files(tmp_path, REMEDY)
    standard = save(tmp_path / "diffusion_pytorch_model.safetensors", {"w": torch.zeros(1)})
    assert weight_files(tmp_path, REMEDY) == [standard]


def test_a_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(UserError, match="holds no .safetensors file; give another file"):
        weight_files(tmp_path, REMEDY)


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"\x80\x02\x8a\x0al\xfc\x9cF", "a pickled PyTorch file"),
        (b"version https://git-lfs", "a Git LFS pointer"),
        (b"<!DOCTYPE html>", "a web page"),
        (struct.pack("<Q", 2**40), "no .safetensors file"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path, start, what):
    (tmp_path / "m.safetensors").write_bytes(start + b" " * 100)
    with pytest.raises(UserError, match=f"m.safetensors is {what}.*; {REMEDY}"):
        read(tmp_path / "m.safetensors")


def test_a_pickled_file_is_read_and_its_code_is_not_run(tmp_path, matrix):
    torch.save({"model": {"a": matrix, "b._extra_state": None}, "step": 3}, tmp_path / "m.pth")
    assert torch.equal(read(tmp_path / "m.pth")["a"], matrix)
    torch.save({"a": matrix, "b": RunsCode(tmp_path / "owned")}, tmp_path / "m.pth")
    with pytest.raises(UserError, match="m.pth .* is refused"):
        read(tmp_path / "m.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(2)],
        {"a": 1},
        {},
        {"a": torch.eye(2).to_sparse()},
        {"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])},
        {"a": torch.ones(1).expand(2**40)},
        {"a": torch.ones(2, device="meta")},
    ],
)
def test_a_pickled_file_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(UserError, match="m.pth is not a dictionary of dense tensors by name; give another file"):
        read(tmp_path / "m.pth")


def test_a_pickled_file_by_another_name_is_named(tmp_path, matrix):
    torch.save({"a": matrix}, tmp_path / "m.pth")
    (tmp_path / "m.pth").rename(tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="m.safetensors is a pickled PyTorch file with the wrong name; rename it"):
        read(tmp_path / "m.safetensors")


def test_a_truncated_file_is_named(tmp_path, matrix):
    path = save(tmp_path / "m.safetensors", {"a": matrix})
    for content in (path.read_bytes()[:-4], b"", b"\x10\0\0\0\0\0\0\0not a header...."):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read the model .*m\.safetensors.*downloaded to its end"):
            read(path)


@pytest.mark.pipes
@pytest.mark.timeout(10)
def test_a_pipe_is_refused_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "m.safetensors")
    os.mkfifo(tmp_path / "model.safetensors.index.json")
    for place in ("m.safetensors", "model.safetensors.index.json"):
        with pytest.raises(UserError, match=f"{place}.*not a regular file"):
            read(tmp_path / place)


def test_an_empty_tensor_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"its tensor a\.weight is empty"):
        read(save(tmp_path / "m.safetensors", {"a.weight": torch.zeros(0, 2**20)}))
