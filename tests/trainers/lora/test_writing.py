import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainers.errors import UserError
from trainers.lora.formats import LoRA, read_lora, write_diffusers, write_native, write_peft
from trainers.lora.hashes import without_hashes

GOLDEN = Path(__file__).parents[2] / "golden" / "lora"
WRITERS = [write_native, write_peft, write_diffusers]


@st.composite
def loras(draw):
    layers = draw(st.integers(1, 3))
    names = [
        f"{kind}.{n}.attn{a}.{part}"
        for kind in ("blocks", "vace_blocks")
        for n in range(layers)
        for a in (1, 2)
        for part in ("to_q", "to_k", "to_v", "to_out.0")
    ] + [f"blocks.{layers}.ffn.net.0.proj", "blocks.0.ffn.net.2", "vace_blocks.0.proj_out", "proj_out"]
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=8, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    modules, alpha = {}, {}
    for name in chosen:
        rank, rows, columns = (draw(st.integers(1, 6)) for _ in range(3))
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
        modules[name] = tuple(
            torch.from_numpy(rng.standard_normal(s)).to(dtype) for s in ((rank, columns), (rows, rank))
        )
        alpha[name] = draw(st.floats(0.125, 512, width=32))
    metadata = draw(st.dictionaries(st.sampled_from(["run", "iteration"]), st.text(max_size=8)))
    return LoRA(modules, alpha, metadata)


def assert_equal(found, expected):
    assert found.modules.keys() == expected.modules.keys()
    for name in expected.modules:
        for a, b in zip(found.modules[name], expected.modules[name], strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
    assert found.alpha == expected.alpha


@given(loras())
@settings(max_examples=15, deadline=None)
def test_native_files_hold_everything(tmp_path_factory, lora):
    path = tmp_path_factory.mktemp("native") / "a.safetensors"
    write_native(lora, path)
    found = read_lora(path)
    assert_equal(found, lora)
    assert found.metadata == lora.metadata


@pytest.mark.parametrize("write", [write_peft, write_diffusers])
@given(loras())
@settings(max_examples=10, deadline=None)
def test_folders_hold_everything(tmp_path_factory, write, lora):
    folder = tmp_path_factory.mktemp("lora") / "a"
    write(lora, folder)
    found = read_lora(folder)
    assert_equal(found, lora)
    assert lora.metadata.items() <= found.metadata.items()
    (weights,) = folder.glob("*.safetensors")
    assert_equal(read_lora(weights), lora)


@given(loras(), st.floats(-2, 2, width=32))
@settings(max_examples=10, deadline=None)
def test_merged_delta_is_strength_alpha_over_rank_b_a(lora, strength):
    for name, (down, up) in lora.modules.items():
        expected = (
            np.einsum("or,ri->oi", up.double().numpy(), down.double().numpy()) * strength * lora.alpha[name] / len(down)
        )
        np.testing.assert_allclose(lora.merged_delta(name, strength).numpy(), expected, atol=1e-9, rtol=1e-9)


def test_the_alpha_is_written_per_module_as_a_number_without_axes(tmp_path):
    lora = read_lora(GOLDEN / "peft")
    write_native(lora, tmp_path / "a.safetensors", {"iteration": "7"})
    found = load_file(tmp_path / "a.safetensors")
    alphas = {k: v for k, v in found.items() if k.endswith(".alpha")}
    assert len(alphas) == 48
    assert {tuple(v.shape) for v in alphas.values()} == {()}
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["iteration"] == "7"


def test_an_alpha_from_the_header_is_converted_once(tmp_path):
    name = "blocks.0.attn1.to_q"
    factors = {
        f"transformer.{name}.lora_A.weight": torch.ones(4, 3),
        f"transformer.{name}.lora_B.weight": torch.ones(2, 4),
    }
    header = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 16}), "lora_alpha": "16", "run": "x"}
    save_file(factors, tmp_path / "a.safetensors", metadata=header)
    write_native(read_lora(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert without_hashes(file.metadata()) == {"run": "x"}
        assert file.get_tensor("diffusion_model.blocks.0.self_attn.q.alpha").item() == 16
    write_diffusers(read_lora(tmp_path / "b.safetensors"), tmp_path / "c")
    assert read_lora(tmp_path / "c").alpha == {name: 16.0}


@pytest.mark.parametrize("write", WRITERS)
def test_writing_again_replaces_and_leaves_no_other_file(tmp_path, write):
    first = read_lora(GOLDEN / "peft")
    second = LoRA({n: (a + 1, b) for n, (a, b) in first.modules.items()}, first.alpha)
    for lora in (first, second):
        write(lora, tmp_path / "out")
    assert_equal(read_lora(tmp_path / "out"), second)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def full_disk():
    """Within the block no file can grow beyond 1000 bytes."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limit():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.mark.parametrize("write", WRITERS)
def test_a_disk_that_is_full_keeps_the_older_file(tmp_path, write, full_disk):
    lora = read_lora(GOLDEN / "peft")
    write(lora, tmp_path / "out")
    with full_disk(), pytest.raises(UserError, match="disk is full"):
        write(lora, tmp_path / "out")
    assert_equal(read_lora(tmp_path / "out"), lora)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("write", WRITERS)
def test_a_folder_with_other_files_is_not_replaced(tmp_path, write):
    (tmp_path / "mine" / "of").mkdir(parents=True)
    (tmp_path / "mine" / "of" / "value").write_text("x")
    with pytest.raises(UserError, match="mine"):
        write(read_lora(GOLDEN / "peft"), tmp_path / "mine")
    assert (tmp_path / "mine" / "of" / "value").read_text() == "x"


@pytest.mark.parametrize("write", [write_peft, write_diffusers])
def test_a_folder_does_not_replace_a_file(tmp_path, write):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UserError, match="cannot write the LoRA"):
        write(read_lora(GOLDEN / "peft"), tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "x"


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("place", ["file/a", "n" * 300])
def test_a_place_that_cannot_be_written_is_named(tmp_path, write, place):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write the LoRA"):
        write(read_lora(GOLDEN / "peft"), tmp_path / place)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
