"""TinyWorld's models: the classes of the real ones with small configurations."""

from __future__ import annotations

FRAMES, HEIGHT, WIDTH, FPS = 9, 48, 80, 10.0
PORTRAIT = 84
TEXT_LENGTH = 52

VAE = {
    "base_dim": 12,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
TEXT = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 16,
    "dropout_rate": 0.0,
}
VACE = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 64,
    "freq_dim": 64,
    "ffn_dim": 384,
    "num_layers": 5,
    "vace_layers": [0, 2],
    "vace_in_channels": 96,
    "cross_attn_norm": True,
    "rope_max_seq_len": 64,
}
PHANTOM = {name: value for name, value in VACE.items() if not name.startswith("vace_")}


def build_vae(mean: list[float] | None = None, std: list[float] | None = None):
    """Wan's VAE with random weights; `mean` and `std` of each latent channel (default 0 and 1)."""
    from diffusers import AutoencoderKLWan

    statistics = {"latents_mean": mean or [0.0] * VAE["z_dim"], "latents_std": std or [1.0] * VAE["z_dim"]}
    return AutoencoderKLWan(**VAE, **statistics)


def build_text_encoder(vocabulary: int):
    """UMT5's encoder with random weights for a vocabulary of this size."""
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(vocab_size=vocabulary, pad_token_id=0, eos_token_id=1, **TEXT))


def build_vace():
    """VACE's transformer with random weights."""
    from diffusers import WanVACETransformer3DModel

    return WanVACETransformer3DModel(**VACE)


def build_phantom():
    """Phantom's transformer with random weights."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(**PHANTOM)


def build_tokenizer(sentences: list[str]):
    """A word-level tokenizer whose vocabulary is every word of the sentences; ids: 0 pad, 1 end, 2 unknown."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    words = sorted({word for s in sentences for word, _ in splitter.pre_tokenize_str(s.lower())})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TEXT_LENGTH
    )
