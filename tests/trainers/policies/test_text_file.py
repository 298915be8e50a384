"""The text encoder from a folder, from shards, and from the one file that ComfyUI users have."""

from __future__ import annotations

import io
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.errors import UserError
from trainers.policies.text_file import load_text_encoder
from trainers.policies.wan import WanText

from ..modelfiles.synthetic import llama_cpp, make_text_encoder, text_weights, write_gguf

TEXTS = ["two people wave", "a person walks", "waves", "a dog and two people walk by the sea and wave " * 9]
PADDED = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
TINY = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
# Core recognises the encoder by d_ff and num_layers.
DEEP = {"vocab_size": 40, "d_model": 8, "d_kv": 4, "d_ff": 10240, "num_layers": 24, "num_heads": 2}
Q = "encoder.block.1.layer.0.SelfAttention.q.weight"
BIAS = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
WANS_OWN = {
    "shared": "token_embedding",
    "encoder.final_layer_norm": "norm",
    "encoder.block.N.layer.0.layer_norm": "blocks.N.norm1",
    "encoder.block.N.layer.0.SelfAttention.q": "blocks.N.attn.q",
    "encoder.block.N.layer.0.SelfAttention.k": "blocks.N.attn.k",
    "encoder.block.N.layer.0.SelfAttention.v": "blocks.N.attn.v",
    "encoder.block.N.layer.0.SelfAttention.o": "blocks.N.attn.o",
    "encoder.block.N.layer.0.SelfAttention.relative_attention_bias": "blocks.N.pos_embedding.embedding",
    "encoder.block.N.layer.1.layer_norm": "blocks.N.norm2",
    "encoder.block.N.layer.1.DenseReluDense.wi_0": "blocks.N.ffn.gate.0",
    "encoder.block.N.layer.1.DenseReluDense.wi_1": "blocks.N.ffn.fc1",
    "encoder.block.N.layer.1.DenseReluDense.wo": "blocks.N.ffn.fc2",
}


