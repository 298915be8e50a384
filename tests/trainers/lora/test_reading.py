import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainers.errors import UserError
from trainers.lora.formats import read_lora, read_lora_header

GOLDEN = Path(__file__).parents[2] / "golden" / "lora"


def pair(module, down, up, names=("lora_A", "lora_B")):
    return {f"{module}.{names[0]}.weight": down, f"{module}.{names[1]}.weight": up}


GOOD = pair("blocks.0.ffn.0", torch.ones(2, 3), torch.ones(4, 2))
NAMES = [
    ("lora_A", "lora_B"),
    ("lora_down", "lora_up"),
    ("lora_A.default", "lora_B.default"),
    ("lora_A.default_0", "lora_B.default_0"),
]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model.", "transformer.", ""])
@pytest.mark.parametrize("module", ["blocks.3.cross_attn.o", "blocks.3.attn2.to_out.0"])
def test_spellings_of_one_adapter_read_the_same(tmp_path, names, prefix, module):
    down, up = torch.randn(2, 5), torch.randn(4, 2)
    save_file(pair(prefix + module, down, up, names), tmp_path / "a.safetensors")
    found = read_lora(tmp_path / "a.safetensors")
    assert list(found.modules) == ["blocks.3.attn2.to_out.0"]
    assert torch.equal(found.modules["blocks.3.attn2.to_out.0"][0], down)
    assert torch.equal(found.modules["blocks.3.attn2.to_out.0"][1], up)
    assert found.scale("blocks.3.attn2.to_out.0") == 1.0


