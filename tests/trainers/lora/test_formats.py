import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainers.errors import UserError
from trainers.lora.formats import LoRA, read_lora, write_native, write_peft
from trainers.parity.lora import verify_case

GOLDEN = Path(__file__).parents[2] / "golden" / "lora"


@st.composite
def loras(draw):
    layers = draw(st.integers(1, 3))
    names = [
        f"{kind}.{n}.attn{a}.{part}"
        for kind in ("blocks", "vace_blocks")
        for n in range(layers)
        for a in (1, 2)
        for part in ("to_q", "to_k", "to_v", "to_out.0")
    ] + [f"blocks.{layers}.ffn.net.0.proj", "blocks.0.ffn.net.2"]
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
@settings(max_examples=40, deadline=None)
def test_native_files_hold_everything(tmp_path_factory, lora):
    path = tmp_path_factory.mktemp("native") / "a.safetensors"
    write_native(lora, path)
    found = read_lora(path)
    assert_equal(found, lora)
    assert found.metadata == lora.metadata


@given(loras())
@settings(max_examples=40, deadline=None)
def test_peft_folders_hold_everything(tmp_path_factory, lora):
    folder = tmp_path_factory.mktemp("peft") / "a"
    write_peft(lora, folder)
    found = read_lora(folder)
    assert_equal(found, lora)
    assert lora.metadata.items() <= found.metadata.items()
    assert_equal(read_lora(folder / "adapter_model.safetensors"), lora)


@given(loras(), st.floats(-2, 2, width=32))
@settings(max_examples=25, deadline=None)
def test_merged_delta_is_strength_alpha_over_rank_b_a(lora, strength):
    for name, (down, up) in lora.modules.items():
        expected = (
            np.einsum("or,ri->oi", up.double().numpy(), down.double().numpy()) * strength * lora.alpha[name] / len(down)
        )
        np.testing.assert_allclose(lora.merged_delta(name, strength).numpy(), expected, atol=1e-9, rtol=1e-9)


def test_golden_kit_is_reproduced():
    results = verify_case(GOLDEN)
    assert sum(r.name.startswith("velocity") for r in results) == 11
    assert [r for r in results if not r.ok] == []


def test_our_native_file_is_the_golden_one_to_the_byte(tmp_path):
    lora = read_lora(GOLDEN / "peft")
    write_native(LoRA(lora.modules, lora.alpha), tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (GOLDEN / "comfy_native.safetensors").read_bytes()


def test_the_alpha_is_written_per_module_as_a_number_without_axes(tmp_path):
    lora = read_lora(GOLDEN / "peft")
    write_native(lora, tmp_path / "a.safetensors", {"iteration": "7"})
    found = load_file(tmp_path / "a.safetensors")
    alphas = {k: v for k, v in found.items() if k.endswith(".alpha")}
    assert len(alphas) == 48
    assert {tuple(v.shape) for v in alphas.values()} == {()}
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["iteration"] == "7"


@pytest.mark.parametrize("pair", [("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora_A.default", "lora_B.default")])
@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model.", "transformer.", ""])
@pytest.mark.parametrize("native", [True, False])
def test_spellings_of_one_adapter_read_the_same(tmp_path, pair, prefix, native):
    module = "blocks.3.cross_attn.o" if native else "blocks.3.attn2.to_out.0"
    down, up = torch.randn(2, 5), torch.randn(4, 2)
    save_file(
        {f"{prefix}{module}.{pair[0]}.weight": down, f"{prefix}{module}.{pair[1]}.weight": up},
        tmp_path / "a.safetensors",
    )
    found = read_lora(tmp_path / "a.safetensors")
    assert list(found.modules) == ["blocks.3.attn2.to_out.0"]
    assert torch.equal(found.modules["blocks.3.attn2.to_out.0"][0], down)
    assert found.scale("blocks.3.attn2.to_out.0") == 1.0


def peft_folder(tmp_path, **config):
    save_file(
        {
            "base_model.model.blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, 3),
            "base_model.model.blocks.0.attn1.to_q.lora_B.weight": torch.ones(2, 4),
        },
        tmp_path / "adapter_model.safetensors",
    )
    if config:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q": 4}}, 1.0),
        ({"lora_alpha": 8, "use_rslora": True}, 4.0),
    ],
)
def test_pefts_configuration_decides_the_factor(tmp_path, config, scale):
    assert read_lora(peft_folder(tmp_path, **config)).scale("blocks.0.attn1.to_q") == scale


def test_a_peft_file_without_its_configuration_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"adapter_config\.json.*beside the weights"):
        read_lora(peft_folder(tmp_path))


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"[]",
        b'{"lora_alpha": 8',
        b'{"lora_alpha": null}',
        b'{"lora_alpha": 1%s}' % (b"0" * 400),
        b"[" * 100_000,
        b"\xff",
        b'{"lora_alpha": 8, "alpha_pattern": {"to_q": "x"}}',
        b'{"lora_alpha": 8, "alpha_pattern": {"to_q": null}}',
        b'{"lora_alpha": 8, "alpha_pattern": {"(": 4}}',
        b'{"lora_alpha": 8, "alpha_pattern": ["to_q"]}',
    ],
)
def test_a_damaged_configuration_of_peft_is_named(tmp_path, config):
    folder = peft_folder(tmp_path)
    (folder / "adapter_config.json").write_bytes(config)
    with pytest.raises(UserError, match=r"cannot read .*adapter_config\.json"):
        read_lora(folder)