@pytest.fixture(scope="module")
def spiece() -> bytes:
    sentencepiece = pytest.importorskip("sentencepiece", reason="a text encoder in one file needs sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=model,
        vocab_size=24,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def make_encoder(kind="UMT5", **sizes):
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(
            **sizes, feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1
        )
        return getattr(transformers, f"{kind}EncoderModel")(config).eval()


@pytest.fixture(scope="module")
def encoder():
    return make_encoder(**TINY)


@pytest.fixture(scope="module")
def tokenizer(spiece):
    """transformers' own tokenizer of the same sentencepiece model."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    given = SentencePieceProcessor(model_proto=spiece)
    pieces = [(given.id_to_piece(i), given.get_score(i)) for i in range(given.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


def weights_of(encoder) -> dict[str, torch.Tensor]:
    return {
        name: tensor.clone() for name, tensor in encoder.state_dict().items() if name != "encoder.embed_tokens.weight"
    }


def save(weights, spiece, path):
    """Write a file as ComfyUI has it: transformers' names, and the sentencepiece model as a tensor."""
    save_file({**weights, "spiece_model": torch.frombuffer(bytearray(spiece), dtype=torch.uint8)}, path)
    return path


def matrices(weights):
    return [name for name in weights if ("SelfAttention" in name or "Dense" in name) and "bias" not in name]


def scaled_fp8(weights):
    """The form of `umt5_xxl_fp8_e4m3fn_scaled`: a scale beside every matrix of 8 bits."""
    changed = dict(weights, scaled_fp8=torch.zeros(2, dtype=torch.float8_e4m3fn))
    for name in matrices(weights):
        scale = weights[name].abs().max() / 448
        changed |= {
            name: (weights[name] / scale).to(torch.float8_e4m3fn),
            name.replace(".weight", ".scale_weight"): scale,
        }
    return changed


def comfy_quant(weights):
    """ComfyUI's newer form: the format stands beside every matrix too."""
    form = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    changed = {
        n.replace(".scale_weight", ".weight_scale"): t for n, t in scaled_fp8(weights).items() if n != "scaled_fp8"
    }
    return changed | {name.replace(".weight", ".comfy_quant"): form.clone() for name in matrices(weights)}


def bare_fp8(weights):
    return weights | {name: weights[name].to(torch.float8_e4m3fn) for name in matrices(weights)}


def original(weights):
    """The weights by the names of Wan's own T5."""
    renamed = {}
    for name, tensor in weights.items():
        number = name.split(".")[2] if ".block." in name else "N"
        renamed[
            WANS_OWN[name.replace(f".block.{number}.", ".block.N.").removesuffix(".weight")].replace("N", number)
            + ".weight"
        ] = tensor
    return renamed


def same_embeddings(read, tokenizer, encoder) -> bool:
    ours, theirs = (WanText(model, tokenizer, 64).encode(TEXTS) for model in (read, encoder))
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_file_gives_the_embeddings_of_the_model_it_was_made_of(encoder, spiece, tmp_path):
    read, tokenizer = load_text_encoder(save(weights_of(encoder), spiece, tmp_path / "umt5.safetensors"), torch.float32)
    assert same_embeddings(read, tokenizer, encoder)


def test_a_prefix_and_other_tensors_are_ignored(encoder, spiece, tmp_path):
    weights = {f"umt5xxl.transformer.{name}": tensor for name, tensor in weights_of(encoder).items()}
    weights["umt5xxl.logit_scale"] = torch.tensor(4.6)
    read, tokenizer = load_text_encoder(save(weights, spiece, tmp_path / "umt5.safetensors"), torch.float32)
    assert same_embeddings(read, tokenizer, encoder)


@pytest.mark.parametrize("place", ["tokenizer", "google/umt5-xxl"])
def test_wans_own_naming_is_read_with_the_tokenizer_beside_it(encoder, tokenizer, tmp_path, place):
    save_file(original(weights_of(encoder)), tmp_path / "umt5-xxl-enc-bf16.safetensors")
    tokenizer.save_pretrained(tmp_path / place)
    read, found = load_text_encoder(tmp_path / "umt5-xxl-enc-bf16.safetensors", torch.float32)
    assert same_embeddings(read, found, encoder)


@pytest.mark.parametrize("form", [scaled_fp8, comfy_quant, bare_fp8])
def test_8_bit_weights_are_multiplied_by_their_scales(encoder, spiece, tmp_path, form):
    read, _ = load_text_encoder(save(form(weights_of(encoder)), spiece, tmp_path / "fp8.safetensors"), torch.float32)
    for name, tensor in weights_of(encoder).items():
        # Half a step of e4m3: a sixteenth, and 2^-10 of the scale near zero.
        step = 2**-10 * (1 if form is bare_fp8 else float(tensor.abs().max()) / 448)
        exact = name not in matrices([name])
        assert torch.allclose(
            read.state_dict()[name], tensor, atol=0 if exact else 1.01 * step, rtol=0 if exact else 1 / 16
        ), name


@pytest.mark.parametrize(("form", "rounding"), [("F32", 0), ("Q8_0", 1 / 240), ("Q6_K", 1 / 50), ("Q4_K", 1 / 12)])
def test_a_gguf_file_of_llama_cpp_gives_weights_and_ids(spiece, tokenizer, tmp_path, form, rounding):
    encoder = make_text_encoder()
    weights = llama_cpp(text_weights(encoder))
    path = write_gguf(tmp_path / "umt5.gguf", weights, form, "t5encoder", spiece)
    read, found = load_text_encoder(path, torch.float32)
    for name, expected in encoder.state_dict().items():
        error = (read.state_dict()[name] - expected).abs().max()
        assert error <= rounding * expected.abs().max(), name
    for text in [*TEXTS, "", "a dog, ü \u6771\u4eac"]:
        ours, theirs = found([text], max_length=24), tokenizer([text], max_length=24, **PADDED)
        assert torch.equal(ours.input_ids, theirs.input_ids), text
    if form == "F32":
        assert same_embeddings(read, found, encoder)


def test_a_gguf_file_with_another_tokenizer_is_refused(tmp_path, spiece):
    weights = llama_cpp(text_weights(make_text_encoder()))
    path = write_gguf(tmp_path / "t.gguf", weights, "F32", "t5encoder", spiece, model="llama")
    with pytest.raises(UserError, match="cannot read spiece_model of .*its tokenizer is `llama`, t5 was expected"):
        load_text_encoder(path, torch.float32)


def test_the_embedding_stays_one_tensor_after_a_move(encoder, spiece, tmp_path):
    read, _ = load_text_encoder(save(weights_of(encoder), spiece, tmp_path / "umt5.safetensors"), torch.float32)
    read.to(torch.bfloat16)
    assert read.shared.weight.data_ptr() == read.encoder.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_have_the_requested_dtype_and_are_frozen(encoder, spiece, tokenizer, tmp_path, dtype):
    encoder.save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for path in (save(weights_of(encoder), spiece, tmp_path / "umt5.safetensors"), tmp_path / "text_encoder"):
        model, _ = load_text_encoder(path, dtype)
        assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(dtype, False)} and not model.training


