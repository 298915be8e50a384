"""The training loop: rollouts, rewards, updates; again.

Runs as one process or as several under accelerate. Work is shared by slices of one plan (plan.py) and gradients are summed,
so the number of processes and the micro-batches change nothing but the order of additions.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from ..config import TrainConfig
from ..errors import UserError
from ..lora.formats import read_lora, write_native
from ..lora.inject import add_lora, load_lora_into, lora_parameters, to_lora
from ..policies.base import Conditions, Policy, VideoSize
from ..policies.load import load_policy
from ..prompts import resolve_prompts
from ..rewards.load import load_reward
from ..runs.folder import RunFolder
from .advantages import group_advantages
from .checkpoint import Progress, checkpoints, load_checkpoint, prune, save_checkpoint
from .dynamics import flow_schedule
from .ema import Ema
from .evaluate import Comparison, Measurement, compare, held_out_videos, measure, score_videos
from .plan import Planned, derive_seed, plan_iteration, plan_window, share
from .rollout import Trajectory, micro_batches, roll_out
from .update import step_losses


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

    Ctrl-C, SIGTERM and a `stop` request end it after the current step with state `stopped`; at most the iteration in flight is
    lost. Any error leaves state `failed` with its message, and the last checkpoint as it was.
    """
    accelerator = Accelerator()
    main = accelerator.is_main_process
    interrupted = threading.Event()
    with _signals(interrupted):
        try:
            if main:
                run.set_status(state="starting", message="loading models", last_error="")
            trainer = Trainer(config, run, accelerator, interrupted, progress)
            trainer.begin(resume)
            while trainer.progress.iteration < config.iterations:
                trainer.iterate()
            result = Result("finished", trainer.progress.iteration, trainer.export)
        except Stopped:
            result = Result("stopped", trainer.progress.iteration, trainer.export)
        except BaseException as error:
            if main:
                run.set_status(state="failed", last_error=str(error) or type(error).__name__)
            raise
    if main:
        run.set_status(state=result.state, iteration=result.iteration, message="", eta_seconds=None)
    return result