def test_factors_of_eight_bits_are_read(tmp_path):
    down, up = (torch.randn(s).to(torch.float8_e4m3fn) for s in ((2, 3), (4, 2)))
    save_file(pair("blocks.0.ffn.0", down, up), tmp_path / "a.safetensors")
    expected = up.double() @ down.double()
    assert torch.equal(read_lora(tmp_path / "a.safetensors").merged_delta("blocks.0.ffn.net.0.proj"), expected)


def test_a_dora_is_refused(tmp_path):
    with pytest.raises(UserError, match="DoRA"):
        read_lora(peft_folder(tmp_path, lora_alpha=8, use_dora=True))


def pair(module, down, up):
    return {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}


GOOD = pair("blocks.0.ffn.0", torch.ones(2, 3), torch.ones(4, 2))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 3)}, "lacks one of its two factors"),
        ({"some.weight": torch.ones(2)}, "holds `some.weight`"),
        ({"blocks.0.attn1.to_q.alpha": torch.tensor(1.0)}, "lacks one"),
        (pair("blocks.0.ffn.0", torch.ones(2, 3), torch.ones(4, 3)), "do not fit"),
        (pair("blocks.0.ffn.0", torch.ones(2, 3, 1, 1), torch.ones(4, 2, 1, 1)), "only linear layers"),
        (pair("blocks.0.ffn.0", torch.tensor(1.0), torch.tensor(1.0)), "no LoRA for Wan that is understood"),
        (pair("blocks.0.ffn.0", torch.ones(0, 3), torch.ones(4, 0)), "do not fit"),
        (pair("blocks.0.ffn.0", torch.ones(2, 3, dtype=torch.int8), torch.ones(4, 2)), "numbers of type torch.int8"),
        (pair("blocks.0.ffn.0", torch.full((2, 3), float("nan")), torch.ones(4, 2)), "not finite"),
        (
            pair("blocks.0.ffn.0", torch.full((2, 3), float("nan")).to(torch.float8_e4m3fn), torch.ones(4, 2)),
            "not finite",
        ),
        (GOOD | {"blocks.0.ffn.0.alpha": torch.tensor(float("inf"))}, "not finite"),
        (GOOD | {"blocks.0.ffn.0.alpha": torch.tensor(1j)}, r"holds `blocks.*alpha`"),
        (
            GOOD | pair("diffusion_model.blocks.0.ffn.net.0.proj", torch.ones(2, 3), torch.ones(4, 2)),
            r"ffn\.net\.0\.proj twice",
        ),
        (pair("double_blocks.0.img_attn.qkv", torch.ones(2, 3), torch.ones(4, 2)), "no LoRA for Wan: .*double_blocks"),
        (pair("blocks.0.self_attn2.q", torch.ones(2, 3), torch.ones(4, 2)), "no LoRA for Wan: .*self_attn2"),
        ({}, "holds no factors"),
    ],
)
def test_a_foreign_or_broken_file_is_refused_with_the_reason(tmp_path, tensors, reason):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=reason):
        read_lora(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 100, b"PK\x03\x04 a pickle"])
def test_a_file_that_is_no_safetensors_is_named(tmp_path, content):
    path = tmp_path / "mine.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.safetensors"):
        read_lora(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes((GOLDEN / "comfy_native.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot read the LoRA"):
        read_lora(path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no LoRA in the folder"):
        read_lora(tmp_path)


@pytest.mark.parametrize("write", [write_native, write_peft])
def test_writing_again_replaces_and_leaves_nothing_aside(tmp_path, write):
    first = read_lora(GOLDEN / "peft")
    second = LoRA({n: (a + 1, b) for n, (a, b) in first.modules.items()}, first.alpha)
    for lora in (first, second):
        write(lora, tmp_path / "out")
    assert_equal(read_lora(tmp_path / "out"), second)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("write", ["write_native", "write_peft"])
def test_a_disk_that_is_full_keeps_the_older_file(tmp_path, write, repository):
    lora = read_lora(GOLDEN / "peft")
    {"write_native": write_native, "write_peft": write_peft}[write](lora, tmp_path / "out")
    script = f"""
import resource
from trainers.errors import UserError
from trainers.lora.formats import read_lora, {write}
lora = read_lora({str(GOLDEN / "peft")!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    {write}(lora, {str(tmp_path / "out")!r})
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=repository, capture_output=True, text=True, timeout=120, check=False
    )
    assert "nothing was replaced" in done.stdout, done.stderr
    assert_equal(read_lora(tmp_path / "out"), lora)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("write", [write_native, write_peft])
def test_what_is_no_lora_is_not_replaced(tmp_path, write):
    (tmp_path / "mine" / "of").mkdir(parents=True)
    (tmp_path / "mine" / "of" / "value").write_text("x")
    with pytest.raises(UserError, match="mine"):
        write(read_lora(GOLDEN / "peft"), tmp_path / "mine")
    assert (tmp_path / "mine" / "of" / "value").read_text() == "x"


@pytest.mark.parametrize("write", [write_native, write_peft])
@pytest.mark.parametrize("place", ["file/a", "n" * 250])
def test_a_place_that_cannot_be_is_named(tmp_path, write, place):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write the LoRA"):
        write(read_lora(GOLDEN / "peft"), tmp_path / place)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