def test_ids_are_those_of_transformers(encoder, spiece, tokenizer, tmp_path):
    _, found = load_text_encoder(save(weights_of(encoder), spiece, tmp_path / "umt5.safetensors"), torch.float32)
    asked = {"padding": "max_length", "max_length": 24, "truncation": True, "return_tensors": "pt"}
    for text in [*TEXTS, "", "a dog, ü \u6771\u4eac"]:
        ours, theirs = found([text], **asked), tokenizer([text], **asked)
        assert torch.equal(ours.input_ids, theirs.input_ids) and torch.equal(
            ours.attention_mask, theirs.attention_mask
        ), text


def test_a_long_text_is_cut_and_keeps_its_end_token(encoder, spiece, tmp_path):
    _, found = load_text_encoder(save(weights_of(encoder), spiece, tmp_path / "umt5.safetensors"), torch.float32)
    assert found([TEXTS[3]], max_length=8).input_ids[0, -1] == 1


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("shared.weight", "no UMT5 text encoder"),
        (BIAS, "a T5 text encoder"),
        (Q, f"lacks {Q}"),
        ("spiece_model", "no tokenizer in it"),
    ],
)
def test_a_missing_tensor_is_named(encoder, spiece, tmp_path, lost, message):
    path = save(weights_of(encoder), spiece, tmp_path / "umt5.safetensors")
    save_file({n: t for n, t in load_file(path).items() if n != lost}, path)
    with pytest.raises(UserError, match=message):
        load_text_encoder(path, torch.float32)


@pytest.mark.parametrize(
    "packed",
    [
        {Q: torch.zeros(32, 16, dtype=torch.uint8), Q.replace(".weight", ".weight_scale"): torch.ones(32, 2)},
        {Q: torch.zeros(32, 32, dtype=torch.int8), Q.replace(".weight", ".weight_scale"): torch.ones(())},
        {Q: torch.zeros(32, 32).to(torch.float8_e4m3fn), Q.replace(".weight", ".weight_scale"): torch.ones(32, 2)},
    ],
    ids=["4 bits", "integers", "a scale per block"],
)
def test_other_quantisations_are_named(encoder, spiece, tmp_path, packed):
    path = save(weights_of(encoder) | packed, spiece, tmp_path / "umt5.safetensors")
    with pytest.raises(UserError, match="8-bit in a form that is not read: .*umt5_xxl_fp16"):
        load_text_encoder(path, torch.float32)


@pytest.mark.parametrize("columns", [3, 5])
def test_heads_that_cannot_share_the_channels_are_named(encoder, spiece, tmp_path, columns):
    changed = {n: torch.ones(32, columns) if n.endswith("bias.weight") else t for n, t in weights_of(encoder).items()}
    with pytest.raises(UserError, match=f"32 channels, which {columns} attention heads cannot share"):
        load_text_encoder(save(changed, spiece, tmp_path / "umt5.safetensors"), torch.float32)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_too_few_buckets_of_positions_are_named(encoder, spiece, tmp_path, rows):
    changed = {n: torch.ones(rows, 4) if n.endswith("bias.weight") else t for n, t in weights_of(encoder).items()}
    with pytest.raises(UserError, match=f"has {rows} buckets of relative positions"):
        load_text_encoder(save(changed, spiece, tmp_path / "umt5.safetensors"), torch.float32)


