"""Training an identity reward, or a base model for one, from preference pairs."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, autocast

from ..errors import UserError, shorten
from ..rewards.collator import Collator
from ..rewards.identity import IdentityReward, open_base
from ..rewards.model import RewardModel
from ..rewards.names import PROJECTIONS
from ..rewards.writing import write_base, write_checkpoint
from ..weights import is_finite
from .loss import btt_loss
from .pairs import Accuracy, Pair, accuracy

OnEvent = Callable[[dict[str, Any]], None]
"""Called with a dictionary after every step (step, loss, rate, seconds) and every evaluation (step, accuracy)."""
PairSource = Sequence[Pair] | Iterable[Sequence[Pair]]
"""A list of pairs, shuffled anew in every epoch, or an endless stream of batches."""
CHECK_EVERY = 50
"""Steps between two checks for numbers that are not finite; each waits for the GPU."""


@dataclass(frozen=True)
class RewardTraining:
    """How a reward is trained. Defaults are the released reward's own where it states them (its `model_config.json`).

    `steps` and `seconds` bound the training, whichever comes first. `warmup` and `decay` are shares of it: the rate
    rises linearly, stays, and falls linearly to zero over the last `decay`. `storage` is the dtype of the files, to
    which the trained model is rounded before it is evaluated: the files score as the model did.
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
    """Result of a training: steps taken, seconds, the mean loss of its last tenth, and the last held-out accuracy."""

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
    on_event: OnEvent | None = None,
) -> Trained:
    """Train a reward on `base_model` by the released recipe and write it to `output_dir` in the released layout.

    LoRA on all linear layers of the language model; vision tower, merger, token embedding and head in full. Raises
    UserError for a base that is not a Qwen2.5-VL, a folder that holds a reward already, or a loss that is not finite;
    nothing is written then.
    """
    base, output = Path(base_model), Path(output_dir)
    _require_absent(output, "checkpoint-*")
    model, result = _train(base, pairs, training, device, held_out, on_event, with_lora=True)
    write_checkpoint(model, output, result.steps, _model_config(base, output, training), training.storage)
    return result


def train_base(
    base_model: Path | str,
    pairs: PairSource,
    output_dir: Path | str,
    training: RewardTraining,
    device: torch.device | str = "cpu",
    held_out: Sequence[Pair] = (),
    on_event: OnEvent | None = None,
) -> Trained:
    """Train every weight of `base_model` and write the result, without its head, to the new folder `output_dir`.

    This is the pre-training of a base model that has to be made small. Raises UserError as `train_reward`.
    """
    base, output = Path(base_model), Path(output_dir)
    _require_absent(output, "*")
    model, result = _train(base, pairs, training, device, held_out, on_event, with_lora=False)
    write_base(model, base, output, training.storage)
    return result


def _require_absent(folder: Path, pattern: str) -> None:
    if found := sorted(folder.glob(pattern)):
        raise UserError(f"{folder} already holds {found[0].name}; give another folder")


def _train(
    base: Path,
    pairs: PairSource,
    training: RewardTraining,
    device: torch.device | str,
    held_out: Sequence[Pair],
    on_event: OnEvent | None,
    with_lora: bool,
) -> tuple[RewardModel, Trained]:
    """Train a model on `base`: all of it, or LoRA in place of the language model's linear layers."""
    torch.manual_seed(training.seed)
    model, sequencer = open_base(base, torch.float32)
    if with_lora:
        _add_lora(model, training)
    model, collator = model.to(device), Collator(sequencer)
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
    emit = on_event or (lambda event: None)
    losses: list[Tensor] = []
    finite = torch.ones((), dtype=torch.bool, device=device)
    started, measured, step = time.monotonic(), None, 0
    model.train()
    for batch in _batches(pairs, training):
        fraction = max(step / training.steps, (time.monotonic() - started) / training.seconds)
        if fraction >= 1:
            break
        rate = training.learning_rate * _schedule(fraction, training)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with autocast(device.type, torch.bfloat16, enabled=training.mixed_precision):
            reward_a, reward_b = score_pairs(model, collator, batch)
        labels = torch.tensor([p.label for p in batch])
        loss, _ = btt_loss(reward_a, reward_b, labels, training.theta)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        optimiser.step()
        step += 1
        losses.append(loss.detach())
        finite &= torch.isfinite(loss.detach() + norm)
        evaluate = bool(training.evaluate_every and held_out) and step % training.evaluate_every == 0
        if on_event or evaluate or step % CHECK_EVERY == 0:
            _require_finite(finite, step)
            emit({"step": step, "loss": loss.item(), "rate": rate, "seconds": time.monotonic() - started})
        if evaluate:
            measured = _evaluate(model, collator, held_out, training, emit, step)
    _require_finite(finite, step)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(training.storage))
    if broken := [name for name, parameter in model.named_parameters() if not is_finite(parameter.detach())]:
        raise UserError(
            f"{shorten(broken)} became infinite after {step} steps or as {training.storage}; lower the learning rate"
        )
    if held_out and step:
        measured = _evaluate(model, collator, held_out, training, emit, step)
    tail = torch.stack(losses[-max(1, len(losses) // 10) :]).mean().item() if losses else float("nan")
    return model.eval(), Trained(step, time.monotonic() - started, tail, measured)


def _require_finite(finite: Tensor, step: int) -> None:
    if not finite:
        raise UserError(
            f"the preference loss or its gradient became NaN or infinite within {step} steps; lower the learning rate"
        )


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


def _evaluate(
    model: RewardModel,
    collator: Collator,
    held_out: Sequence[Pair],
    training: RewardTraining,
    emit: OnEvent,
    step: int,
) -> Accuracy:
    measured = accuracy(IdentityReward(model, collator), held_out, training.theta)
    model.train()
    emit({"step": step, "accuracy": asdict(measured)})
    return measured


def _batches(pairs: PairSource, training: RewardTraining) -> Iterator[Sequence[Pair]]:
    if not isinstance(pairs, Sequence):
        yield from pairs
        return
    if not pairs:
        raise UserError("there are no preference pairs to train on; give at least one")
    shuffler = random.Random(training.seed)
    for _ in itertools.count():
        order = shuffler.sample(range(len(pairs)), len(pairs))
        for start in range(0, len(order), training.batch_size):
            yield [pairs[i] for i in order[start : start + training.batch_size]]


def _schedule(fraction: float, training: RewardTraining) -> float:
    """The share of the learning rate after this fraction of the training."""
    rise = min(1.0, (fraction + 1 / training.steps) / training.warmup) if training.warmup else 1.0
    fall = min(1.0, (1 - fraction) / training.decay) if training.decay else 1.0
    return min(rise, fall)


def _add_lora(model: RewardModel, training: RewardTraining) -> None:
    """Freeze the language model but for its token embedding, and give its linear layers LoRA."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=training.rank, lora_alpha=training.alpha, lora_dropout=training.dropout, target_modules=list(PROJECTIONS)
    )
    inject_adapter_in_model(config, model.language_model)
    trained = ("visual.", "rm_head.", "language_model.embed_tokens.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(trained))


def _model_config(base: Path, output: Path, training: RewardTraining) -> dict[str, Any]:
    """The content of `model_config.json`: the keys of the released one that describe the reward."""
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
