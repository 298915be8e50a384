"""Step time and memory of training a reward, on made-up pairs of a given size."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import make_config
from ..errors import UserError
from ..preference.adapters import train_by_lora
from ..preference.pairs import Pair
from ..preference.recipe import RewardTraining
from ..preference.train import backward, recompute_activations
from ..ranks import Ranks
from .models import make_reward
from .sizes import Size

GIB = 2**30


@dataclass(frozen=True)
class Measured:
    """Seconds of an update on `pairs` pairs, GiB in use at most (None without CUDA), millions of trained numbers."""

    name: str
    pairs: int
    seconds: float
    memory: float | None
    trained: float


def measure_training(
    name: str,
    training: RewardTraining,
    size: Size,
    device: torch.device,
    video: tuple[int, int, int] = (81, 480, 832),
    references: int = 2,
    updates: int = 3,
    limit: float | None = None,
) -> Measured:
    """Train a reward with random weights for some updates, the first of which is not counted.

    video: frames, height and width of the clips; the references are 512x512. limit: GiB of GPU memory that may be used,
    enforced. Raises UserError when they do not suffice.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit * GIB / total) if limit else 1.0, device)
        torch.cuda.reset_peak_memory_stats(device)
    try:
        return _measured(name, training, size, device, video, references, updates)
    except torch.cuda.OutOfMemoryError:
        reason = f"{name}: the training needs more than {limit or 'the GPU has'} GiB; choose --low-memory"
    finally:
        if on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    raise UserError(reason)


def _measured(
    name: str,
    training: RewardTraining,
    size: Size,
    device: torch.device,
    video: tuple[int, int, int],
    references: int,
    updates: int,
) -> Measured:
    config = make_config("tiny" if size == "tiny" else "paper")
    reward = make_reward(size, config, device)
    model, collator = reward.model, reward.collator
    train_by_lora(model, training)
    model = model.to(device).train()
    if training.recompute:
        recompute_activations(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-8, fused=device.type == "cuda")
    generator = torch.Generator().manual_seed(0)
    pairs = [_pair(video, references, generator, label) for label in (1, -1, 0, 1)]
    batch, seconds, ranks = [pairs[i % len(pairs)] for i in range(training.batch_size)], [], Ranks()
    for _ in range(updates + 1):
        _wait(device)
        started = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        loss = backward(model, collator, batch, training, ranks)
        torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        optimiser.step()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    if not torch.isfinite(loss):
        raise UserError(f"{name}: the loss is {loss.item()}; the measurement is of no use")
    peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None
    trained = sum(parameter.numel() for parameter in parameters) / 1e6
    return Measured(name, len(batch), sum(seconds[1:]) / updates, peak, trained)


def _pair(video: tuple[int, int, int], references: int, generator: torch.Generator, label: int) -> Pair:
    def noise(*shape: int) -> Tensor:
        return torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8)

    # As a folder of pairs gives them: the four frames that the reward reads.
    frames, height, width = 4, *video[1:]
    clips = (noise(frames, height, width) for _ in "ab")
    return Pair([noise(512, 512) for _ in range(references)], *clips, label, 10.0 * frames / video[0])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