@pytest.mark.parametrize(("value", "damage"), [(float("inf"), "not finite"), (0.0, "only zeros")])
def test_damaged_weights_are_named(encoder, spiece, tmp_path, value, damage):
    changed = weights_of(encoder) | {Q: torch.full((32, 32), value)}
    with pytest.raises(UserError, match=f"umt5.safetensors is damaged: {Q} holds .*{damage}"):
        load_text_encoder(save(changed, spiece, tmp_path / "umt5.safetensors"), torch.float32)


def test_wrappers_inside_blocks_are_stripped(encoder, spiece, tmp_path):
    weights = {
        "module." + n.replace(".layer.0", "._checkpoint_wrapped_module.layer.0"): t
        for n, t in weights_of(encoder).items()
    }
    read, tokenizer = load_text_encoder(save(weights, spiece, tmp_path / "umt5.safetensors"), torch.float32)
    assert same_embeddings(read, tokenizer, encoder)


def test_a_weight_under_two_names_is_refused(encoder, spiece, tmp_path):
    weights = weights_of(encoder)
    path = save(weights | {f"module.{Q}": weights[Q].clone()}, spiece, tmp_path / "umt5.safetensors")
    with pytest.raises(UserError, match=f"holds {Q} twice, as .* and .*; give a file of one model"):
        load_text_encoder(path, torch.float32)


def test_the_pickled_file_of_the_original_release_is_read(encoder, tokenizer, tmp_path):
    torch.save(original(weights_of(encoder)), tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    tokenizer.save_pretrained(tmp_path / "google" / "umt5-xxl")
    read, found = load_text_encoder(tmp_path / "models_t5_umt5-xxl-enc-bf16.pth", torch.float32)
    assert same_embeddings(read, found, encoder)


@pytest.mark.parametrize("place", ["umt5.safetensors", "umt5"])
def test_a_truncated_text_encoder_is_named(encoder, spiece, tokenizer, tmp_path, place):
    save(weights_of(encoder), spiece, tmp_path / "umt5.safetensors")
    encoder.save_pretrained(tmp_path / "umt5")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    file = tmp_path / place if (tmp_path / place).is_file() else tmp_path / place / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"cannot read the text encoder .*{place}.*not fully covered"):
        load_text_encoder(tmp_path / place, torch.float32)


@pytest.fixture
def folder(encoder, tokenizer, tmp_path):
    encoder.save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "text_encoder"


def test_a_folder_gives_the_embeddings_that_transformers_gives(folder, encoder):
    assert same_embeddings(*load_text_encoder(folder, torch.float32), encoder)


def test_a_folder_in_shards_is_read(folder, encoder, tokenizer):
    (folder / "model.safetensors").unlink()
    encoder.save_pretrained(folder, max_shard_size="8KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    assert same_embeddings(*load_text_encoder(folder, torch.float32), encoder)
    shards[0].unlink()
    with pytest.raises(UserError, match=f"of which 1 are missing: {shards[0].name}"):
        load_text_encoder(folder, torch.float32)


def test_settings_that_shapes_do_not_show_come_from_the_configuration(folder):
    change_config(folder, relative_attention_max_distance=77, layer_norm_epsilon=1e-5)
    config = load_text_encoder(folder, torch.float32)[0].config
    assert (config.relative_attention_max_distance, config.layer_norm_epsilon) == (77, 1e-5)


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 1_000_000}, "num_layers is 1000000"),
        ({"num_layers": "2"}, "num_layers is '2'"),
        ({"num_layers": 3}, "num_layers 3, and the weights show 2"),
        ({"d_ff": [48]}, "d_ff is"),
        ({"num_heads": 2}, "num_heads 2, and the weights show 4"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj is 'gated-silu'"),
        ({"relative_attention_max_distance": 1}, "relative_attention_max_distance is 1"),
        ({"relative_attention_max_distance": 8}, "32 buckets of relative positions up to 8 tokens"),
        ({"layer_norm_epsilon": 1e10}, "layer_norm_epsilon is 10000000000.0"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan"),
    ],
)
def test_a_wrong_value_in_config_json_is_named(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(UserError, match=message):
        load_text_encoder(folder, torch.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_max_length": "many"},
        {"model_max_length": -3},
        {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}},
    ],
)
def test_a_broken_tokenizer_is_named_and_its_code_is_not_run(folder, changes):
    place = folder.parent / "tokenizer"
    (place / "own.py").write_text("raise SystemExit('code of the folder was run')")
    path = place / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match="cannot load the tokenizer from .*tokenizer"):
        load_text_encoder(folder, torch.float32)


