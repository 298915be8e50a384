"""Training an identity reward, or a base model for one, from preference pairs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, autocast

from ..errors import Stopped, UserError, shorten
from ..files import remove
from ..ranks import Ranks
from ..rewards.collator import Collator
from ..rewards.identity import IdentityReward, open_base
from ..rewards.model import RewardModel
from ..rewards.writing import write_base, write_checkpoint
from ..weights import is_finite
from .adapters import start_from, train_by_lora
from .batches import PairSource, batches
from .loss import btt_loss
from .pairs import Accuracy, Pair, Scored, agreement, score_pairs
from .recipe import RewardTraining
from .released import model_config
from .state import Progress, load_state, newest_state, save_state, trained_weights
from .stored import Part

OnEvent = Callable[[dict[str, Any]], None]
"""Called with a dictionary after every step (step, of how many steps, loss, rate, seconds, and the fraction that is
done by steps or time) and every evaluation (step, accuracy)."""
Ask = Callable[[], Literal["save", "stop"] | None]
"""What is wanted of a training, asked after every step: to save its state, or to do so and end."""
STATES = "state"
CHECK_EVERY = 50
"""Steps between two checks for numbers that are not finite; each waits for the GPU."""


@dataclass(frozen=True)
class Trained:
    """Result of a training: the step whose weights were written, all seconds spent, the mean loss of the last tenth of
    its steps, and the held-out accuracy of what was written."""

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
    start: Path | None = None,
    resume: bool = False,
    states: Path | None = None,
    ask: Ask | None = None,
    ranks: Ranks | None = None,
) -> Trained:
    """Train a reward on `base_model` by the released recipe and write it to `output_dir` in the released layout.

    LoRA on all linear layers of the language model; vision tower, merger, token embedding and head in full, or LoRA on
    the vision tower too. `start`: a reward of this base model whose weights it begins with. `resume` continues from the
    newest state that an interrupted training left in the folder `states`, by default `output_dir/state`. `ask`, where
    it is given, must be given to all processes; the first one's answer counts. `ranks`: the processes that train
    together. Each takes a part of every batch and of the held-out pairs, and one writes. Raises UserError for a base
    that is not a Qwen2.5-VL, a folder that holds a reward already, or a loss that is not finite, and Stopped when it
    was asked to; no reward is written then.
    """
    base, output = Path(base_model), Path(output_dir)
    states, ranks = states or output / STATES, ranks or Ranks()
    ranks.on_all_ranks(lambda: require_untrained(output))
    _require_resumable(states, resume, ranks)

    def prepare(model: RewardModel) -> None:
        train_by_lora(model, training)
        if start:
            start_from(model, start)

    model, result = _train(base, pairs, states, training, device, held_out, on_event, prepare, resume, ranks, ask)

    def write() -> None:
        config = model_config(base, output, training, start)
        write_checkpoint(model, output, result.steps, config, training.storage, training.pickled)
        remove(states)

    ranks.from_main(write)
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
    base, output, ranks = Path(base_model), Path(output_dir), Ranks()
    ranks.on_all_ranks(lambda: _require_absent(output, "*"))
    training = replace(training, save_every=0)
    model, result = _train(
        base, pairs, output / STATES, training, device, held_out, on_event, lambda model: None, False, ranks, None
    )
    ranks.from_main(lambda: write_base(model, base, output, training.storage))
    return result


def require_untrained(output: Path) -> None:
    """Raises UserError when the folder holds a reward already, or is a file."""
    if os.path.exists(output) and not os.path.isdir(output):
        raise UserError(f"{output} is a file; give a new folder")
    _require_absent(output, "checkpoint-*")
    _require_absent(output, "model_config.json")


def require_resumable(states: Path, resume: bool) -> None:
    """Raises UserError when there is a state and it is not to be resumed, or none."""
    if (newest_state(states) is not None) != resume:
        raise UserError(
            f"{states.parent} holds no training to resume; leave --resume out"
            if resume
            else f"{states.parent} holds a training that has not ended; resume it (--resume), or give another folder"
        )


def _require_resumable(states: Path, resume: bool, ranks: Ranks) -> None:
    """Raises UserError as `require_resumable`, and when the processes do not find the same state."""
    found = ranks.gather_results(lambda: [getattr(newest_state(states), "name", None)])
    if len(set(found)) > 1:
        raise UserError(
            f"machines find different checkpoints in {states}: {', '.join(map(str, found))}; several machines resume "
            "the training of a reward on a shared disk, or one machine does alone"
        )
    require_resumable(states, resume)


def _require_absent(folder: Path, pattern: str) -> None:
    if found := sorted(folder.glob(pattern)):
        raise UserError(f"{folder} already holds {found[0].name}; give another folder")


def _train(
    base: Path,
    pairs: PairSource,
    states: Path,
    training: RewardTraining,
    device: torch.device | str,
    held_out: Sequence[Pair],
    on_event: OnEvent | None,
    prepare: Callable[[RewardModel], None],
    resume: bool,
    ranks: Ranks,
    ask: Ask | None,
) -> tuple[RewardModel, Trained]:
    """Train a model on `base`, in which `prepare` freezes what is not trained."""
    source = batches(pairs, training.batch_size, training.seed)
    torch.manual_seed(training.seed)
    model, sequencer = open_base(base, torch.float32)
    prepare(model)
    model, collator = model.to(device), Collator(sequencer)
    if training.recompute:
        recompute_activations(model)
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
    emit = on_event if on_event and ranks.is_main else lambda event: None
    progress = load_state(newest_state(states), model, optimiser, training) if resume else Progress()
    losses: list[Tensor] = []
    finite = torch.ones((), dtype=torch.bool, device=device)
    started, measured_at = time.monotonic() - progress.seconds, 0
    model.train()
    while True:
        # Clocks differ, and all must end at the same step.
        fraction = ranks.broadcast(max(progress.step / training.steps, (time.monotonic() - started) / training.seconds))
        batch = source(progress.step) if fraction < 1 else ()
        if not batch or (training.patience and progress.stale >= training.patience):
            break
        rate = training.learning_rate * _schedule(fraction, training)
        for group in optimiser.param_groups:
            group["lr"] = rate
        # Dropout depends on the step and the process only, so that a resumed training repeats it.
        torch.manual_seed(training.seed + 1_000_003 * (progress.step + 1) + ranks.rank)
        optimiser.zero_grad(set_to_none=True)
        loss = backward(model, collator, batch, training, ranks)
        norm = torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        optimiser.step()
        progress.step += 1
        losses.append(loss)
        finite &= torch.isfinite(loss + norm)
        step = progress.step
        evaluate = bool(training.evaluate_every and len(held_out)) and step % training.evaluate_every == 0
        asked = ranks.broadcast(ask()) if ask else None
        save = bool(asked) or (bool(training.save_every) and step % training.save_every == 0)
        if on_event or evaluate or save or step % CHECK_EVERY == 0:
            _require_finite(finite, step)
            seconds = time.monotonic() - started
            done = min(1.0, max(step / training.steps, seconds / training.seconds))
            event = {"step": step, "steps": training.steps, "loss": loss.item(), "rate": rate}
            emit(event | {"seconds": seconds, "fraction": done})
        if evaluate:
            measured_at = step
            measured = _evaluate(model, collator, held_out, training, ranks, emit, step)
            _compare_with_best(progress, measured, model, training)
        if save:
            progress.seconds = time.monotonic() - started
            progress.losses += torch.stack(losses).tolist() if losses else []
            losses.clear()
            ranks.from_main(lambda: save_state(states, model, optimiser, progress, training))
        if asked == "stop":
            raise Stopped
    _require_finite(finite, progress.step)
    seconds = time.monotonic() - started
    progress.losses += torch.stack(losses).tolist() if losses else []
    if training.patience and len(held_out) and measured_at != progress.step:
        measured = _evaluate(model, collator, held_out, training, ranks, emit, progress.step)
        _compare_with_best(progress, measured, model, training)
    step = _restore_best(progress, model) if training.patience and progress.best else progress.step
    model.eval()
    _round_to_storage(model, training, step)
    accuracy_found = (
        _evaluate(model, collator, held_out, training, ranks, emit, step) if len(held_out) and step else None
    )
    tail = progress.losses[-max(1, len(progress.losses) // 10) :]
    mean = sum(tail) / len(tail) if tail else float("nan")
    return model.eval(), Trained(step, seconds, mean, accuracy_found)


def backward(
    model: RewardModel, collator: Collator, batch: Sequence[Pair], training: RewardTraining, ranks: Ranks
) -> Tensor:
    """Add the gradient of the batch's mean loss, over all processes; that loss, detached."""
    device = model.rm_head.weight.device
    size, total = training.micro_batch or len(batch), torch.zeros((), device=device)

    def accumulate() -> None:
        own = [batch[i] for i in ranks.slice([1] * len(batch))]
        for start in range(0, len(own), size):
            part = own[start : start + size]
            with autocast(device.type, torch.bfloat16, enabled=training.mixed_precision):
                reward_a, reward_b = score_with_gradient(model, collator, part)
            _, per_pair = btt_loss(reward_a, reward_b, torch.tensor([p.label for p in part]), training.theta)
            loss = per_pair.sum() / len(batch)
            loss.backward()
            total.add_(loss.detach())

    ranks.on_all_ranks(accumulate)
    ranks.sum([total])
    ranks.sum_gradients(p for p in model.parameters() if p.requires_grad)
    return total


