"""The conversion of face-api's package."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from safetensors import safe_open

from trainers.faces.making.package import MODELS, convert
from trainers.faces.weights import FILE, SCALES, load_networks


def package(extra: bytes = b"") -> tarfile.TarFile:
    """Each network has one quantised and one plain tensor."""
    packed, plain = np.array([[0, 255]], np.uint8), np.array([1.5, -2.0], np.float32)
    weights = [
        {"name": "a", "shape": [1, 2], "dtype": "float32", "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1}},
        {"name": "b", "shape": [2], "dtype": "float32"},
    ]
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for model in MODELS.values():
            for name, content in (
                (f"{model}.bin", packed.tobytes() + plain.tobytes() + extra),
                (f"{model}-weights_manifest.json", json.dumps([{"weights": weights}]).encode()),
            ):
                info = tarfile.TarInfo(f"package/model/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    data.seek(0)
    return tarfile.open(fileobj=data)


def test_eight_bits_stay_eight_bits_with_their_scale(tmp_path):
    (tmp_path / "x").write_bytes(convert(package()))
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.get_tensor("embedder/a").dtype == torch.uint8 and file.get_tensor("embedder/b").tolist() == [
            1.5,
            -2,
        ]
        assert json.loads(file.metadata()[SCALES])["detector/a"] == [0.5, -1]


def test_a_model_of_another_length_is_refused():
    with pytest.raises(ValueError, match="manifest"):
        convert(package(extra=b"\0"))


def test_the_committed_file_is_small_and_has_its_licence():
    assert FILE.stat().st_size < 15e6
    assert "MIT License" in (FILE.parent / "LICENSE.face-api.txt").read_text(encoding="utf-8")


def test_weights_are_read_once_per_device():
    assert load_networks(torch.device("cpu")) is load_networks(torch.device("cpu"))
