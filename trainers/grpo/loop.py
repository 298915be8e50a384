"""The training loop: rollouts, rewards, updates; again.

Runs as one process or as several under accelerate. Work is shared by slices of one plan (plan.py) and gradients are summed,
so the number of processes and the micro-batches change nothing but the order of additions.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from ..config import TrainConfig
from ..errors import UserError
from ..lora.formats import read_lora, write_native
from ..lora.inject import add_lora, load_lora_into, lora_parameters, to_lora
from ..policies.base import Conditions, Policy, VideoSize
from ..policies.load import policy_of
from ..prompts import resolve_prompts
from ..rewards.load import load_reward
from ..runs.atomic import place_atomic
from ..runs.folder import RunFolder
from .advantages import group_advantages
from .checkpoint import Progress, checkpoints, load_checkpoint, prune, save_checkpoint
from .dynamics import flow_schedule
from .ema import Ema
from .evaluate import Comparison, Measurement, compare, held_out_videos, measure, score_videos
from .plan import Planned, derive_seed, plan_iteration, plan_window, share
from .rollout import Trajectory, micro_batches, roll_out
from .update import step_losses

# A micro-batch of rollouts on the CPU, with its members' places in the plan.
Chunk = tuple[list[int], Trajectory]
T = TypeVar("T")
WATCHED = ("policy_loss", "ratio_error", "approx_kl", "clipfrac")
CLIPS = 4
ROLLOUTS = 0.7  # of an iteration's time, roughly


class Stopped(Exception):
    """The user asked the run to stop; it resumes from its last checkpoint."""


@dataclass(frozen=True)
class Report:
    """Told to the caller after every phase: `fraction` of the run that is done, seconds left (None: not known yet)."""

    iteration: int
    iterations: int
    phase: str
    fraction: float
    eta_seconds: float | None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """How a run ended: `state` is `finished` or `stopped`; `export` is the newest LoRA file."""

    state: str
    iteration: int
    export: Path | None


def train(
    config: TrainConfig, run: RunFolder, resume: bool = False, progress: Callable[[Report], None] = lambda report: None
) -> Result:
    """Train from the start or, with `resume`, from the newest checkpoint; leave status, metrics, checkpoints and exports in `run`.

    Ctrl-C, SIGTERM and a `stop` request end it after the current step with state `stopped`; every iteration that was
    complete is kept, at most the one in flight is lost. A second Ctrl-C ends it at once. Any error leaves state `failed` with
    its message, and the last checkpoint as it was. Raises UserError, and touches nothing, when a start would begin a trained
    run again at 0.
    """
    accelerator = Accelerator()
    main = accelerator.is_main_process
    if not resume and checkpoints(run.checkpoints):
        raise UserError(f"run {run.id} has checkpoints already; continue it with `resume`, or start a new run")
    interrupted = threading.Event()
    trainer = None
    try:
        with _signals(interrupted):
            if main:
                run.set_status(state="starting", message="loading models", last_error="")
            trainer = Trainer(config, run, accelerator, interrupted, progress)
            result = trainer.train(resume)
    except KeyboardInterrupt:
        result = trainer.result("stopped") if trainer else Result("stopped", 0, None)
    except BaseException as error:
        if main:
            # The disk may be full of what went wrong; the cause is worth more than the note.
            with contextlib.suppress(OSError, UserError):
                run.set_status(state="failed", last_error=str(error) or type(error).__name__)
        raise
    if main:
        run.take("stop")
        run.set_status(
            state=result.state, iteration=result.iteration, message=trainer.warning if trainer else "", eta_seconds=None
        )
    return result


class Trainer:
    """One process's part of a run."""

    def __init__(
        self,
        config: TrainConfig,
        run: RunFolder,
        accelerator: Accelerator,
        interrupted: threading.Event,
        report: Callable[[Report], None],
    ):
        self.config, self.run, self.accelerator, self.report = config, run, accelerator, report
        self.interrupted, self.export = interrupted, None
        self.seconds, self.began = [], 0.0
        device = accelerator.device
        self.items, self.held_out = resolve_prompts(config)
        self.size = VideoSize(config.video.height, config.video.width, config.video.frames)
        self.policy: Policy = policy_of(config.policy, device)
        self.reward = load_reward(config.reward, device)
        add_lora(self.policy.transformer, config.lora.rank, config.lora.alpha, derive_seed(config.seed, "lora"))
        if config.start_lora:
            load_lora_into(self.policy.transformer, read_lora(config.start_lora))
        if config.optim.gradient_checkpointing:
            self.policy.transformer.enable_gradient_checkpointing()
        self.parameters = lora_parameters(self.policy.transformer)
        optim = config.optim
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), optim.learning_rate, optim.betas, optim.epsilon, optim.weight_decay
        )
        self.ema = Ema(self.parameters, config.ema.decay, config.ema.every)
        self.schedule = flow_schedule(config.rollout.steps, config.rollout.shift, device)
        self.progress = Progress(policy=self.policy.kind, prompts=self.items.digest)
        self.saved, self.warning = -1, ""
        self.baseline: Measurement | None = None

    # --- the run ---------------------------------------------------------------------------------------------------------

    def train(self, resume: bool) -> Result:
        """From the start or the newest checkpoint to the configured number of iterations, or until asked to stop."""
        try:
            if resume:
                self._restore()
            self._finish_iteration()
            while self.progress.iteration < self.config.iterations:
                self._iterate()
        except Stopped:
            if self.saved < self.progress.iteration:
                self._save()
            return self.result("stopped")
        return self.result("finished")

    def result(self, state: str) -> Result:
        export = self._export_path(max(0, self.saved))
        return Result(state, self.progress.iteration, export if export.is_file() else None)

    def _restore(self) -> None:
        saved = checkpoints(self.run.checkpoints)
        if not saved:
            raise UserError(f"run {self.run.id} has no checkpoint to resume from; start it again with `train`")
        self.progress, ema = load_checkpoint(
            saved[-1], self.policy.kind, self.items.digest, self.parameters, self.optimiser
        )
        self.ema.load_state_dict(ema)
        self.saved = self.progress.iteration
        self.baseline = self.run.read_measurement(0, Measurement)
        if self.baseline is None and self.progress.iteration:
            raise UserError(
                f"run {self.run.id} has lost evaluation/000000.json, the untouched policy's scores; start a new run"
            )
        if self.accelerator.is_main_process:
            self.run.truncate_metrics(self.progress.iteration)
            if not self._export_path(self.saved).is_file():
                self._export()

    def _iterate(self) -> None:
        """One iteration: rollouts and rewards, then the updates, then evaluation and checkpoint when they are due."""
        started = self.began = time.perf_counter()
        config, iteration = self.config, self.progress.iteration
        plan = plan_iteration(config.seed, iteration, config.rollout, len(self.items))
        updates, rewards = self._rollouts(plan, plan_window(config.seed, iteration, config.rollout))
        sampled = time.perf_counter()
        metrics = self._updates(plan, updates, self._shuffled(rewards))
        self.progress.iteration += 1
        groups = rewards.view(-1, config.rollout.group_size)
        metrics |= {
            "kind": "train",
            "iteration": self.progress.iteration,
            "reward_mean": rewards.mean().item(),
            "reward_std_in_group": groups.std(1, correction=0).mean().item(),
            "seconds_rollout": sampled - started,
            "seconds_update": time.perf_counter() - sampled,
        }
        self._record(metrics)
        self._finish_iteration()
        self.seconds.append(time.perf_counter() - started)
        self._tell("training", metrics=metrics)

    def _finish_iteration(self) -> None:
        """Evaluation and checkpoint of the present iteration, as far as they are due and not done yet.

        What is evaluated is also saved: the best of them is kept, and a resumed run repeats no evaluation.
        """
        iteration, config = self.progress.iteration, self.config
        last = iteration == config.iterations
        evaluate = (last or iteration % config.evaluation.every == 0) and not self._evaluated()
        sample, save = self._requested("sample"), self._requested("save")
        if evaluate:
            self._evaluate()
        elif sample:
            self._agreed(self._show)
        if evaluate or (self.saved < iteration and (save or iteration % config.checkpoint.every == 0)):
            self._save()

    # --- rollouts --------------------------------------------------------------------------------------------------------

    def _rollouts(self, plan: list[Planned], window: range) -> tuple[list[list[Chunk]], Tensor]:
        """This process's chunks of every update, and everybody's rewards float64 [n] in the order of the plan."""
        updates, own = self._agreed(lambda: self._own_rollouts(plan, window))
        rewards = torch.full((len(plan),), math.nan, dtype=torch.float64)
        for index, score in gather_object(own):
            rewards[index] = score
        if not torch.isfinite(rewards).all():
            bad = int((~torch.isfinite(rewards)).nonzero()[0])
            raise UserError(
                f"the reward of item `{self.items[plan[bad].item].id}` (seed {plan[bad].seed}) is {rewards[bad].item()}; "
                "look at its references and at the reward model; the last checkpoint is intact"
            )
        return updates, rewards

    def _own_rollouts(self, plan: list[Planned], window: range) -> tuple[list[list[Chunk]], list[tuple[int, float]]]:
        config = self.config.rollout
        per_update = len(plan) // config.updates_per_iteration
        own = share(per_update, self.accelerator.process_index, self.accelerator.num_processes)
        conditions: dict[int, Conditions] = {}
        updates, scores = [], []
        for first in range(0, len(plan), per_update):
            for i in own:
                item = plan[first + i].item
                if item not in conditions:
                    conditions[item] = self.policy.encode(self.items[item], self.size)
            chosen = {first + i: conditions[plan[first + i].item] for i in own}
            updates.append([])
            for chunk in micro_batches(chosen, chosen, config.micro_batch):
                trajectory, final = roll_out(
                    self.policy,
                    [chosen[i] for i in chunk],
                    self.size,
                    config,
                    self.schedule,
                    window,
                    [plan[i].seed for i in chunk],
                    keep_means=self.config.optim.ratio == "guard",
                    check=self._check,
                )
                videos = self.policy.decode(final, trajectory.conditions[0].references)
                items = [self.items[plan[i].item] for i in chunk]
                scores += zip(chunk, score_videos(self.reward, videos, items, self.config).tolist(), strict=True)
                updates[-1].append((chunk, _to(trajectory, "cpu")))
                self._tell("rollouts", len(scores) / (len(own) * config.updates_per_iteration))
        return updates, scores

    def _shuffled(self, rewards: Tensor) -> Tensor:
        """The control experiment: the rewards of each group are dealt out at random inside it."""
        if not self.config.reward.shuffle:
            return rewards
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "shuffle", self.progress.iteration))
        groups = rewards.view(-1, self.config.rollout.group_size)
        return torch.stack([group[torch.randperm(len(group), generator=generator)] for group in groups]).flatten()

    # --- updates ---------------------------------------------------------------------------------------------------------

    def _updates(self, plan: list[Planned], updates: list[list[Chunk]], rewards: Tensor) -> dict[str, float]:
        """One optimiser step for each update; what to watch of the first, where the policy is still the one that sampled."""
        config = self.config
        advantages = group_advantages(rewards, [p.group for p in plan], config.optim.global_std)
        terms = len(plan) // len(updates) * config.rollout.window.size
        watched = dict.fromkeys(WATCHED + ("kl",) * bool(config.optim.kl), 0.0)
        norms = []
        for number, chunks in enumerate(updates):
            seen = self._agreed(
                lambda chunks=chunks, number=number: self._gradients(chunks, advantages, 1 / terms, number)
            )
            if number == 0:
                for part in gather_object([seen]):
                    watched = {name: value + part.get(name, 0.0) for name, value in watched.items()}
            norms.append(self._optimiser_step())
        groups = advantages.view(-1, config.rollout.group_size)
        return {name: value / terms for name, value in watched.items()} | {
            "grad_norm": sum(norms) / len(norms),
            "groups_without_spread": (groups == 0).all(1).double().mean().item(),
        }

    def _gradients(self, chunks: list[Chunk], advantages: Tensor, scale: float, number: int) -> dict[str, float]:
        """Gradients of this process's part of update `number`; the sums of what to watch."""
        size, updates = self.config.optim.micro_batch, self.config.rollout.updates_per_iteration
        watched: dict[str, Tensor] = {}
        done, total = 0, sum(len(chunk) for chunk, _ in chunks)
        for chunk, trajectory in chunks:
            for start in range(0, len(chunk), size):
                part = slice(start, start + size)
                self._backward(trajectory, part, advantages[chunk[part]], scale, watched)
            done += len(chunk)
            self._tell("update", (number + done / total) / updates)
        return {name: value.item() for name, value in watched.items()}

    def _backward(
        self, trajectory: Trajectory, part: slice, advantages: Tensor, scale: float, watched: dict[str, Tensor]
    ) -> None:
        """Add the gradients of all window steps of some rollouts; `scale` makes the whole update's sum a mean."""
        if not self.config.optim.kl and not advantages.any():
            return
        device = self.accelerator.device
        batch = self.policy.batch(trajectory.conditions[part])
        piece = _to(
            Trajectory(
                trajectory.window,
                trajectory.latents[part],
                trajectory.log_probs[part],
                None if trajectory.means is None else trajectory.means[part],
                trajectory.conditions[part],
            ),
            device,
        )
        advantages = advantages.to(device, torch.float32)
        for step in range(len(trajectory.window)):
            self._check()
            losses, seen = step_losses(self.policy, batch, piece, step, advantages, self.schedule, self.config)
            (losses.sum() * scale).backward()
            for name, value in seen.items():
                watched[name] = watched.get(name, 0) + value.sum()

    def _optimiser_step(self) -> float:
        """Sum the processes' gradients and step, unless the sum is not finite."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if self.accelerator.num_processes > 1:
                parameter.grad = self.accelerator.reduce(parameter.grad, "sum")
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.config.optim.max_grad_norm).item()
        if not math.isfinite(norm):
            raise UserError(
                f"the gradient of update {self.progress.updates + 1} is {norm}; the run stops before it spoils the weights. "
                "Lower optim.learning_rate or set policy.dtype to float32, then resume from the last checkpoint"
            )
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.progress.updates += 1
        self.ema.step(self.progress.updates)
        return norm

    # --- evaluation and saving -------------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Measure the EMA weights on the held-out items; the first measurement is the untouched policy's."""
        iteration = self.progress.iteration
        items = self.held_out.items[: self.config.evaluation.items]
        own = [items[i] for i in share(len(items), self.accelerator.process_index, self.accelerator.num_processes)]

        def told(chunks: Sequence) -> Iterator:
            for index, chunk in enumerate(chunks):
                self._tell("evaluation", index / len(chunks))
                yield chunk

        def part() -> tuple[Tensor, Measurement]:
            with self.ema.applied():
                videos = held_out_videos(self.policy, own, self.config, self._check, told)
            return videos, measure(self.reward, videos, own, self.config)

        videos, mine = self._agreed(part)
        found = _joined(gather_object([mine.to_dict()]))
        for item, reward in zip(found.ids, found.rewards, strict=True):
            if not math.isfinite(reward):
                raise UserError(
                    f"the reward of held-out item `{item}` is {reward}; look at its references and at the reward model"
                )
        self.baseline = self.baseline or found
        result = compare(self.baseline.rewards, found.rewards)
        if self.progress.best_margin < result.margin:
            self.progress.best_iteration, self.progress.best_margin = iteration, result.margin

        def publish() -> None:
            if self.accelerator.is_main_process:
                self.run.write_measurement(iteration, found.to_dict())
                self.run.write_clips(iteration, own[:CLIPS], videos[:CLIPS], self.config.reward.fps)
                self.run.append_metrics(evaluation_row(iteration, self.baseline, found, result))

        self._agreed(publish)

    def _evaluated(self) -> bool:
        """Whether the present iteration was evaluated before the run was interrupted."""
        return self.saved == self.progress.iteration and any(
            row.get("kind") == "evaluation" and row["iteration"] == self.saved for row in self.run.read_metrics()
        )

    def _show(self) -> None:
        """Clips of the present weights, between two evaluations."""
        if self.accelerator.is_main_process:
            items = self.held_out.items[:CLIPS]
            with self.ema.applied():
                videos = held_out_videos(self.policy, items, self.config, self._check)
            self.run.write_clips(self.progress.iteration, items, videos, self.config.reward.fps)

    def _save(self) -> None:
        def write() -> None:
            if self.accelerator.is_main_process:
                save_checkpoint(
                    self.run.checkpoints, self.progress, self.parameters, self.ema.state_dict(), self.optimiser
                )
                prune(self.run.checkpoints, self.config.checkpoint.keep, self.progress.best_iteration)
                self._export()

        self._agreed(write)
        self.saved = self.progress.iteration

    def _export(self) -> None:
        """The averaged LoRA, as it is evaluated."""
        with self.ema.applied():
            lora = to_lora(self.policy.transformer)
        iteration = self.progress.iteration
        file = self._export_path(iteration)
        write_native(lora, file, {"run": self.run.id, "iteration": str(iteration), "policy": self.policy.kind})
        if self.config.publish:
            self._publish(file, Path(self.config.publish) / self.run.id)

    def _publish(self, file: Path, folder: Path) -> None:
        """A run is worth more than a second copy of its LoRA: what goes wrong here is told and does not end it."""
        try:
            place_atomic(file, folder / file.name)
            self.warning = ""
        except OSError as error:
            self.warning = f"{file.name} could not be published to {folder} ({error}); it is in {file.parent}"

    def _export_path(self, iteration: int) -> Path:
        return self.run.exports / f"{self.run.id}-{iteration:06d}.safetensors"

    # --- talking ---------------------------------------------------------------------------------------------------------

    def _record(self, row: dict) -> None:
        if self.accelerator.is_main_process:
            self.run.append_metrics(row)

    def _tell(self, phase: str, within: float = 0.0, metrics: dict[str, float] | None = None) -> None:
        """Write the status and call the caller's report; `within` is how much of the phase is done."""
        if not self.accelerator.is_main_process:
            return
        total = self.config.iterations
        iteration = self.progress.iteration
        part = {"rollouts": ROLLOUTS * within, "update": ROLLOUTS + (1 - ROLLOUTS) * within}.get(phase, 0.0)
        done = min(total, iteration + part)
        eta = self._seconds_left(total - done, part)
        self.run.set_status(
            state="running",
            iteration=iteration,
            iterations=total,
            phase=phase,
            phase_done=within,
            eta_seconds=eta,
            message=self.warning,
        )
        self.report(Report(iteration, total, phase, done / total, eta, metrics or {}))

    def _seconds_left(self, iterations: float, part: float) -> float | None:
        """From the last iterations, or from the part of the first one that is done; None before that."""
        recent = self.seconds[-5:]
        if recent:
            return sum(recent) / len(recent) * iterations
        return (time.perf_counter() - self.began) / part * iterations if part else None

    def _requested(self, name: str) -> bool:
        """Whether the user asked for `name`; every process gets the same answer."""
        answer = [self.run.take(name) if self.accelerator.is_main_process else False]
        return bool(broadcast_object_list(answer)[0])

    def _check(self) -> None:
        """Stop here when asked to, unless that would lose more than the iteration in flight."""
        whole = self.progress.updates == self.progress.iteration * self.config.rollout.updates_per_iteration
        if (whole or self.saved == self.progress.iteration) and (
            self.interrupted.is_set() or self.run.status()["state"] == "stopping"
        ):
            raise Stopped

    def _agreed(self, work: Callable[[], T]) -> T:
        """This process's own part of something. What ends it in one process ends it in all: none waits for another for ever.

        `work` must not talk to other processes.
        """
        try:
            result = work()
        except Exception as error:
            told = self._outcomes((isinstance(error, Stopped), str(error) or type(error).__name__))
            if isinstance(error, Stopped) and not told[0][0]:
                raise UserError(told[0][1]) from error
            raise
        for stopped, message in self._outcomes(None):
            raise Stopped if stopped else UserError(message)
        return result

    def _outcomes(self, own: tuple[bool, str] | None) -> list[tuple[bool, str]]:
        """(stopped, message) of all processes that did not get through, errors before stops."""
        return sorted(outcome for outcome in gather_object([own]) if outcome)