@pytest.mark.parametrize(
    ("spelling", "module"),
    [
        ("lora_unet_blocks_0_self_attn_q", "blocks.0.attn1.to_q"),
        ("lora_unet_blocks_39_cross_attn_o", "blocks.39.attn2.to_out.0"),
        ("lora_unet_vace_blocks_7_ffn_2", "vace_blocks.7.ffn.net.2"),
        ("lora_unet_vace_blocks_0_before_proj", "vace_blocks.0.proj_in"),
        ("lora_unet_text_embedding_0", "condition_embedder.text_embedder.linear_1"),
        ("lora_unet_head_head", "proj_out"),
        ("lora_unet_blocks_10.cross_attn.k", "blocks.10.attn2.to_k"),
        ("lora_unet__blocks_0_cross_attn_k", "blocks.0.attn2.to_k"),
        ("lora_unet_blocks_0_attn1_to_out_0", "blocks.0.attn1.to_out.0"),
        ("pipe.dit.blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
        ("pipe.vace.vace_blocks.0.ffn.0", "vace_blocks.0.ffn.net.0.proj"),
        ("_orig_mod.blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
        ("module.blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
        ("diffusion_model._orig_mod.blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
        ("diffusion_model.blocks.0._orig_mod.self_attn.q", "blocks.0.attn1.to_q"),
        ("module._orig_mod.blocks.0.module.attn1.to_q", "blocks.0.attn1.to_q"),
        ("lora_unet_blocks_0__orig_mod_self_attn_q", "blocks.0.attn1.to_q"),
        ("lora_unet__orig_mod_blocks_0_self_attn_q", "blocks.0.attn1.to_q"),
        ("transformer.vace_blocks.0.proj_out", "vace_blocks.0.proj_out"),
        ("model.blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
        ("unet.blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
        ("net.blocks.0.ffn.0", "blocks.0.ffn.net.0.proj"),
        ("lora_unet__vace_blocks_0_self_attn_q", "vace_blocks.0.attn1.to_q"),
        ("blocks.0._checkpoint_wrapped_module.self_attn.q", "blocks.0.attn1.to_q"),
    ],
)
def test_the_names_of_other_trainers_are_read_with_their_alpha(tmp_path, spelling, module):
    tensors = pair(spelling, torch.ones(4, 8), torch.ones(8, 4), ("lora_down", "lora_up"))
    save_file(tensors | {f"{spelling}.alpha": torch.tensor(2.0)}, tmp_path / "a.safetensors")
    found = read_lora(tmp_path / "a.safetensors")
    assert list(found.modules) == [module]
    assert found.scale(module) == 0.5


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("diffusion_model.blocks.0.self_attn.q.lokr_w1", "a LoKr"),
        ("lora_unet_blocks_0_self_attn_q.hada_w1_a", "a LoHa"),
        ("diffusion_model.blocks.0.self_attn.q.dora_scale", "a DoRA"),
        ("base_model.model.blocks.0.attn1.to_q.lora_magnitude_vector.weight", "a DoRA"),
        ("diffusion_model.blocks.0.self_attn.q.vera_lambda_b", "a VeRA"),
        ("diffusion_model.blocks.0.self_attn.q.boft_R", "a BOFT"),
        ("lora_unet_blocks_0_self_attn_q.oft_blocks", "an OFT"),
        ("lora_unet_blocks_0_self_attn_q.a1.weight", "a GLoRA"),
        ("lora_unet_blocks_0_norm3.w_norm", "norms of LyCORIS"),
        ("diffusion_model.blocks.0.self_attn.q.set_weight", "replaces weights"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "changes the text encoder too"),
        ("lora_te1_encoder_block_0_layer_0_SelfAttention_q.alpha", "changes the text encoder too"),
        ("text_encoder.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight", "changes the text encoder too"),
        ("transformer.blocks.0.attn1.to_q.lora_B.bias", "biases"),
    ],
)
def test_another_kind_of_adapter_is_refused_by_its_name(tmp_path, key, kind):
    save_file(GOOD | {key: torch.ones(4, 4)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=kind) as refusal:
        read_lora(tmp_path / "a.safetensors")
    assert key.split(".lora_")[0] in str(refusal.value)


def test_factors_of_two_adapters_in_one_file_are_refused(tmp_path):
    tensors = {}
    for name in ("default_0", "default_1"):
        tensors |= pair("blocks.0.ffn.0", torch.ones(2, 3), torch.ones(4, 2), (f"lora_A.{name}", f"lora_B.{name}"))
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"changes blocks\.0\.ffn\.net\.0\.proj twice"):
        read_lora(tmp_path / "a.safetensors")


def test_one_module_under_two_names_has_to_have_the_same_factors(tmp_path):
    """PEFT folders that this pack writes hold every factor twice."""
    down, up = torch.randn(2, 3), torch.randn(4, 2)
    twice = pair("base_model.model.blocks.0.ffn.net.0.proj", down, up)
    twice |= pair("transformer.blocks.0.ffn.net.0.proj", down.clone(), up.clone())
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 2}')
    save_file(twice, tmp_path / "adapter_model.safetensors")
    assert torch.equal(read_lora(tmp_path).modules["blocks.0.ffn.net.0.proj"][0], down)
    twice["transformer.blocks.0.ffn.net.0.proj.lora_B.weight"][0, 0] += 1
    save_file(twice, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"holds transformer\.blocks.*lora_B.* and base_model\.model.*, which differ"):
        read_lora(tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        "diffusion_model.img_emb.proj.1.lora_A.weight",
        "lora_unet_img_emb_proj_1.lora_down.weight",
        "lora_unet__blocks_0_cross_attn_k_img.lora_down.weight",
        "diffusion_model.blocks.0.cross_attn.v_img.diff_b",
        "transformer.condition_embedder.image_embedder.ff.net.0.proj.lora_A.weight",
        "transformer.blocks.0.attn2.add_k_proj.lora_A.weight",
        "diffusion_model.blocks.0.diff_m",
    ],
)
def test_image_inputs_are_left_out_with_a_warning(tmp_path, caplog, key):
    save_file(GOOD | {key: torch.ones(4, 4)}, tmp_path / "a.safetensors")
    assert list(read_lora(tmp_path / "a.safetensors").modules) == ["blocks.0.ffn.net.0.proj"]
    (record,) = caplog.records
    assert key in record.getMessage() and "1 of its tensors have no effect" in record.getMessage()


DIFFERENCES = {
    "diffusion_model.blocks.0.self_attn.q.diff_b": "blocks.0.attn1.to_q.bias",
    "diffusion_model.blocks.0.self_attn.norm_q.diff": "blocks.0.attn1.norm_q.weight",
    "diffusion_model.blocks.0.norm3.diff": "blocks.0.norm2.weight",
    "diffusion_model.blocks.0.modulation.diff": "blocks.0.scale_shift_table",
    "lora_unet_blocks_0_ffn_2.diff_b": "blocks.0.ffn.net.2.bias",
    "diffusion_model.patch_embedding.diff": "patch_embedding.weight",
    "diffusion_model.head.head.diff_b": "proj_out.bias",
    "diffusion_model.text_embedding.0.diff": "condition_embedder.text_embedder.linear_1.weight",
}


@pytest.mark.parametrize("key", DIFFERENCES)
def test_a_full_difference_has_the_name_of_its_parameter(tmp_path, key):
    save_file(GOOD | {key: torch.arange(4.0)}, tmp_path / "a.safetensors")
    found = read_lora(tmp_path / "a.safetensors")
    assert found.differences.keys() == {DIFFERENCES[key]}
    assert torch.equal(found.differences[DIFFERENCES[key]], torch.arange(4.0))


def test_a_file_of_differences_alone_is_read(tmp_path):
    save_file({key: torch.arange(4.0) for key in DIFFERENCES}, tmp_path / "a.safetensors")
    found = read_lora(tmp_path / "a.safetensors")
    assert not found.modules and len(found.differences) == len(DIFFERENCES)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("blocks.0.ffn.0.diff", torch.ones(4, 3), "by factors and by a full difference"),
        ("blocks.0.ffn.2.diff_b", torch.full((4,), float("nan")), "not finite in blocks.0.ffn.net.2.bias"),
        ("blocks.0.no_such.diff", torch.ones(4), "changes `blocks.0.no_such`, which a Wan model does not have"),
    ],
)
def test_a_difference_that_cannot_be_used_is_refused(tmp_path, key, value, reason):
    save_file(GOOD | {key: value}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=reason):
        read_lora(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        (
            {"patch_embedding.weight": torch.ones(8, 16, 1, 2, 2), "head.head.weight": torch.ones(64, 8)},
            "is Phantom or",
        ),
        ({"encoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2)}, "is a UMT5 text encoder, not a LoRA"),
        ({"decoder.conv_in.weight": torch.ones(2, 2, 3, 3)}, "is a VAE of images, not a LoRA"),
    ],
)
def test_a_model_is_named_where_a_lora_is_wanted(tmp_path, tensors, what):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=what):
        read_lora_header(tmp_path / "a.safetensors")


