"""Small files with the key names, types, shapes and headers of those that people have.

`transformer_weights` and `text_weights` give a model's weights by the names of one release, `scaled_fp8`, `int8` and
`write_gguf` quantise them as ComfyUI, ComfyUI-GGUF and llama.cpp do. Quantisers are simple, not good.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainers.lora.names import to_original

BLOCK = 256
"""Numbers in a block of the K quantisations: rows must be whole blocks."""
SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 128,
    "text_dim": 256,
    "freq_dim": 256,
    "ffn_dim": 512,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}
T5_SIZES = {"vocab_size": 40, "d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 2, "num_heads": 4}


def make_transformer(kind: str, **changes):
    """A small transformer of diffusers whose every weight is random."""
    import diffusers

    name = {"vace": "WanVACETransformer3DModel", "phantom": "WanTransformer3DModel"}[kind]
    control = {"vace_layers": [0, 1], "vace_in_channels": 96} if kind == "vace" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(diffusers, name)(**SIZES | control | changes)
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def make_text_encoder(kind: str = "UMT5", **changes):
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(
            **T5_SIZES | changes, feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1
        )
        return getattr(transformers, f"{kind}EncoderModel")(config).eval().requires_grad_(False)


def transformer_weights(model, naming: str = "original") -> dict[str, Tensor]:
    """By the names of `original` (ComfyUI's files), `diffusers`, `native` (a checkpoint of ComfyUI's own)."""
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    if naming == "diffusers":
        return state
    prefix = {"original": "", "native": "model.diffusion_model."}[naming]
    return {prefix + to_original(name): value for name, value in state.items()}


def text_weights(model) -> dict[str, Tensor]:
    """By transformers' names, as ComfyUI's `umt5_xxl_…` files."""
    return {n: t.detach().clone() for n, t in model.state_dict().items() if n != "encoder.embed_tokens.weight"}


_IN_BLOCK = re.compile(r"(blocks?|blk)\.\d+\.(?!.*(bias|rel_b))")


def matrices(weights: dict[str, Tensor]) -> list[str]:
    """The weights of linear layers in blocks, which quantised files have in few bits."""
    return [n for n, t in weights.items() if n.endswith(".weight") and t.ndim == 2 and _IN_BLOCK.search(n)]


def scaled_fp8(weights: dict[str, Tensor], spelling: str = "scale_weight", per_row: bool = False) -> dict[str, Tensor]:
    """The form of ComfyUI's `…_fp8_e4m3fn_scaled` files."""
    changed = dict(weights)
    for name in matrices(weights):
        absolute = weights[name].abs()
        scale = (absolute.amax(1, keepdim=True) if per_row else absolute.max()) / 448
        changed[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
        changed[f"{name.removesuffix('weight')}{spelling}"] = scale
    return changed | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}


def int8(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """ComfyUI's `int8_tensorwise`: whole numbers, a scale for each row, a note beside each matrix."""
    note = torch.tensor(list(json.dumps({"format": "int8_tensorwise"}).encode()), dtype=torch.uint8)
    changed = dict(weights)
    for name in matrices(weights):
        scale = weights[name].abs().amax(1, keepdim=True) / 127
        changed[name] = (weights[name] / scale).round().to(torch.int8)
        changed |= {
            name.replace(".weight", ".weight_scale"): scale,
            name.replace(".weight", ".comfy_quant"): note.clone(),
        }
    return changed


# --- GGUF ------------------------------------------------------------------------------------------------------------


def write_gguf(
    path: Path, weights: dict[str, Tensor], form: str, architecture: str = "wan", spiece: bytes = b"", model: str = "t5"
) -> Path:
    """A GGUF file whose matrices of blocks have the quantisation `form`, all else float32.

    `spiece`: a sentencepiece model, for the header; `model`: what the header calls it.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, architecture)
    if spiece:
        add_tokenizer(writer, spiece, model)
    few_bits = set(matrices(weights))
    for name, tensor in weights.items():
        values = tensor.float().numpy()
        if values.ndim > 4:  # GGUF has four dimensions
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(values.shape))
            values = values.reshape(len(values), -1)
        if name in few_bits and form != "F32":
            kind = GGMLQuantizationType[form]
            writer.add_tensor(name, pack(values, form), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer, spiece: bytes, name: str) -> None:
    """The header entries of llama.cpp's converter for a sentencepiece model."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_proto=spiece)
    size = range(model.get_piece_size())
    kinds = (
        2
        if model.is_unknown(i)
        else 3
        if model.is_control(i)
        else 5
        if model.is_unused(i)
        else 6
        if model.is_byte(i)
        else 1
        for i in size
    )
    writer.add_tokenizer_model(name)
    writer.add_token_list([model.id_to_piece(i) for i in size])
    writer.add_token_scores([model.get_score(i) for i in size])
    writer.add_token_types(list(kinds))
    writer.add_eos_token_id(model.eos_id())
    writer.add_unk_token_id(model.unk_id())
    writer.add_pad_token_id(model.pad_id())
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)