def test_the_tokenizer_is_loaded_without_remote_code(folder, monkeypatch):
    from transformers import AutoTokenizer

    given, load = [], AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: given.append(k) or load(*a, **k))
    load_text_encoder(folder, torch.float32)
    assert [(k["trust_remote_code"], k["local_files_only"]) for k in given] == [(False, True)]


@pytest.mark.pipes
@pytest.mark.timeout(10)
def test_a_pipe_in_the_tokenizers_folder_is_refused(folder):
    os.mkfifo(folder.parent / "tokenizer" / "added_tokens.json")
    with pytest.raises(UserError, match=r"added_tokens\.json is not a regular file"):
        load_text_encoder(folder, torch.float32)


@pytest.mark.parametrize("content", [b"", b"\0", b"no sentencepiece model"])
def test_a_broken_tokenizer_in_the_file_is_named(encoder, tmp_path, content):
    path = tmp_path / "umt5.safetensors"
    save_file(weights_of(encoder) | {"spiece_model": torch.tensor(list(content), dtype=torch.uint8)}, path)
    with pytest.raises(UserError, match=r"the tokenizer in .*umt5\.safetensors \(spiece_model\) is broken"):
        load_text_encoder(path, torch.float32)


def test_a_folder_of_another_text_encoder_is_named(tokenizer, tmp_path):
    make_encoder("T5", **TINY).save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="is a T5 text encoder, and Wan uses UMT5"):
        load_text_encoder(tmp_path / "text_encoder", torch.float32)


def test_comfyuis_own_encoder_has_the_same_ids_and_embeddings(spiece, tmp_path, run_core):
    length, weights = 40, weights_of(make_encoder(**DEEP))
    forms = {"plain": dict, "scaled": scaled_fp8, "quant": comfy_quant}
    files = {name: save(form(weights), spiece, tmp_path / f"{name}.safetensors") for name, form in forms.items()}
    job = {
        "files": files,
        "texts": TEXTS[:2],
        "config": DEEP,
        "length": length,
        "found": tmp_path / "found.safetensors",
    }
    (tmp_path / "job.json").write_text(json.dumps(job, default=str))
    run_core("core_text.py", tmp_path / "job.json")
    theirs = load_file(job["found"])
    for name, path in files.items():
        model, tokenizer = load_text_encoder(path, torch.float32)
        for i, text in enumerate(TEXTS[:2]):
            embedding, expected = WanText(model, tokenizer, length).encode([text])[0], theirs[f"{name}.embeddings.{i}"]
            assert torch.equal(tokenizer([text], max_length=length).input_ids[0], theirs[f"{name}.ids.{i}"])
            assert (embedding - expected).norm() < 1e-4 * expected.norm()


def test_a_tokenizer_of_another_vocabulary_is_refused(encoder, spiece, tmp_path):
    weights = weights_of(encoder)
    path = save(
        weights | {"shared.weight": weights["shared.weight"][:20].clone()}, spiece, tmp_path / "umt5.safetensors"
    )
    with pytest.raises(UserError, match="tokenizer of .*umt5.safetensors has 24 tokens, and the text encoder 20"):
        load_text_encoder(path, torch.float32)