# --- alpha ------------------------------------------------------------------------------------------------------------

Q = "blocks.0.attn1.to_q"
FACTORS = (torch.ones(4, 3), torch.ones(2, 4))
FORMS = {
    "diffusers": f"transformer.{Q}",
    "native": "diffusion_model.blocks.0.self_attn.q",
    "peft": f"base_model.model.{Q}",
}


def write(tmp_path, form, header=None, config=None, alpha=None, name="adapter_model.safetensors"):
    """A LoRA of one module of rank 4 in the folder; what it says of alpha is in the header, the config or a tensor."""
    tensors = pair(FORMS[form], *FACTORS)
    if alpha is not None:
        tensors[f"{FORMS[form]}.alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / name, metadata=header)
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path


def diffusers_header(prefix="transformer.", **config):
    return {"lora_adapter_metadata": json.dumps({prefix + name: value for name, value in config.items()})}


@pytest.mark.parametrize("form", ["diffusers", "native", "peft"])
@pytest.mark.parametrize(
    ("header", "scale"),
    [
        (diffusers_header(r=4, lora_alpha=16), 4.0),
        (diffusers_header("", r=4, lora_alpha=16), 4.0),
        (diffusers_header(r=4, lora_alpha=16, use_rslora=True), 8.0),
        (diffusers_header(r=4, lora_alpha=16, alpha_pattern={"attn1.to_q": 2}), 0.5),
        (diffusers_header(r=4, lora_alpha=16, alpha_pattern={"to_k": 2, "q": 3, "^attn1.to_q": 5}), 4.0),
        (diffusers_header(r=4, lora_alpha=16, alpha_pattern={r"^blocks\.0\.attn1\.to_q": 2}), 0.5),
        (diffusers_header(r=8, lora_alpha=16, rank_pattern={"to_q": 4}), 4.0),
        ({"lora_adapter_metadata": json.dumps({"text_encoder.lora_alpha": 2, "transformer.lora_alpha": 16})}, 4.0),
        ({"lora_alpha": "16"}, 4.0),
        ({"transformer.r": "4", "transformer.lora_alpha": "16"}, 4.0),
        ({"alpha": "8"}, 2.0),
        ({"network_alpha": "8.0"}, 2.0),
        ({"lora_alpha": "16", "use_rslora": "True"}, 8.0),
        ({"lora_alpha": "16", "alpha_pattern": '{"to_q": 2}'}, 0.5),
    ],
)
def test_alpha_in_the_header_is_used_and_not_kept(tmp_path, form, header, scale):
    if form == "native" and '"q": 3' in str(header):
        scale = 0.75  # the name in the file, `self_attn.q`, ends in `q`
    found = read_lora(write(tmp_path, form, header | {"run": "x"}))
    assert found.scale(Q) == scale
    assert found.metadata == {"run": "x"}


def test_patterns_fit_the_names_that_they_fit_in_peft(tmp_path):
    from peft.utils.other import get_pattern_key

    modules = [
        "blocks.1.attn1.to_q",
        "blocks.11.attn1.to_q",
        "vace_blocks.1.attn1.to_q",
        "vace_blocks.1.proj_out",
        "proj_out",
    ]
    patterns = {"^proj_out": 2, "blocks.1.attn1.to_q": 3, "proj_out": 4, "attn1.to_q": 5, "to_q": 6}
    tensors = {}
    for module in modules:
        tensors |= pair(f"transformer.{module}", torch.ones(1, 3), torch.ones(2, 1))
    save_file(tensors, tmp_path / "a.safetensors", diffusers_header(r=1, lora_alpha=9, alpha_pattern=patterns))
    found = read_lora(tmp_path / "a.safetensors")
    assert found.alpha == {module: patterns[get_pattern_key(patterns, module)] for module in modules}


@pytest.mark.parametrize("form", ["diffusers", "native", "peft"])
@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q": 4}}, 1.0),
        ({"lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"lora_alpha": 8, "alpha_pattern": None, "rank_pattern": {}, "r": 4, "peft_type": "LORA"}, 2.0),
    ],
)
def test_adapter_config_beside_the_weights_decides_alpha(tmp_path, form, config, scale):
    if form == "native":
        config = json.loads(json.dumps(config).replace("to_q", "self_attn.q"))
    assert read_lora(write(tmp_path, form, config=config)).scale(Q) == scale


def test_adapter_config_does_not_decide_about_other_files_of_its_folder(tmp_path):
    write(tmp_path, "peft", config={"lora_alpha": 16})
    write(tmp_path, "native", name="other.safetensors")
    assert read_lora(tmp_path / "other.safetensors").scale(Q) == 1.0
    assert read_lora(tmp_path).scale(Q) == 4.0


@pytest.mark.parametrize("form", ["diffusers", "native", "peft"])
def test_alpha_tensors_override_header_and_config(tmp_path, form):
    write(tmp_path, form, {"lora_alpha": "16"}, {"lora_alpha": 32}, alpha=2.0)
    assert read_lora(tmp_path).scale(Q) == 0.5


def test_places_that_contradict_each_other_are_refused(tmp_path):
    write(tmp_path, "diffusers", {"lora_alpha": "16"}, {"lora_alpha": 32})
    with pytest.raises(UserError, match=r"16 in .*lora_alpha.* but 32 in .*adapter_config\.json; remove"):
        read_lora(tmp_path)


def test_a_peft_file_without_its_configuration_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"adapter_config\.json.*beside the weights"):
        read_lora(write(tmp_path, "peft"))