def _compare_with_best(progress: Progress, measured: Accuracy, model: RewardModel, training: RewardTraining) -> None:
    if not training.patience:
        return
    if progress.best_accuracy is None or measured.loss < progress.best_accuracy.loss:
        progress.best_accuracy, progress.best_step, progress.stale = measured, progress.step, 0
        progress.best = trained_weights(model)
    else:
        progress.stale += 1


@torch.no_grad()
def _restore_best(progress: Progress, model: RewardModel) -> int:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(progress.best[name])
    return progress.best_step


@torch.no_grad()
def _round_to_storage(model: RewardModel, training: RewardTraining, step: int) -> None:
    """Raises UserError for weights that are not finite in the files' dtype."""
    broken = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(parameter.to(training.storage))
        if not is_finite(parameter.detach()):
            broken.append(name)
    if broken:
        raise UserError(
            f"{shorten(broken)} became infinite after {step} steps or as {training.storage}; lower the learning rate"
        )


def _require_finite(finite: Tensor, step: int) -> None:
    if not finite:
        raise UserError(
            f"the preference loss or its gradient became NaN or infinite within {step} steps; lower the learning rate"
        )


def score_with_gradient(model: RewardModel, collator: Collator, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Rewards of the clips A and of the clips B, with gradient, from one forward: ([N], [N])."""
    device = model.rm_head.weight.device
    rows, grids = collator.reference_rows([p.references for p in pairs], device)
    images = model.embed_pictures(rows, [grid for image_grids in grids for grid in image_grids])
    batch = collator.batch(
        [p.video_a for p in pairs] + [p.video_b for p in pairs],
        grids * 2,
        [p.rates[0] for p in pairs] + [p.rates[1] for p in pairs],
        device,
        embeddings=torch.cat([images, images]),
    )
    return model(batch).chunk(2)


def _evaluate(
    model: RewardModel,
    collator: Collator,
    held_out: Sequence[Pair],
    training: RewardTraining,
    ranks: Ranks,
    emit: OnEvent,
    step: int,
) -> Accuracy:
    own = Part(held_out, ranks.slice([1] * len(held_out)))

    def score() -> list[Scored]:
        # As the reward scores from its files: in float32, unless its frozen weights are not.
        with autocast(model.rm_head.weight.device.type, torch.bfloat16, enabled=training.frozen != torch.float32):
            return [score_pairs(IdentityReward(model, collator), own, training.micro_batch * 2 or 32)]

    measured = agreement(Scored.join(ranks.gather_results(score)), training.theta)
    model.train()
    emit({"step": step, "accuracy": asdict(measured)})
    return measured


def recompute_activations(model: RewardModel) -> None:
    # transformers renames it in version 5.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next(getattr(model.language_model, name) for name in names if hasattr(model.language_model, name))
    enable({"use_reentrant": False})
    model.visual.recompute = True


def _schedule(fraction: float, training: RewardTraining) -> float:
    """The share of the learning rate after this fraction of the training."""
    rise = min(1.0, (fraction + 1 / training.steps) / training.warmup) if training.warmup else 1.0
    fall = min(1.0, (1 - fraction) / training.decay) if training.decay else 1.0
    return min(rise, fall)