def evaluation_row(iteration: int, baseline: Measurement, found: Measurement, result: Comparison) -> dict:
    """One line of metrics.jsonl."""
    row = {
        "kind": "evaluation",
        "iteration": iteration,
        "reward_mean": sum(found.rewards) / len(found.rewards),
        **vars(result),
    }
    for name in ("identity", "alignment"):
        values, before = getattr(found, name), getattr(baseline, name)
        if values is not None:
            row[name] = sum(values) / len(values)
            row[f"{name}_gain"] = row[name] / max(1e-9, sum(before) / len(before)) - 1
    return row


def _joined(parts: list[dict]) -> Measurement:
    """The processes' measurements, in order, as one."""
    names = Measurement.__dataclass_fields__
    filled = [p for p in parts if p["ids"]]
    return Measurement(
        **{n: None if filled[0][n] is None else [value for p in filled for value in p[n]] for n in names}
    )


def _to(trajectory: Trajectory, device) -> Trajectory:
    means = None if trajectory.means is None else trajectory.means.to(device)
    return Trajectory(
        trajectory.window, trajectory.latents.to(device), trajectory.log_probs.to(device), means, trajectory.conditions
    )


class _signals:
    """Ctrl-C and SIGTERM set the event instead of tearing the process down in the middle of a write; a second Ctrl-C does."""

    def __init__(self, event: threading.Event):
        self.event, self.before = event, {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                self.before[name] = signal.signal(name, self._note)

    def _note(self, number: int, frame) -> None:
        if self.event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.event.set()

    def __exit__(self, *error) -> None:
        for name, handler in self.before.items():
            signal.signal(name, handler)