def llama_cpp(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A UMT5 encoder's weights by the names of llama.cpp's converter."""
    parts = {
        "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
        **{f"layer.0.SelfAttention.{part}": f"attn_{part}" for part in "qkvo"},
        "layer.0.layer_norm": "attn_norm",
        "layer.1.DenseReluDense.wi_0": "ffn_gate",
        "layer.1.DenseReluDense.wi_1": "ffn_up",
        "layer.1.DenseReluDense.wo": "ffn_down",
        "layer.1.layer_norm": "ffn_norm",
    }
    renamed = {}
    for name, tensor in weights.items():
        name = name.removesuffix(".weight")
        if name.startswith("encoder.block."):
            number, part = name.removeprefix("encoder.block.").split(".", 1)
            name = f"enc.blk.{number}.{parts[part]}"
        renamed[{"shared": "token_embd", "encoder.final_layer_norm": "enc.output_norm"}.get(name, name) + ".weight"] = (
            tensor
        )
    return renamed


def pack(values: np.ndarray, form: str) -> np.ndarray:
    """Rows of numbers in a quantisation of ggml, as bytes [rows, bytes] or float16."""
    import gguf

    if form in ("Q4_K", "Q5_K", "Q6_K"):
        blocks = values.astype(np.float64).reshape(-1, BLOCK)
        return {"Q6_K": _q6_k, "Q5_K": _q5_k, "Q4_K": _q4_k}[form](blocks).reshape(len(values), -1)
    return gguf.quants.quantize(values.astype(np.float32), gguf.GGMLQuantizationType[form])


def _half(values: np.ndarray) -> np.ndarray:
    return values.astype("<f2").view(np.uint8).reshape(len(values), 2)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    """16 groups of 16 numbers with 6 bits: d * scale * (q - 32)."""
    groups = blocks.reshape(-1, 16, 16)
    largest = np.abs(groups).max(2) / 31
    d = np.maximum(largest.max(1) / 127, 1e-7)
    scales = np.maximum(np.ceil(largest / d[:, None]), 1).clip(1, 127)
    q = (groups / (d[:, None] * scales)[..., None]).round().clip(-32, 31).astype(np.int64) + 32
    q = q.reshape(-1, 2, 4, 32)  # halves, quarters of them
    low = (q[:, :, :2] & 15) | ((q[:, :, 2:] & 15) << 4)
    high = sum((q[:, :, i] >> 4) << (2 * i) for i in range(4))
    flat = [part.reshape(len(q), -1).astype(np.uint8) for part in (low, high)]
    return np.concatenate([*flat, scales.astype(np.int8).view(np.uint8), _half(d)], 1)


def _with_minimum(blocks: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """8 groups of 32: d * scale * q - dmin * minimum. The numbers q [blocks, 8, 32], and the head of each block."""
    groups = blocks.reshape(-1, 8, 32)
    minimum = np.maximum(-groups.min(2), 0)
    step = (groups.max(2) + minimum) / (2**bits - 1)
    d, dmin = (np.maximum(part.max(1) / 63, 1e-7).astype(np.float16).astype(np.float64) for part in (step, minimum))
    scale, least = (np.ceil(p / e[:, None]).clip(0, 63).astype(np.int64) for p, e in ((step, d), (minimum, dmin)))
    size = np.maximum(d[:, None] * scale, 1e-12)[..., None]
    q = ((groups + (dmin[:, None] * least)[..., None]) / size).round().clip(0, 2**bits - 1).astype(np.int64)
    packed = np.concatenate(
        [
            scale[:, :4] | ((scale[:, 4:] >> 4) << 6),
            least[:, :4] | ((least[:, 4:] >> 4) << 6),
            (scale[:, 4:] & 15) | ((least[:, 4:] & 15) << 4),
        ],
        1,
    )
    return q, np.concatenate([_half(d), _half(dmin)], 1), packed.astype(np.uint8)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    q, head, packed = _with_minimum(blocks, 4)
    pairs = q.reshape(-1, 4, 2, 32)
    low = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(len(q), -1)
    return np.concatenate([head, packed, low.astype(np.uint8)], 1)


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    q, head, packed = _with_minimum(blocks, 5)
    pairs = (q & 15).reshape(-1, 4, 2, 32)
    low = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(len(q), -1)
    high = sum((q[:, group] >> 4) << group for group in range(8))
    return np.concatenate([head, packed, high.astype(np.uint8), low.astype(np.uint8)], 1)
