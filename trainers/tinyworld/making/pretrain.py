"""How TinyWorld's committed video models were made; run it again with `python -m trainers.tinyworld.pretrain FOLDER`.

1. A VAE learns to compress rendered clips and portraits.
2. A VACE policy and its text encoder learn by flow matching to draw scenes from portraits and a prompt.
3. The policy is made imperfect on purpose: some more steps on scenes in which a share of the targets is swapped or blended
   (`IMPERFECTIONS`) or drifts into strangers (`LOSSES`), as pairs scraped from real footage are; and what these steps changed
   is exaggerated by a tenth (`EXAGGERATION`), because a small model shows such flaws too faintly. It still draws the right
   people in the right places most of the time and errs in the ways that real models err: reinforcement learning has
   something to mend.

With `--policy phantom` steps 2 and 3 make a Phantom transformer, which uses the committed VAE and VACE's text encoder as they are.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, autocast

from ...config import TINYWORLD_WEIGHTS
from ..models import (
    FRAMES,
    HEIGHT,
    PORTRAIT,
    TEXT_LENGTH,
    WIDTH,
    build_phantom,
    build_text_encoder,
    build_tokenizer,
    build_vace,
    build_vae,
)
from ..people import appearance
from ..render import Motion, render, render_portraits
from ..scenes import SceneBatch, prompt, sample_scenes
from .distort import distort, random_kinds

IMPERFECTIONS = {"swap": 0.1, "blend": 0.15}
LOSSES = 0.3
EXAGGERATION = 1.1


class Clock:
    """Progress of one phase: stops it after `steps` or `seconds`, whichever comes first, and says what it cost."""

    def __init__(self, name: str, steps: int, seconds: float):
        self.name, self.steps, self.seconds, self.start, self.losses = name, steps, seconds, time.time(), []

    def fraction(self, step: int) -> float:
        return max(step / self.steps, (time.time() - self.start) / self.seconds)

    def running(self, step: int) -> bool:
        return self.fraction(step) < 1

    def tell(self, step: int, loss: Tensor, every: int = 100) -> None:
        self.losses.append(loss.detach())
        if step % every == 0:
            mean = torch.stack(self.losses).mean().item()
            self.losses.clear()
            print(f"{self.name} step {step} loss {mean:.5f} {time.time() - self.start:.0f}s", flush=True)


def cosine(fraction: float, warmup: float = 0.02) -> float:
    """Learning-rate factor after `fraction` of the phase."""
    if fraction < warmup:
        return fraction / warmup + 0.01
    return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(fraction, 1.0))).item()) + 0.01


def imperfect(
    scenes: SceneBatch, shares: dict[str, float], generator: torch.Generator, losses: float = 0.0
) -> tuple[Tensor, Motion]:
    """Appearance and motion of scenes of which the given shares are distorted; a swap happens in the middle of the clip.

    In a share `losses` of the scenes everybody drifts into a stranger within the first third.
    """
    severity = 0.6 + 0.4 * torch.rand(len(scenes), generator=generator, device=generator.device)
    altered, moves = distort(scenes, random_kinds(len(scenes), shares, generator), severity, generator)
    strangers = appearance(sample_scenes(len(scenes), generator).people).unsqueeze(2)
    time = torch.linspace(0, 1, altered.shape[2], device=altered.device).view(1, 1, -1, 1)
    lost = (torch.rand(len(scenes), generator=generator, device=generator.device) < losses).float().view(-1, 1, 1, 1)
    return altered + (strangers - altered) * (3 * time).clamp(max=1) * lost, moves


def portraits_as_frames(people: Tensor, smooth: bool = False) -> Tensor:
    """Portraits [N, A] on the white canvas that a policy encodes: float [N, 3, 1, H, W] in [-1, 1].

    VACE shrinks them without antialias, Phantom smoothly (its Lanczos filter is nearly this one).
    """
    square = render_portraits(appearance(people), PORTRAIT)
    mode = {"mode": "bicubic", "antialias": True} if smooth else {"mode": "bilinear"}
    small = F.interpolate(square, size=(HEIGHT, HEIGHT), align_corners=False, **mode).clamp(-1, 1)
    side = (WIDTH - HEIGHT) // 2
    return F.pad(small, (side, side, 0, 0), value=1.0).unsqueeze(2)


def train_vae(
    steps: int,
    seconds: float,
    device: torch.device,
    clips: int = 12000,
    batch: int = 48,
    learning_rate: float = 2e-3,
    seed: int = 1,
):
    """Reconstruction of clips and portraits (L1, plus L1 of image gradients for edges) with a weak KL."""
    torch.manual_seed(seed)
    vae = build_vae().to(device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        scenes = [sample_scenes(200, generator) for _ in range(max(1, clips // 200))]
        films = torch.cat([(render(s, *_looks_and_moves(s, generator)) * 127).to(torch.int8) for s in scenes])
        faces = torch.cat([(portraits_as_frames(s.people[:, :2].flatten(0, 1)) * 127).to(torch.int8) for s in scenes])
    parameters = list(vae.parameters())
    rate = torch.tensor(learning_rate, device=device)
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4, fused=True, capturable=device.type == "cuda")

    def step_on(pictures: Tensor, count: int) -> Callable[[], Tensor]:
        def step() -> Tensor:
            clip = pictures[torch.randint(len(pictures), (count,), device=device)].float() / 127
            with autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
                posterior = vae.encode(clip).latent_dist
                latents = posterior.mean + torch.randn_like(posterior.mean) * torch.exp(0.5 * posterior.logvar)
                output = vae.decode(latents).sample.float()
            # People are small: what differs from the picture's brightest colour counts more.
            weight = 1 + 4 * (clip - clip.amax((2, 3, 4), keepdim=True)).abs().mean(1, keepdim=True).clamp(0, 1)
            loss = (weight * (output - clip).abs()).mean()
            for axis in (-1, -2):
                loss = loss + (output.diff(dim=axis) - clip.diff(dim=axis)).abs().mean()
            (loss + 1e-6 * posterior.kl().float().mean()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=False)
            return loss.detach()

        return step

    runners = [graphed(step_on(films, batch)), graphed(step_on(faces, 2 * batch))]
    clock, step = Clock("vae", steps, seconds), 0
    while clock.running(step):
        rate.fill_(learning_rate * cosine(clock.fraction(step)))
        loss = runners[step % 4 == 3]()
        step += 1
        if step % 20 == 1:
            clock.tell(step - 1, loss.clone(), every=400)
    return normalise_latents(vae, generator, device)


def _looks_and_moves(scenes: SceneBatch, generator: torch.Generator) -> tuple[Tensor, int, int, int, Motion]:
    """Arguments of `render` for scenes some of which blend or drift, so that the VAE knows such people."""
    altered, moves = imperfect(scenes, {"blend": 0.2, "drift": 0.2}, generator)
    return altered, FRAMES, HEIGHT, WIDTH, moves


@torch.no_grad()
def normalise_latents(vae, generator: torch.Generator, device: torch.device):
    """Write each channel's mean and spread over rendered clips into the config, as Wan's VAE has them."""
    clips = [vae.encode(render(sample_scenes(48, generator).to(device))).latent_dist.mode() for _ in range(8)]
    flat = torch.cat(clips).transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=flat.mean(1).tolist(), latents_std=flat.std(1).tolist())
    return vae


def statistics(vae, device: torch.device) -> tuple[Tensor, Tensor]:
    shape = (1, -1, 1, 1, 1)
    return (
        torch.tensor(vae.config.latents_mean, device=device).view(shape),
        torch.tensor(vae.config.latents_std, device=device).view(shape),
    )


class LatentScenes:
    """A fixed set of encoded scenes with `count` people: clean targets, imperfect targets, references and prompts."""

    @torch.no_grad()
    def __init__(
        self,
        vae,
        tokenizer,
        count: int,
        scenes: int,
        device: torch.device,
        seed: int,
        smooth: bool = False,
        batch: int = 250,
    ):
        mean, std = statistics(vae, device)
        generator = torch.Generator(device).manual_seed(seed)

        def encode(clip: Tensor) -> Tensor:
            with autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                latents = vae.encode(clip).latent_dist.mode().float()
            return ((latents - mean) / std).half()

        self.blank = encode(torch.zeros(1, 3, FRAMES, HEIGHT, WIDTH, device=device))[0].float()
        parts = []
        for _ in range(scenes // batch):
            drawn = sample_scenes(batch, generator, counts=(count,)).to(device)
            altered, moves = imperfect(drawn, IMPERFECTIONS, generator, LOSSES)
            people = portraits_as_frames(drawn.people[:, :count].flatten(0, 1), smooth)
            references = encode(people).unflatten(0, (batch, count))[:, :, :, 0].transpose(1, 2)
            told = drawn.to("cpu")
            texts = tokenizer(
                [prompt(told[i : i + 1]) for i in range(batch)],
                padding="max_length",
                max_length=TEXT_LENGTH,
                return_tensors="pt",
            ).input_ids.to(device)
            parts.append((encode(render(drawn)), encode(render(drawn, altered, moves=moves)), references, texts))
        self.clean, self.imperfect, self.references, self.texts = (torch.cat(p) for p in zip(*parts, strict=True))

    def control(self, references: Tensor) -> Tensor:
        """VACE's control of text-and-references-to-video: [B, 96, R+T, h, w] (golden/vace facts 1-5)."""
        b, _, r, h, w = references.shape
        clip = self.blank.repeat(2, 1, 1, 1).expand(b, -1, -1, -1, -1)
        latents = torch.cat([torch.cat([references, torch.zeros_like(references)], 1), clip], 2)
        mask = torch.cat([latents.new_zeros(b, 64, r, h, w), latents.new_ones(b, 64, clip.shape[2], h, w)], 2)
        return torch.cat([latents, mask], 1)


