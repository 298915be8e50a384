"""Encodings on disk are found again, and only as what they are; damaged ones are not."""

from __future__ import annotations

import os

import pytest
import torch

from trainers.policies.encodings import KEPT_SECONDS, SAMPLE_BYTES, SAMPLES, EncodingStore, files_digest, prune
from trainers.policies.wan import Cache


@pytest.fixture
def store(tmp_path) -> EncodingStore:
    return EncodingStore(tmp_path / "encodings", "encoder")


def files(store: EncodingStore) -> list:
    return sorted(store.folder.glob("*.safetensors"))


@pytest.mark.parametrize("value", [torch.randn(3, 4), torch.randn(3, 4).t(), torch.zeros(0, 4)])
def test_an_encoding_is_found_by_another_run(store, value):
    store.put("text", value)
    again = EncodingStore(store.folder, "encoder")
    assert "text" in again and torch.equal(again.get("text"), value)


def test_another_text_or_another_encoder_finds_nothing(store):
    store.put(("picture", 240, 416), torch.ones(2))
    assert store.get(("picture", 480, 832)) is None
    assert EncodingStore(store.folder, "other").get(("picture", 240, 416)) is None


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "swap"])
def test_a_damaged_encoding_counts_as_missing_and_is_deleted(store, harm):
    store.put("text", torch.arange(100.0))
    (path,) = files(store)
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[-7] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": bytes(data[:-9]), "empty": b""}.get(harm, bytes(data[:8]) + b"x"))
    assert store.get("text") is None
    assert "text" not in store and files(store) == []


def test_the_least_recently_used_are_deleted_first_and_those_of_today_never(store):
    for age, key in enumerate(["new", "old", "older", "oldest"]):
        store.put(key, torch.zeros(1000))
        path = store._path(key)
        past = path.stat().st_mtime - age * KEPT_SECONDS * 1.5
        os.utime(path, (past, past))
    size = files(store)[0].stat().st_size
    store.get("older")  # used again
    prune(store.folder, limit=2 * size)
    assert [key for key in ("new", "old", "older", "oldest") if key in store] == ["new", "older"]
    prune(store.folder, limit=0)
    assert [key for key in ("new", "older") if key in store] == ["new", "older"]


def test_a_cache_computes_only_what_is_neither_in_memory_nor_on_disk(store):
    asked = []

    def compute(positions):
        asked.append(list(positions))
        return [torch.full((2,), float(position)) for position in positions]

    first, second = Cache(), Cache()
    first.store = second.store = store
    first.resolve(["a", "b"], compute)
    found = second.resolve(["b", "c", "a"], compute)
    assert asked == [[0, 1], [1]]
    assert [value[0].item() for value in found] == [1.0, 1.0, 0.0]
    assert "a" in second and "d" not in second


def test_the_digest_of_files_sees_contents_names_and_what_stands_beside(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    first = files_digest([file], "bfloat16")
    assert files_digest([file], "float32") != first
    file.write_bytes(b"heavier")
    assert files_digest([file], "bfloat16") != first
    file.write_bytes(b"weights")
    os.utime(file, (0, 0))
    assert files_digest([file], "bfloat16") == first


def test_the_digest_of_a_large_file_sees_a_changed_sample(tmp_path):
    file = tmp_path / "model.safetensors"
    size = SAMPLES * SAMPLE_BYTES * 2
    with open(file, "wb") as out:
        out.truncate(size)
    first = files_digest([file])
    with open(file, "r+b") as out:
        out.seek(size - 1)
        out.write(b"x")
    assert files_digest([file]) != first
