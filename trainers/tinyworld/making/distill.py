"""Distil a LoRA that samples TinyWorld in few steps: `python -m trainers.tinyworld.making.distill FILE`.

As the distilled LoRAs that people sample Wan with, it makes 4 steps do the work of more, and changes more than the
attention's factors: feed-forward layers, biases and norms.

At every step of its own schedule the student's velocity learns the teacher's mean velocity over that step, which the
base policy reaches in several finer steps from the same latents. The latents are those that the student itself comes
to, so that its errors do not add up.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import BUILT_IN_LORAS, make_config
from ...diffusion.noise import noise_generators, unit_noise
from ...diffusion.sampling import sample_latents
from ...diffusion.schedule import Schedule, flow_schedule
from ...grpo.evaluate import evaluation_guidance, evaluation_size
from ...lora.formats import LoRA, write_native
from ...lora.inject import load_lora_into, lora_parameters, to_lora
from ...policies.base import ConditionBatch, Conditions, buckets
from ...policies.load import load_policy
from ..prompts import tiny_prompt_set
from .steps import Clock, cosine

FACTORS = r"(?:vace_)?blocks\.\d+\.(?:attn[12]\.(?:to_q|to_k|to_v|to_out\.0)|ffn\.net\.(?:0\.proj|2))"
FULLY_TRAINED = r"(?:vace_)?blocks\.\d+\.(?:.*\.bias|.*norm.*\.weight)"
"""Parameters that get a full difference."""
MEASURED = 64  # held-out items


@dataclass(frozen=True)
class Student:
    """The policy with its new LoRA, and what its parameters were before."""

    policy: object
    before: dict[str, Tensor]
    full: dict[str, nn.Parameter]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*lora_parameters(self.policy.transformer).values(), *self.full.values()]

    def lora(self) -> LoRA:
        """What was learned, in half precision."""
        found = to_lora(self.policy.transformer)
        modules = {name: (down.half(), up.half()) for name, (down, up) in found.modules.items()}
        differences = {
            name: (parameter.detach().cpu() - self.before[name].cpu()).half() for name, parameter in self.full.items()
        }
        return LoRA(modules, found.alpha, {}, differences)


def make_student(source: str, rank: int, device: torch.device) -> Student:
    """The policy with a trainable LoRA of `rank` that has no effect yet."""
    policy = load_policy(source, torch.float32, device)
    transformer = policy.transformer
    own = dict(transformer.named_parameters())
    full = {
        name: parameter.requires_grad_(True) for name, parameter in own.items() if re.fullmatch(FULLY_TRAINED, name)
    }
    generator = torch.Generator().manual_seed(0)
    modules = {}
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and re.fullmatch(FACTORS, name):
            down = torch.randn(rank, module.in_features, generator=generator) / rank
            modules[name] = down, torch.zeros(module.out_features, rank)
    load_lora_into(transformer, LoRA(modules, dict.fromkeys(modules, float(rank))))
    for parameter in lora_parameters(transformer).values():
        parameter.requires_grad_(True)
    return Student(policy, {name: parameter.detach().clone() for name, parameter in full.items()}, full)


def batches(policy, conditions: list[Conditions], size: int, seed: int) -> Iterator[ConditionBatch]:
    """Random batches without end; the conditions of a batch have equal shapes."""
    generator = torch.Generator().manual_seed(seed)
    groups = list(buckets(conditions).values())
    weights = torch.tensor([float(len(group)) for group in groups])
    while True:
        group = groups[int(torch.multinomial(weights, 1, generator=generator))]
        chosen = torch.randint(len(group), (size,), generator=generator).tolist()
        yield policy.batch([conditions[group[i]] for i in chosen])


@torch.no_grad()
def mean_velocity(
    teacher, latents: Tensor, batch: ConditionBatch, schedule: Schedule, steps: range, guidance
) -> Tensor:
    """The velocity by which one step would come to where the teacher comes in `steps` of its schedule."""
    reached = latents
    for step in steps:
        velocity = teacher.velocity(reached, schedule.timestep_batch(step, len(latents)), batch, guidance)
        reached = reached + velocity * (schedule.sigmas[step + 1] - schedule.sigmas[step])
    return (reached - latents) / (schedule.sigmas[steps.stop] - schedule.sigmas[steps.start])


def distil(options: argparse.Namespace) -> LoRA:
    """Train the student and print how far its videos are from the teacher's, before and after."""
    device, config = torch.device(options.device), make_config("tiny")
    torch.manual_seed(options.seed)
    teacher, student = load_policy("tinyworld", torch.float32, device), make_student("tinyworld", options.rank, device)
    policy, size, guidance = student.policy, evaluation_size(config), evaluation_guidance(config)
    fine, coarse = (flow_schedule(n, config.rollout.shift, device) for n in (options.teacher_steps, options.steps))
    ratio = options.teacher_steps // options.steps
    items = tiny_prompt_set("train", options.items, options.seed + 77)
    conditions = [teacher.encode(item, size) for item in items]
    held_out = [teacher.encode(item, size) for item in tiny_prompt_set("held_out", MEASURED, options.seed + 77)]

    def sampled(who, steps: int) -> Tensor:
        seeds = list(range(MEASURED))
        found = sample_latents(who, held_out, size, steps, config.rollout.shift, guidance, seeds, options.batch)
        return torch.cat([latents.flatten() for _, latents, _ in found])

    aim, own = sampled(teacher, options.teacher_steps), sampled(teacher, options.steps)
    print(
        f"base policy in {options.steps} steps: {_distance(own, aim):.4f} from its {options.teacher_steps}", flush=True
    )
    optimiser = torch.optim.AdamW(student.parameters, lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    average = [parameter.detach().clone() for parameter in student.parameters]
    clock, update = Clock("distil", options.updates, options.seconds), 0
    source = batches(policy, conditions, options.batch, options.seed)
    while clock.running(update):
        batch = next(source)
        seeds = range(update * options.batch, (update + 1) * options.batch)
        shape = policy.latent_shape(size, batch.references)
        latents = unit_noise(noise_generators([options.seed * 1_000_003 + s for s in seeds]), shape, device)
        for step in range(options.steps):
            aimed = mean_velocity(teacher, latents, batch, fine, range(step * ratio, (step + 1) * ratio), guidance)
            velocity = policy.velocity(latents, coarse.timestep_batch(step, len(latents)), batch, guidance)
            loss = F.mse_loss(velocity, aimed)
            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * cosine(clock.fraction(update))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            with torch.no_grad():
                torch._foreach_lerp_(average, student.parameters, options.average)
                latents = latents + velocity.detach() * (coarse.sigmas[step + 1] - coarse.sigmas[step])
            update += 1
            if update % 10 == 0:
                clock.log(update, loss, every=options.log_every)
    with torch.no_grad():
        torch._foreach_copy_(student.parameters, average)
    own = sampled(policy, options.steps)
    print(f"with the LoRA:                {_distance(own, aim):.4f}", flush=True)
    return student.lora()


def _distance(found: Tensor, aim: Tensor) -> float:
    """Root mean square of the difference, in units of the aim's standard deviation."""
    return float((found - aim).pow(2).mean().sqrt() / aim.std())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=BUILT_IN_LORAS["tinyworld-4-steps"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--teacher-steps", type=int, default=8, help="a multiple of --steps")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--items", type=int, default=2048, help="training items")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--updates", type=int, default=6000)
    parser.add_argument("--seconds", type=float, default=240, help="the training ends after them at the latest")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--average", type=float, default=0.01, help="weight of the newest in the average that is kept")
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.teacher_steps % options.steps:
        parser.error("--teacher-steps must be a multiple of --steps")
    started = time.time()
    lora = distil(options)
    made = {
        "policy": "vace",
        "sampling_steps": str(options.steps),
        "made_by": f"{options.updates} updates at most of {options.batch}, {options.seconds:g} s at most, "
        f"on {torch.cuda.get_device_name() if options.device == 'cuda' else 'cpu'}",
    }
    write_native(lora, options.file, made)
    print(f"{options.file}: {options.file.stat().st_size / 1e6:.2f} MB, {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