def vace_error(
    transformer, data: LatentScenes, clip: Tensor, references: Tensor, text: Tensor, sigma: Tensor
) -> Tensor:
    """References stand in front of the clip, are drawn with it, and are told by the control (golden/vace)."""
    target = torch.cat([references, clip], 2)
    noise = torch.randn_like(target)
    velocity = transformer(
        (1 - sigma) * target + sigma * noise,
        sigma.flatten() * 1000,
        text,
        control_hidden_states=data.control(references),
        return_dict=False,
    )[0]
    return F.mse_loss(velocity.float(), noise - target)


def phantom_error(
    transformer, _: LatentScenes, clip: Tensor, references: Tensor, text: Tensor, sigma: Tensor
) -> Tensor:
    """Clean references stand behind the clip, a tenth of them zeroed; only the clip is drawn (golden/phantom)."""
    kept = (torch.rand(len(clip), 1, 1, 1, 1, device=clip.device) >= 0.1).float()
    noise = torch.randn_like(clip)
    latents = torch.cat([(1 - sigma) * clip + sigma * noise, references * kept], 2)
    velocity = transformer(latents, sigma.flatten() * 1000, text, return_dict=False)[0]
    return F.mse_loss(velocity[:, :, : clip.shape[2]].float(), noise - clip)


