"""Small random policies of the real classes: VACE and Phantom in turn, unless a module overrides `kind`."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import comfy_host
from trainers.lora.names import to_original
from trainers.policies.base import Guidance, VideoSize
from trainers.policies.phantom import PhantomPolicy
from trainers.policies.vace import VacePolicy
from trainers.prompts import PromptItem

TEXT_LEN = 12
POLICIES = {"vace": VacePolicy, "phantom": PhantomPolicy}
TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 3,
    "rope_max_seq_len": 64,
}


def original_weights(transformer, prefix=""):
    """The weights by the original's names."""
    return {prefix + to_original(name): value.contiguous() for name, value in transformer.state_dict().items()}


def original_file(transformer, path, prefix="", metadata=None):
    save_file(original_weights(transformer, prefix), path, metadata=metadata)
    return path


def same_weights(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


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


def make_transformer(kind):
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    if kind == "phantom":
        return WanTransformer3DModel(**TRANSFORMER)
    return WanVACETransformer3DModel(**TRANSFORMER, vace_layers=[0, 2], vace_in_channels=96)


def make_parts(kind, seed=0):
    from diffusers import AutoencoderKLWan
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = make_transformer(kind)
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


@pytest.fixture(params=["vace", "phantom"])
def kind(request):
    return request.param


@pytest.fixture
def parts(kind):
    return (*make_parts(kind), make_tokenizer())


@pytest.fixture
def make_policy(kind, parts):
    """Makes a policy of the same parts whose caches are empty."""
    return lambda: POLICIES[kind](*parts, text_len=TEXT_LEN)


@pytest.fixture
def policy(make_policy):
    return make_policy()


@pytest.fixture
def guidance(kind):
    """Guidance with every branch of the kind."""
    return Guidance(4.5) if kind == "vace" else Guidance(4.5, 3.0)


@pytest.fixture
def noise_for(policy, size):
    def make(conditions, seed=0):
        generator = torch.Generator().manual_seed(seed)
        shape = policy.latent_shape(size, conditions[0].references)
        return torch.stack([torch.randn(shape, generator=generator) for _ in conditions])

    return make


@pytest.fixture
def count_calls():
    """Makes a list that gets the batch size of every call of a module."""

    def watch(module):
        calls = []
        module.register_forward_hook(
            lambda _, args, kwargs, __: calls.append(len([*args, *kwargs.values()][0])), with_kwargs=True
        )
        return calls

    return watch


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


@pytest.fixture
def run_core():
    """Runs a script of this folder, given ComfyUI's folder and more arguments, with ComfyUI's interpreter."""
    found = comfy_host.find()
    if isinstance(found, str):
        pytest.skip(found)
    comfyui, python = found

    def run(script, *arguments):
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [python, Path(__file__).with_name(script), comfyui, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    return run
