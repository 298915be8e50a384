"""Training of TinyWorld's policies by flow matching."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, autocast

from .latent_scenes import LatentScenes
from .steps import Clock, cosine, graphed


def vace_error(
    transformer, data: LatentScenes, clip: Tensor, references: Tensor, text: Tensor, sigma: Tensor
) -> Tensor:
    """Error of VACE: references are before the clip on the time axis, are denoised with it, and are in the control.

    See tests/golden/vace.
    """
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
    """Error of Phantom: clean references, a tenth of them zeroed, are after the clip; only the clip is denoised.

    See tests/golden/phantom.
    """
    kept = (torch.rand(len(clip), 1, 1, 1, 1, device=clip.device) >= 0.1).float()
    noise = torch.randn_like(clip)
    latents = torch.cat([(1 - sigma) * clip + sigma * noise, references * kept], 2)
    velocity = transformer(latents, sigma.flatten() * 1000, text, return_dict=False)[0]
    return F.mse_loss(velocity[:, :, : clip.shape[2]].float(), noise - clip)


ERRORS = {"vace": vace_error, "phantom": phantom_error}


def flow_loss(
    kind: str, transformer, text_encoder, data: LatentScenes, flawed: bool, batch: int, shift: float = 3.0
) -> Tensor:
    """Flow matching: x = (1 - s) x0 + s e, target e - x0, s uniform and then shifted; a tenth of the texts is empty."""
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
    """Train in place; at the end the models hold the exponential average of their weights."""
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
            clock.log(step, loss.clone(), every=500)
        tick(step)
    with torch.no_grad():
        torch._foreach_copy_(parameters, average)