ERRORS = {"vace": vace_error, "phantom": phantom_error}


def flow_loss(
    kind: str, transformer, text_encoder, data: LatentScenes, flawed: bool, batch: int, shift: float = 3.0
) -> Tensor:
    """Flow matching: x = (1 - s) x0 + s e, target e - x0, s drawn uniformly and shifted; a tenth of the texts is empty."""
    device = data.clean.device
    index = torch.randint(len(data.clean), (batch,), device=device)
    texts = data.texts[index]
    empty = torch.zeros_like(texts)
    empty[:, 0] = 1
    texts = torch.where(torch.rand(batch, 1, device=device) < 0.1, empty, texts)
    mask = (texts != 0).long()
    embedded = text_encoder(texts, attention_mask=mask).last_hidden_state * mask.unsqueeze(-1)
    u = torch.rand(batch, device=device)
    sigma = (shift * u / (1 + (shift - 1) * u)).view(-1, 1, 1, 1, 1)
    clip = (data.imperfect if flawed else data.clean)[index].float()
    return ERRORS[kind](transformer, data, clip, data.references[index].float(), embedded, sigma)


def graphed(step: Callable[[], Tensor], warmup: int = 3) -> Callable[[], Tensor]:
    """The step as one CUDA graph (these models are launch-bound); as it is on other devices."""
    if not torch.cuda.is_available():
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warmup):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def train_policy(
    kind: str,
    transformer,
    text_encoder,
    data: list[LatentScenes],
    flawed: bool,
    steps: int,
    seconds: float,
    learning_rate: float,
    batch: int,
    name: str,
    tick: Callable[[int], None] = lambda step: None,
) -> None:
    """Train in place; what remains in the models at the end is the exponential average of their weights."""
    device = data[0].clean.device
    parameters = [p for m in (transformer, text_encoder) for p in m.parameters() if p.requires_grad]
    rate = torch.tensor(learning_rate, device=device)
    optimiser = torch.optim.AdamW(
        parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True, capturable=device.type == "cuda"
    )
    average = [p.detach().clone() for p in parameters]

    def step_on(scenes: LatentScenes) -> Callable[[], Tensor]:
        def step() -> Tensor:
            with autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
                loss = flow_loss(kind, transformer, text_encoder, scenes, flawed, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=False)
            torch._foreach_lerp_(average, parameters, 0.002)
            return loss.detach()

        return step

    runners = [graphed(step_on(scenes)) for scenes in data]
    clock, step = Clock(name, steps, seconds), 0
    while clock.running(step):
        rate.fill_(learning_rate * cosine(clock.fraction(step)))
        loss = runners[1 if len(runners) > 1 and step % 3 == 2 else 0]()
        step += 1
        if step % 20 == 0:
            clock.tell(step, loss.clone(), every=500)
        tick(step)
    with torch.no_grad():
        torch._foreach_copy_(parameters, average)


def vocabulary_sentences(generator: torch.Generator, count: int = 6000) -> list[str]:
    scenes = sample_scenes(count, generator).to("cpu")
    return [prompt(scenes[i : i + 1]) for i in range(count)]


def save(folder: Path, **parts) -> None:
    """Write the parts of a policy as a diffusers folder, weights in half precision."""
    for name, part in parts.items():
        if hasattr(part, "half"):
            part = part.cpu().half()
        part.save_pretrained(folder / name)


def _load(folder: Path, device: torch.device) -> dict:
    """What a policy's transformer works with: `vae`, `text_encoder`, `tokenizer`."""
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
    (options.folder / kind / "made.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(made)


if __name__ == "__main__":
    main()
