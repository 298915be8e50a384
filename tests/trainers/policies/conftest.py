"""A VACE policy of the real classes, small and random."""

import numpy as np
import pytest
import torch

from trainers.policies.base import VideoSize
from trainers.policies.vace import VacePolicy
from trainers.prompts import PromptItem

TEXT_LEN = 12


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [
        "<pad>",
        "</s>",
        "<unk>",
        "a",
        "man",
        "and",
        "woman",
        "walk",
        "sit",
        "two",
        "people",
        "&",
        "at",
        "the",
        "table",
    ]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TEXT_LEN
    )


def make_parts(seed=0):
    from diffusers import AutoencoderKLWan, WanVACETransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = WanVACETransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            text_dim=16,
            freq_dim=32,
            ffn_dim=32,
            num_layers=3,
            vace_layers=[0, 2],
            vace_in_channels=96,
            rope_max_seq_len=64,
        )
        vae = AutoencoderKLWan(
            base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, temperal_downsample=[False, True, True]
        )
        text = UMT5EncoderModel(
            UMT5Config(
                vocab_size=16,
                d_model=16,
                d_kv=8,
                d_ff=16,
                num_layers=1,
                num_heads=2,
                dropout_rate=0.0,
                pad_token_id=0,
                eos_token_id=1,
            )
        )
        for parameter in transformer.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    return tuple(m.eval().requires_grad_(False) for m in (transformer, vae, text))


@pytest.fixture
def parts():
    return (*make_parts(), make_tokenizer())


@pytest.fixture
def policy(parts):
    return VacePolicy(*parts, text_len=TEXT_LEN)


@pytest.fixture
def size():
    return VideoSize(32, 48, 5)


@pytest.fixture
def make_item():
    def make(references=2, seed=0, prompt="a man and a woman walk", negative=""):
        rng = np.random.default_rng(seed)
        pictures = tuple(rng.integers(0, 256, (24 + 8 * i, 40, 3), dtype=np.uint8) for i in range(references))
        return PromptItem(f"item{seed}", prompt, pictures, negative)

    return make


@pytest.fixture
def pipelines():
    """diffusers' Wan pipelines; some diffusers versions cannot import them beside a newer transformers."""
    try:
        from diffusers import WanPipeline, WanVACEPipeline
    except RuntimeError as error:
        pytest.skip(f"this diffusers cannot import its own pipelines: {error}")
    return WanPipeline, WanVACEPipeline