DAMAGED = [
    "",
    "[]",
    '{"lora_alpha": 8',
    '{"lora_alpha": null}',
    '{"lora_alpha": true}',
    '{"lora_alpha": NaN}',
    '{"lora_alpha": Infinity}',
    '{"lora_alpha": 1e999}',
    '{"lora_alpha": 1%s}' % ("0" * 400),
    '{"lora_alpha": 8, "r": 0}',
    '{"lora_alpha": 8, "r": -4}',
    '{"lora_alpha": 8, "r": "four"}',
    '{"lora_alpha": 8, "rank_pattern": {"to_q": 0}}',
    '{"lora_alpha": 8, "use_rslora": "perhaps"}',
    '{"r": 4}',
    "[" * 100_000,
    '{"lora_alpha": 8, "alpha_pattern": %s}' % ('{"a":' * 100_000),
    '{"lora_alpha": 8, "alpha_pattern": {"to_q": "x"}}',
    '{"lora_alpha": 8, "alpha_pattern": {"to_q": null}}',
    '{"lora_alpha": 8, "alpha_pattern": {"to_q": NaN}}',
    '{"lora_alpha": 8, "alpha_pattern": {"(": 4}}',
    '{"lora_alpha": 8, "alpha_pattern": {"": 4}}',
    '{"lora_alpha": 8, "alpha_pattern": {"(to_q|to_k)": 4}}',
    '{"lora_alpha": 8, "alpha_pattern": {"([a-z0-9.]+)+Z": 4}}',
    '{"lora_alpha": 8, "alpha_pattern": ["to_q"]}',
    '{"lora_alpha": 8, "junk": "%s"}' % ("x" * 5_000_000),
]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_configuration_is_named_quickly(tmp_path, text):
    write(tmp_path, "peft")
    (tmp_path / "adapter_config.json").write_text(text)
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"cannot read .*adapter_config\.json"):
        read_lora(tmp_path)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("text", DAMAGED[:-1], ids=range(len(DAMAGED) - 1))
