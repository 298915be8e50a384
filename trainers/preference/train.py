"""Training an identity reward from preference pairs, in two ways.

`train_reward` is the released recipe: LoRA on the language model, everything else of the network in full.
`train_base` trains every weight and writes a base model: what a vision-language model's own pre-training stands for,
where one has to be made small.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, autocast

from ..errors import UserError
from ..rewards.checkpoint import PROJECTIONS, write_base, write_checkpoint
from ..rewards.identity import Collator, IdentityReward, open_base
from ..rewards.model import RewardModel
from .loss import btt_loss
from .pairs import Accuracy, Pair, accuracy

Progress = Callable[[dict[str, Any]], None]
PairSource = Sequence[Pair] | Iterable[Sequence[Pair]]
"""A list of pairs, walked through in a new order each round, or an endless stream of ready batches."""


@dataclass(frozen=True)
class RewardTraining:
    """How a reward is trained. Defaults are the released reward's own where it states them (its `model_config.json`).

    `steps` and `seconds` bound the training, whichever comes first. `warmup` and `decay` are shares of it: the rate rises
    linearly, stays, and falls linearly to zero over the last `decay`. `storage` is the dtype of the files; what is trained
    is rounded to it before it is handed back, so that the file scores what the model scored.
    """

    steps: int
    batch_size: int = 4
    learning_rate: float = 2e-6
    warmup: float = 0.05
    decay: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    rank: int = 64
    alpha: int = 128
    dropout: float = 0.05
    theta: float = 5.0
    seed: int = 42
    seconds: float = float("inf")
    mixed_precision: bool = False
    storage: torch.dtype = torch.float32
    evaluate_every: int = 0


@dataclass(frozen=True)
class Trained:
    """What a training did: steps taken, seconds, the mean loss of its last tenth, and the last held-out accuracy."""

    steps: int
    seconds: float
    loss: float
    accuracy: Accuracy | None


def train_reward(
    base_model: Path | str,
    pairs: PairSource,
    output_dir: Path | str,
    training: RewardTraining,
    device: torch.device | str = "cpu",
    held_out: Sequence[Pair] = (),
    progress: Progress | None = None,
) -> Trained:
    """Train a reward on `base_model` and write it to `output_dir` in the released layout.

    LoRA on all linear maps of the language model; vision tower, merger, token embedding and head in full. `progress` gets
    a dict per step (step, loss, rate, seconds) and per evaluation (accuracy). Raises UserError for a base that is no
    Qwen2.5-VL, a folder that holds a reward already, or a loss that is not finite; nothing is written then.
    """
    base, output = Path(base_model), Path(output_dir)
    if any(output.glob("checkpoint-*")):
        raise UserError(f"{output} already holds a reward's checkpoints: give another folder.")
    torch.manual_seed(training.seed)
    model, sequencer = open_base(base, torch.float32)
    _add_lora(model, training)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(
            "lora_" in name or name.startswith(("visual.", "rm_head.", "language_model.embed_tokens."))
        )
    collator = Collator(sequencer)
    result = _train(model.to(device), collator, pairs, training, held_out, progress)
    write_checkpoint(model, output, result.steps, _model_config(base, output, training), training.storage)
    return result


def train_base(
    base_model: Path | str,
    pairs: PairSource,
    output_dir: Path | str,
    training: RewardTraining,
    device: torch.device | str = "cpu",
    held_out: Sequence[Pair] = (),
    progress: Progress | None = None,
) -> Trained:
    """Train every weight of `base_model` on preferences and write the result, without its head, as another base model."""
    base = Path(base_model)
    torch.manual_seed(training.seed)
    model, sequencer = open_base(base, torch.float32)
    result = _train(model.to(device), Collator(sequencer), pairs, training, held_out, progress)
    write_base(model, base, Path(output_dir), training.storage)
    return result


def _train(
    model: RewardModel,
    collator: Collator,
    pairs: PairSource,
    training: RewardTraining,
    held_out: Sequence[Pair],
    progress: Progress | None,
) -> Trained:
    device = model.rm_head.weight.device
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters,
        lr=training.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=training.weight_decay,
        fused=device.type == "cuda",
    )
    tell = progress or (lambda event: None)
    losses: list[Tensor] = []
    started, measured, step = time.monotonic(), None, 0
    model.train()
    for batch in _batches(pairs, training):
        fraction = max(step / training.steps, (time.monotonic() - started) / training.seconds)
        if fraction >= 1:
            break
        rate = training.learning_rate * _schedule(fraction, training, step)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with autocast(device.type, torch.bfloat16, enabled=training.mixed_precision):
            reward_a, reward_b = score_pairs(model, collator, batch)
        labels = torch.tensor([p.label for p in batch], device=device)
        loss, _ = btt_loss(reward_a, reward_b, labels, training.theta)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        optimiser.step()
        step += 1
        losses.append(loss.detach())
        if progress or step % 50 == 0:
            value = loss.item()
            if not math.isfinite(value + norm.item()):
                raise UserError(
                    f"The preference loss or its gradient is not finite at step {step}: lower the learning rate."
                )
            tell({"step": step, "loss": value, "rate": rate, "seconds": time.monotonic() - started})
        if training.evaluate_every and held_out and step % training.evaluate_every == 0:
            measured = _measure(model, collator, held_out, training, tell, step)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(training.storage))
    if held_out and step:
        measured = _measure(model, collator, held_out, training, tell, step)
    tail = torch.stack(losses[-max(1, len(losses) // 10) :]).mean().item() if losses else float("nan")
    return Trained(step, time.monotonic() - started, tail, measured)


def score_pairs(model: RewardModel, collator: Collator, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Rewards of the clips A and of the clips B, with gradient, from one forward: ([N], [N])."""
    device = model.rm_head.weight.device
    rows, grids = collator.reference_rows([p.references for p in pairs], device)
    images = model.embed_pictures(rows, [grid for image_grids in grids for grid in image_grids])
    batch = collator.batch(
        [p.video_a for p in pairs] + [p.video_b for p in pairs],
        grids * 2,
        [p.fps for p in pairs] * 2,
        device,
        embeddings=torch.cat([images, images]),
    )
    return model(batch).chunk(2)