class Trainer:
    """One process's part of a run. `begin`, then `iterate` until the configured number of iterations is done."""

    def __init__(
        self, config: TrainConfig, run: RunFolder, accelerator: Accelerator, interrupted: threading.Event,
        report: Callable[[Report], None],
    ):
        self.config, self.run, self.accelerator, self.report = config, run, accelerator, report
        self.interrupted, self.export, self.seconds = interrupted, None, []
        device = accelerator.device
        self.items, self.held_out = resolve_prompts(config)
        self.size = VideoSize(config.video.height, config.video.width, config.video.frames)
        self.policy: Policy = load_policy(config.policy.source, getattr(torch, config.policy.dtype), device)
        self.reward = load_reward(config.reward, device)
        add_lora(self.policy.transformer, config.lora.rank, config.lora.alpha, derive_seed(config.seed, "lora"))
        if config.start_lora:
            load_lora_into(self.policy.transformer, read_lora(config.start_lora))
        if config.optim.gradient_checkpointing:
            self.policy.transformer.enable_gradient_checkpointing()
        self.parameters = lora_parameters(self.policy.transformer)
        optim = config.optim
        self.optimiser = torch.optim.AdamW(self.parameters.values(), optim.learning_rate, optim.betas, optim.epsilon,
                                           optim.weight_decay)
        self.ema = Ema(self.parameters, config.ema.decay, config.ema.every)
        self.schedule = flow_schedule(config.rollout.steps, config.rollout.shift, device)
        self.progress = Progress(policy=self.policy.kind, prompts=self.items.digest)
        self.baseline: Measurement | None = None

    # --- the run ---------------------------------------------------------------------------------------------------------

    def begin(self, resume: bool) -> None:
        """Restore the newest checkpoint, or measure the untouched policy."""
        saved = checkpoints(self.run.checkpoints)
        if resume and not saved:
            raise UserError(f"run {self.run.id} has no checkpoint to resume from; start it again with `train`")
        if not resume and saved:
            raise UserError(f"run {self.run.id} has checkpoints already; continue it with `resume`, or start a new run")
        if resume:
            self.progress, ema = load_checkpoint(saved[-1], self.policy.kind, self.items.digest, self.parameters, self.optimiser)
            self.ema.load_state_dict(ema)
            if self.accelerator.is_main_process:
                self.run.truncate_metrics(self.progress.iteration)
            self.baseline = self.run.read_measurement(0, Measurement)
            if self.baseline is None:
                raise UserError(f"run {self.run.id} has lost evaluation/000000.json, the untouched policy's scores; start a new run")
            self.export = self._export_path(self.progress.iteration)
        else:
            self._evaluate()
            self._save()
        self.accelerator.wait_for_everyone()

    def iterate(self) -> None:
        """One iteration: rollouts and rewards, then the updates, then evaluation and checkpoint when they are due."""
        started = time.perf_counter()
        config, iteration = self.config, self.progress.iteration
        plan = plan_iteration(config.seed, iteration, config.rollout, len(self.items))
        chunks, rewards = self._rollouts(plan, plan_window(config.seed, iteration, config.rollout))
        sampled = time.perf_counter()
        self._check_together()
        metrics = self._updates(plan, chunks, rewards)
        self.progress.iteration += 1
        groups = rewards.view(-1, config.rollout.group_size)
        metrics |= {
            "kind": "train", "iteration": self.progress.iteration, "reward_mean": rewards.mean().item(),
            "reward_std_in_group": groups.std(1, correction=0).mean().item(), "seconds_rollout": sampled - started,
            "seconds_update": time.perf_counter() - sampled,
        }
        self._record(metrics)
        last = self.progress.iteration == config.iterations
        if last or self.progress.iteration % config.evaluation.every == 0:
            self._evaluate()
        if last or self.progress.iteration % config.checkpoint.every == 0 or self._requested("save"):
            self._save()
        self.seconds.append(time.perf_counter() - started)
        self._tell("training", 1.0, metrics)
        self._check_together()

    # --- rollouts --------------------------------------------------------------------------------------------------------

    def _rollouts(self, plan: list[Planned], window: range) -> tuple[list[list[tuple[list[int], Trajectory]]], Tensor]:
        """This process's trajectories per update (on the CPU, with their indices in the plan), and everybody's rewards [n]."""
        config = self.config
        rewards = torch.zeros(len(plan), dtype=torch.float64, device=self.accelerator.device)
        conditions: dict[int, Conditions] = {}
        per_update = len(plan) // config.rollout.updates_per_iteration
        updates = []
        done, total = 0, len(share(per_update, self.accelerator.process_index, self.accelerator.num_processes))
        total *= config.rollout.updates_per_iteration
        for update in range(config.rollout.updates_per_iteration):
            own = [update * per_update + i for i in share(per_update, self.accelerator.process_index, self.accelerator.num_processes)]
            for i in own:
                if plan[i].item not in conditions:
                    conditions[plan[i].item] = self.policy.encode(self.items[plan[i].item], self.size)
            chunks = []
            chosen = {i: conditions[plan[i].item] for i in own}
            for chunk in micro_batches(chosen, own, config.rollout.micro_batch):
                trajectory, final = roll_out(
                    self.policy, [chosen[i] for i in chunk], self.size, config.rollout, self.schedule, window,
                    [plan[i].seed for i in chunk], keep_means=config.optim.ratio == "guard", check=self._check,
                )
                videos = self.policy.decode(final, trajectory.conditions[0].references)
                scores = score_videos(self.reward, videos, [self.items[plan[i].item] for i in chunk], config)
                rewards[chunk] = scores.to(rewards.device)
                chunks.append((chunk, _to(trajectory, "cpu")))
                done += len(chunk)
                self._tell("rollouts", 0.7 * done / total)
            updates.append(chunks)
        rewards = self.accelerator.reduce(rewards, "sum").cpu()
        if not torch.isfinite(rewards).all():
            bad = int((~torch.isfinite(rewards)).nonzero()[0])
            raise UserError(f"the reward of item `{self.items[plan[bad].item].id}` (seed {plan[bad].seed}) is {rewards[bad].item()}; "
                            "look at its references and at the reward model; the last checkpoint is intact")
        return updates, self._shuffled(rewards)

    def _shuffled(self, rewards: Tensor) -> Tensor:
        """The control experiment: rewards change hands inside each group."""
        if not self.config.reward.shuffle:
            return rewards
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "shuffle", self.progress.iteration))
        groups = rewards.view(-1, self.config.rollout.group_size)
        return torch.stack([group[torch.randperm(len(group), generator=generator)] for group in groups]).flatten()

    # --- updates ---------------------------------------------------------------------------------------------------------

    def _updates(self, plan: list[Planned], updates: list[list[tuple[list[int], Trajectory]]], rewards: Tensor) -> dict[str, float]:
        config = self.config
        advantages = group_advantages(rewards, [p.group for p in plan], config.optim.global_std)
        per_update = len(plan) // len(updates)
        watched: dict[str, Tensor] = {}
        norms = []
        for update, chunks in enumerate(updates):
            scale = 1.0 / (per_update * config.rollout.window.size)
            done = 0
            for chunk, trajectory in chunks:
                for start in range(0, len(chunk), config.optim.micro_batch):
                    part = slice(start, start + config.optim.micro_batch)
                    self._backward(trajectory, part, advantages[chunk[part]], scale, watched if update == 0 else {})
                done += len(chunk)
                self._tell("update", 0.7 + 0.3 * (update + done / max(1, sum(len(c) for c, _ in chunks))) / len(updates))
            norms.append(self._optimiser_step())
            self._check_together()
        groups = advantages.view(-1, config.rollout.group_size)
        names = sorted(watched) or ["policy_loss"]
        sums = torch.stack([watched.get(n, torch.zeros((), device=self.accelerator.device)) for n in names])
        sums = self.accelerator.reduce(sums, "sum") / (per_update * config.rollout.window.size)
        return dict(zip(names, sums.tolist(), strict=True)) | {
            "grad_norm": sum(norms) / len(norms), "groups_without_spread": (groups == 0).all(1).double().mean().item()}

    def _backward(self, trajectory: Trajectory, part: slice, advantages: Tensor, scale: float, watched: dict[str, Tensor]) -> None:
        """Add the gradients of all window steps of some rollouts; `scale` makes the whole update's sum a mean."""
        if not self.config.optim.kl and not advantages.any():
            return
        device = self.accelerator.device
        batch = self.policy.batch(trajectory.conditions[part])
        piece = _to(Trajectory(
            trajectory.window, trajectory.latents[part], trajectory.log_probs[part],
            None if trajectory.means is None else trajectory.means[part], trajectory.conditions[part],
        ), device)
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
            raise UserError(f"the gradient of update {self.progress.updates + 1} is {norm}; the run stops before it spoils the weights. "
                            "Lower optim.learning_rate or set policy.dtype to float32, then resume from the last checkpoint")
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
        self._tell("evaluation", 1.0)
        with self.ema.applied():
            videos = held_out_videos(self.policy, own, self.config, self._check)
        mine = measure(self.reward, videos, own, self.config)
        found = _joined(gather_object([mine.to_dict()]))
        if not all(map(math.isfinite, found.rewards)):
            raise UserError(f"the reward of held-out item `{found.ids[[*map(math.isfinite, found.rewards)].index(False)]}` is not a number; "
                            "look at its references and at the reward model")
        self.baseline = self.baseline or found
        result = compare(self.baseline.rewards, found.rewards)
        if self.progress.best_margin < result.margin:
            self.progress.best_iteration, self.progress.best_margin = iteration, result.margin
        if self.accelerator.is_main_process:
            self.run.write_measurement(iteration, found.to_dict())
            self.run.write_clips(iteration, own[:4], videos[:4], self.config.reward.fps)
        self._record(evaluation_row(iteration, self.baseline, found, result))

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            keep = self.config.checkpoint.keep
            save_checkpoint(self.run.checkpoints, self.progress, self.parameters, self.ema.state_dict(), self.optimiser)
            prune(self.run.checkpoints, keep, self.progress.best_iteration)
            with self.ema.applied():
                lora = to_lora(self.policy.transformer)
            self.export = self._export_path(self.progress.iteration)
            write_native(lora, self.export, {"run": self.run.id, "iteration": str(self.progress.iteration), "policy": self.policy.kind})
        self.accelerator.wait_for_everyone()

    def _export_path(self, iteration: int) -> Path:
        return self.run.exports / f"{self.run.id}-{iteration:06d}.safetensors"

    # --- talking ---------------------------------------------------------------------------------------------------------

    def _record(self, row: dict) -> None:
        if self.accelerator.is_main_process:
            self.run.append_metrics(row)

    def _tell(self, phase: str, part: float, metrics: dict[str, float] | None = None) -> None:
        """Write the status and call the caller's report; `part` is how much of the iteration in flight is done."""
        if not self.accelerator.is_main_process:
            return
        total = self.config.iterations
        iteration = self.progress.iteration
        done = iteration if metrics else min(total, iteration + part)
        recent = self.seconds[-5:]
        eta = sum(recent) / len(recent) * (total - done) if recent else None
        self.run.set_status(state="running", iteration=iteration, iterations=total, phase=phase, eta_seconds=eta)
        self.report(Report(iteration, total, phase, done / total, eta, metrics or {}))

    def _requested(self, name: str) -> bool:
        """Whether the user asked for `name`; every process gets the same answer."""
        answer = [self.run.take(name) if self.accelerator.is_main_process else False]
        return bool(broadcast_object_list(answer)[0])

    def _check(self) -> None:
        """Stop at once when asked to; several processes wait for the next common point instead."""
        if self.accelerator.num_processes == 1 and (self.interrupted.is_set() or self.run.take("stop")):
            raise Stopped

    def _check_together(self) -> None:
        answer = [self.interrupted.is_set() or self.run.take("stop") if self.accelerator.is_main_process else False]
        if broadcast_object_list(answer)[0]:
            raise Stopped


def evaluation_row(iteration: int, baseline: Measurement, found: Measurement, result: Comparison) -> dict:
    """One line of metrics.jsonl."""
    row = {"kind": "evaluation", "iteration": iteration, "reward_mean": sum(found.rewards) / len(found.rewards), **vars(result)}
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
    return Measurement(**{n: None if filled[0][n] is None else [value for p in filled for value in p[n]] for n in names})


def _to(trajectory: Trajectory, device) -> Trajectory:
    means = None if trajectory.means is None else trajectory.means.to(device)
    return Trajectory(trajectory.window, trajectory.latents.to(device), trajectory.log_probs.to(device), means, trajectory.conditions)


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