def test_a_damaged_header_is_named(tmp_path, text):
    write(tmp_path, "diffusers", {"lora_adapter_metadata": text})
    with pytest.raises(UserError, match=r"cannot read .*adapter_model\.safetensors"):
        read_lora(tmp_path)


@pytest.mark.parametrize("value", ["", "sixteen", "nan", "inf", "[" * 100_000, "1" + "0" * 400])
def test_an_alpha_in_the_header_that_is_no_number_is_refused(tmp_path, value):
    write(tmp_path, "native", {"lora_alpha": value})
    with pytest.raises(UserError, match="cannot read the LoRA's alpha"):
        read_lora(tmp_path)


def test_a_configuration_that_is_no_utf8_is_named(tmp_path):
    write(tmp_path, "peft")
    (tmp_path / "adapter_config.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"cannot read .*adapter_config\.json"):
        read_lora(tmp_path)


@pytest.mark.parametrize("config", [{"lora_alpha": 8, "use_dora": True}, {"lora_alpha": 8, "peft_type": "LOHA"}])
def test_the_configuration_of_another_kind_of_adapter_is_refused(tmp_path, config):
    with pytest.raises(UserError, match="describes a (DoRA|LOHA), which is not supported"):
        read_lora(write(tmp_path, "peft", config=config))


def test_many_patterns_are_matched_quickly(tmp_path):
    tensors = {}
    for layer in range(40):
        for part in ("q", "k", "v", "o"):
            tensors |= pair(f"blocks.{layer}.self_attn.{part}", torch.ones(1, 1), torch.ones(1, 1))
    patterns = {f"blocks.{n}.attn1.to_q": n for n in range(60_000)}
    save_file(tensors, tmp_path / "a.safetensors", diffusers_header(r=1, lora_alpha=9, alpha_pattern=patterns))
    start = time.perf_counter()
    assert read_lora(tmp_path / "a.safetensors").alpha["blocks.39.attn1.to_q"] == 39
    assert time.perf_counter() - start < 20  # seconds; one by one against each other they take minutes


# --- broken and foreign files -----------------------------------------------------------------------------------------


def test_factors_of_eight_bits_are_read(tmp_path):
    down, up = (torch.randn(s).to(torch.float8_e4m3fn) for s in ((2, 3), (4, 2)))
    save_file(pair("blocks.0.ffn.0", down, up), tmp_path / "a.safetensors")
    expected = up.double() @ down.double()
    assert torch.equal(read_lora(tmp_path / "a.safetensors").merged_delta("blocks.0.ffn.net.0.proj"), expected)


BROKEN_SHAPES = [
    ({"blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 3)}, "lacks one of its two factors"),
    ({"some.weight": torch.ones(2)}, "holds `some.weight`"),
    ({"blocks.0.attn1.to_q.alpha": torch.tensor(1.0)}, "lacks one"),
    (pair("blocks.0.ffn.0", torch.ones(2, 3), torch.ones(4, 3)), "do not fit"),
    (pair("blocks.0.ffn.0", torch.ones(2, 3, 1, 1), torch.ones(4, 2, 1, 1)), "only linear layers"),
    (pair("blocks.0.ffn.0", torch.tensor(1.0), torch.tensor(1.0)), "do not fit"),
    (pair("blocks.0.ffn.0", torch.ones(0, 3), torch.ones(4, 0)), "do not fit"),
    (pair("blocks.0.ffn.0", torch.ones(2, 0), torch.ones(4, 2)), "do not fit"),
    (GOOD | {"blocks.0.ffn.0.alpha": torch.tensor(float("inf"))}, "alpha of .* is inf"),
    (GOOD | {"blocks.0.ffn.0.alpha": torch.tensor(float("nan"))}, "alpha of .* is nan"),
    (GOOD | {"blocks.0.ffn.0.alpha": torch.tensor(1j)}, "alpha` of shape .* is not one number"),
    (GOOD | {"blocks.0.ffn.0.alpha": torch.ones(2)}, "alpha` of shape .* is not one number"),
    (
        GOOD | pair("diffusion_model.blocks.0.ffn.net.0.proj", torch.ones(2, 3), torch.ones(4, 2)),
        r"ffn\.net\.0\.proj twice",
    ),
    (pair("double_blocks.0.img_attn.qkv", torch.ones(2, 3), torch.ones(4, 2)), "no LoRA for Wan: .*double_blocks"),
    (pair("lora_unet_single_blocks_0_q", torch.ones(2, 3), torch.ones(4, 2)), "no LoRA for Wan: .*single_blocks"),
    (pair("blocks.0.self_attn2.q", torch.ones(2, 3), torch.ones(4, 2)), "no LoRA for Wan: .*self_attn2"),
    ({}, "holds no factors"),
]
BROKEN_VALUES = [
    (pair("blocks.0.ffn.0", torch.ones(2, 3, dtype=torch.int8), torch.ones(4, 2)), "numbers of type torch.int8"),
    (pair("blocks.0.ffn.0", torch.full((2, 3), float("nan")), torch.ones(4, 2)), "not finite"),
    (
        pair("blocks.0.ffn.0", torch.full((2, 3), float("nan")).to(torch.float8_e4m3fn), torch.ones(4, 2)),
        "not finite",
    ),
    (pair("blocks.0.ffn.0", torch.ones(2, 3), torch.full((4, 2), float("inf"))), "not finite"),
]


@pytest.mark.parametrize(("tensors", "reason"), BROKEN_SHAPES)
@pytest.mark.parametrize("read", [read_lora, read_lora_header])
def test_a_foreign_or_incomplete_file_is_refused_with_the_reason(tmp_path, tensors, reason, read):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=reason):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("tensors", "reason"), BROKEN_VALUES)
def test_values_that_are_no_numbers_are_refused(tmp_path, tensors, reason):
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


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"PK\x03\x04\0\0\x08\x08", "a pickled PyTorch file"),
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs", "a Git LFS pointer"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path, start, what):
    (tmp_path / "mine.safetensors").write_bytes(start + b" " * 100)
    with pytest.raises(UserError, match=rf"mine\.safetensors: it is {what}.*; give a \.safetensors file"):
        read_lora(tmp_path / "mine.safetensors")


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes((GOLDEN / "comfy_native.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot read the LoRA"):
        read_lora(path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no LoRA in the folder"):
        read_lora(tmp_path)


@pytest.mark.parametrize("name", ["a\0b.safetensors", "n" * 5000, "/dev/zero", "/dev/null"])
def test_a_path_that_is_no_regular_file_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot read the LoRA|not a regular file"):
        read_lora(tmp_path / name)


@pytest.mark.pipes
@pytest.mark.parametrize("name", ["a.safetensors", "adapter_model.safetensors", "adapter_config.json"])
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path, name):
    write(tmp_path, "peft", config={"lora_alpha": 8})
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="not a regular file|no LoRA in the folder"):
        read_lora(tmp_path / name if name == "a.safetensors" else tmp_path)


def write_by_hand(path, header, size=0):
    """A .safetensors file whose values, all zero, take no room on the disk."""
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)


def test_an_absurd_size_is_refused_and_nothing_is_read(tmp_path):
    columns = 1 << 21
    size = 4 * 4096 * columns
    header = {
        "blocks.0.ffn.0.lora_A.weight": {"dtype": "F32", "shape": [4096, columns], "data_offsets": [0, size]},
        "blocks.0.ffn.0.lora_B.weight": {"dtype": "F32", "shape": [columns, 4096], "data_offsets": [size, 2 * size]},
    }
    write_by_hand(tmp_path / "a.safetensors", header, 2 * size)
    with pytest.raises(UserError, match="69 GB, more than any LoRA"):
        read_lora(tmp_path / "a.safetensors")


def test_a_file_of_very_many_tensors_is_refused(tmp_path):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    write_by_hand(tmp_path / "a.safetensors", {f"blocks.0.k{n}": empty for n in range(50_001)})
    with pytest.raises(UserError, match="50001 tensors"):
        read_lora(tmp_path / "a.safetensors")