def _measure(
    model: RewardModel,
    collator: Collator,
    held_out: Sequence[Pair],
    training: RewardTraining,
    tell: Progress,
    step: int,
) -> Accuracy:
    measured = accuracy(IdentityReward(model, collator), held_out, training.theta)
    model.train()
    tell({"step": step, "accuracy": asdict(measured)})
    return measured


def _batches(pairs: PairSource, training: RewardTraining) -> Iterator[Sequence[Pair]]:
    if not isinstance(pairs, Sequence):
        yield from pairs
        return
    if not pairs:
        raise UserError("There are no preference pairs to train on.")
    shuffler = random.Random(training.seed)
    for _ in itertools.count():
        order = shuffler.sample(range(len(pairs)), len(pairs))
        for start in range(0, len(order), training.batch_size):
            yield [pairs[i] for i in order[start : start + training.batch_size]]


def _schedule(fraction: float, training: RewardTraining, step: int) -> float:
    rise = min(1.0, (fraction + 1 / training.steps) / training.warmup) if training.warmup and step >= 0 else 1.0
    fall = min(1.0, (1 - fraction) / training.decay) if training.decay else 1.0
    return min(rise, fall)


def _add_lora(model: RewardModel, training: RewardTraining) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=training.rank, lora_alpha=training.alpha, lora_dropout=training.dropout, target_modules=list(PROJECTIONS)
    )
    inject_adapter_in_model(config, model.language_model)


def _model_config(base: Path, output: Path, training: RewardTraining) -> dict[str, Any]:
    """`model_config.json` with the keys of the released one that say something about the reward."""
    beside = base.resolve().parent in (output.resolve(), output.resolve().parent)
    return {
        "data_config": {
            "max_frame_pixels": 480 * 832,
            "num_frames": 5.0,
            "fps": None,
            "eval_dim": ["SA"],
            "prompt_template_type": "subject_alignment_special",
            "sample_type": "uniform",
            "use_tied_data": True,
        },
        "training_args": {
            "learning_rate": training.learning_rate,
            "per_device_train_batch_size": training.batch_size,
            "weight_decay": training.weight_decay,
            "max_grad_norm": training.max_grad_norm,
            "warmup_ratio": training.warmup,
            "max_steps": training.steps,
            "seed": training.seed,
            "bf16": training.mixed_precision,
        },
        "model_config": {
            "model_name_or_path": base.name if beside else str(base.resolve()),
            "output_dim": 1,
            "use_special_tokens": True,
            "freeze_vision_tower": False,
            "freeze_llm": False,
            "tune_merger": True,
            "torch_dtype": str(training.storage).removeprefix("torch."),
            "reward_token": "special",
            "loss_type": "btt",
        },
        "peft_lora_config": {
            "lora_enable": True,
            "vision_lora": False,
            "lora_r": training.rank,
            "lora_alpha": training.alpha,
            "lora_dropout": training.dropout,
            "lora_task_type": "CAUSAL_LM",
            "use_rslora": False,
        },
    }
