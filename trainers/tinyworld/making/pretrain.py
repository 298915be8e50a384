"""Make TinyWorld's video models again: `python -m trainers.tinyworld.making.pretrain FOLDER`.

1. A VAE learns to compress rendered clips and portraits.
2. A VACE policy and its text encoder learn by flow matching to generate scenes from portraits and a prompt.
3. The policy is made imperfect on purpose, so that reinforcement learning has something to improve. It is trained
   further on scenes of which a share is swapped or blended (`IMPERFECTIONS`) or drifts into strangers (`LOSSES`),
   like pairs scraped from real footage. The change by these steps is exaggerated by a tenth (`EXAGGERATION`), because
   a small model shows such flaws too faintly. It still generates the right people in the right places most of the
   time, and errs as real models do.

With `--policy phantom` steps 2 and 3 make a Phantom transformer, which uses the committed VAE and text encoder of VACE.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from ...config import TINYWORLD_WEIGHTS
from ...files import write_atomic
from ..models import build_phantom, build_text_encoder, build_tokenizer, build_vace
from ..scenes import prompt, sample_scenes
from .latent_scenes import IMPERFECTIONS, LOSSES, LatentScenes
from .train_policy import ERRORS, train_policy
from .train_vae import train_vae

EXAGGERATION = 1.1


def vocabulary_sentences(generator: torch.Generator, count: int = 6000) -> list[str]:
    """Prompts of random scenes, enough to contain every word."""
    scenes = sample_scenes(count, generator).to("cpu")
    return [prompt(scenes[i : i + 1]) for i in range(count)]


def save(folder: Path, **parts) -> None:
    """Write the parts of a policy as a diffusers folder, weights in half precision."""
    for name, part in parts.items():
        if hasattr(part, "half"):
            part = part.cpu().half()
        part.save_pretrained(folder / name)


def _load(folder: Path, device: torch.device) -> dict:
    """The parts beside a policy's transformer: `vae`, `text_encoder`, `tokenizer`."""
    from diffusers import AutoencoderKLWan
    from transformers import AutoTokenizer, UMT5EncoderModel

    return {
        "vae": AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32).to(device),
        "text_encoder": UMT5EncoderModel.from_pretrained(folder / "text_encoder").float().to(device),
        "tokenizer": AutoTokenizer.from_pretrained(folder / "tokenizer"),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--policy", choices=tuple(ERRORS), default="vace")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--clean", type=Path, help="reuse the policy before step 3, and VACE's other parts, from this folder"
    )
    parser.add_argument(
        "--steps", type=int, nargs=3, default=[20000, 20000, 20000], metavar=("VAE", "CLEAN", "IMPERFECT")
    )
    parser.add_argument("--seconds", type=float, nargs=3, default=[185, 125, 60], metavar=("VAE", "CLEAN", "IMPERFECT"))
    parser.add_argument("--scenes", type=int, default=16000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    device, started = torch.device(options.device), time.time()
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(options.seed)
    kind = options.policy
    transformer = {"vace": build_vace, "phantom": build_phantom}[kind]().to(device)
    if options.clean:
        transformer = (
            type(transformer).from_pretrained(options.clean / "transformer", torch_dtype=torch.float32).to(device)
        )
    if kind == "phantom" or options.clean:
        parts = _load(TINYWORLD_WEIGHTS / "vace" if kind == "phantom" else options.clean, device)
    else:
        vae = train_vae(options.steps[0], options.seconds[0], device, seed=options.seed)
        tokenizer = build_tokenizer(vocabulary_sentences(torch.Generator(device).manual_seed(0)))
        parts = {"vae": vae, "text_encoder": build_text_encoder(len(tokenizer)).to(device), "tokenizer": tokenizer}
    own = {} if kind == "phantom" else parts
    vae, text_encoder, tokenizer = parts["vae"].eval().requires_grad_(False), parts["text_encoder"], parts["tokenizer"]
    text_encoder.requires_grad_(kind == "vace")
    data = [
        LatentScenes(vae, tokenizer, people, options.scenes, device, options.seed + 8 + people, kind == "phantom")
        for people in (2, 3)
    ]
    if not options.clean:
        train_policy(
            kind,
            transformer,
            text_encoder,
            data,
            False,
            options.steps[1],
            options.seconds[1],
            2e-3,
            options.batch,
            "clean",
        )
        save(options.folder / f"{kind}-clean", transformer=transformer, **own)
        transformer.to(device).float(), text_encoder.to(device).float(), vae.to(device).float()
    text_encoder.requires_grad_(False)
    clean = {name: value.clone() for name, value in transformer.state_dict().items()}
    train_policy(
        kind,
        transformer,
        text_encoder,
        data,
        True,
        options.steps[2],
        options.seconds[2],
        1e-3,
        options.batch,
        "imperfect",
    )
    with torch.no_grad():
        for name, value in transformer.state_dict().items():
            value.copy_(clean[name] + EXAGGERATION * (value - clean[name]))
    save(options.folder / kind, transformer=transformer, **own)
    made = {
        "policy": kind,
        "seed": options.seed,
        "steps": options.steps,
        "seconds": options.seconds,
        "scenes": options.scenes,
        "batch": options.batch,
        "imperfections": IMPERFECTIONS | {"everybody drifts": LOSSES},
        "exaggeration": EXAGGERATION,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "total_seconds": round(time.time() - started),
    }
    write_atomic(options.folder / kind / "made.json", json.dumps(made, indent=1) + "\n")
    print(made)


if __name__ == "__main__":
    main()
