"""The training cycle: rollouts and rewards, updates, evaluation and checkpoint.

Runs as one process or as several under accelerate. Work is shared by slices of one plan (plan.py) and gradients are
summed, so the number of processes and the micro-batches change nothing but the order of additions.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import TrainConfig
from ..diffusion.noise import derive_seed
from ..diffusion.schedule import flow_schedule
from ..errors import Stopped, UserError
from ..faces.users import licence_note
from ..lora.formats import read_lora
from ..lora.inject import load_lora_into, to_lora
from ..memory.placement import Placement, metric_name
from ..memory.plan import MemoryPlan, gib
from ..policies.base import Policy, VideoSize
from ..policies.frozen_loras import policy_name
from ..prompts import PromptItem
from ..rewards.several import Rewards
from ..runs.ending import Ending
from ..runs.exports import Exports
from ..runs.folder import RunFolder
from ..runs.inputs import RunInputs
from ..runs.progress import Progress, ProgressReport
from .base_motion import BaseMotion
from .checkpoint import Snapshot, TrainingState, capture, load_newest, prune, restore, save_checkpoint
from .compiled_check import CompiledCheck
from .evaluate import Evaluator, evaluated_items, evaluation_size
from .iteration import Iteration
from .lockstep import Lockstep
from .models import encode_items, load_models, plan_memory
from .plan import plan_iteration, plan_windows, used_items
from .prepare import prepare
from .ranks import Ranks
from .rollout import RolloutWorker, training_guidance
from .update import PolicyUpdate


@dataclass(frozen=True)
class Result:
    """How a run ended: `state` is `finished` or `stopped`; `export` is the newest LoRA file."""

    state: str
    iteration: int
    export: Path | None


def train(
    config: TrainConfig,
    run: RunFolder,
    inputs: RunInputs,
    resume: bool = False,
    progress: Callable[[ProgressReport], None] = lambda report: None,
    ranks: Ranks | None = None,
) -> Result:
    """Train from the start or, with `resume`, from the newest checkpoint; leave status, metrics, checkpoints and
    exports in `run`.

    Ctrl-C, SIGTERM and a `stop` request end it after the current step with state `stopped`;
    every iteration that was complete is kept, at most the one in flight is lost. A second Ctrl-C ends it at once. Any
    error leaves state `failed` with its message, and the last checkpoint as it was. Raises UserError, before anything
    is written, when a run that has checkpoints is started without `resume`.
    """
    ranks = ranks or Ranks(context=config.parallel.context)
    if not resume and run.checkpoints():
        raise UserError(f"run {run.id} has checkpoints already; continue it with `resume`, or start a new run")
    ending, trainer = Ending(run, ranks), None
    with ending.awaited():
        # A run that died before its first iteration begins at 0 again. One that has trained, and lost its checkpoints,
        # does not: that would overwrite what is left of it.
        from_checkpoint = ranks.broadcast(resume and bool(run.checkpoints() or run.training()))
        ranks.start_trackers(run.id, config.model_dump(mode="json"))
        trainer = Trainer(config, run, inputs, ranks, ending.check, progress, from_checkpoint)
        trainer.train(resume)
    result = trainer.result(ending.state) if trainer else Result(ending.state, run.status().iteration, None)
    ending.write(iteration=result.iteration, message=trainer.message if trainer else "")
    return result


class Trainer:
    """One process's part of a run."""

    def __init__(
        self,
        config: TrainConfig,
        run: RunFolder,
        inputs: RunInputs,
        ranks: Ranks,
        check: Callable[[], None],
        report: Callable[[ProgressReport], None],
        from_checkpoint: bool,
    ) -> None:
        self.config, self.run, self.ranks, self.items = config, run, ranks, inputs.items
        self.size = VideoSize(config.video.height, config.video.width, config.video.frames)
        self.from_checkpoint, self.check = from_checkpoint, check
        self.progress = Progress(run, config.iterations, report)
        self.held_out = evaluated_items(config, inputs.held_out)
        reward_device = ranks.reward_device(config.reward)
        models = load_models(
            config, ranks.device, run.encodings_folder, self._plan(), self._adapt, self._encode, reward_device
        )
        self.policy, self.placement = models.policy, models.placement
        if self.placement.shards or ranks.context:
            ranks.lockstep = Lockstep(self.policy.transformer)
        self.rewards = Rewards(config, models.reward, self._sampled_items(), reward_device or ranks.device, self.check)
        files = (config.faces.detector, config.faces.embedder, config.rewards.faces.embedder)
        if ranks.is_main and (note := licence_note(*filter(None, files))):
            run.log(note)
        schedule = flow_schedule(config.rollout.steps, config.rollout.shift, ranks.device)
        # Where processes make each pass together, none can make one more.
        checked = self.compiled and ranks.lockstep is None
        log = run.log if ranks.is_main else print
        check = CompiledCheck(self.policy.transformer, config.policy.compile, log) if checked else None
        self.update = PolicyUpdate(self.policy, config, schedule, ranks, check)
        rollouts = RolloutWorker(
            self.policy,
            self.rewards,
            BaseMotion(self.policy, self.items, config, training_guidance(config.rollout), self.placement, self.check),
            self.items,
            config,
            schedule,
            self.update.loss.needs_means,
            self.placement,
            self.check,
            lambda done: self._report("rollouts", done),
        )
        self.iteration = Iteration(rollouts, self.update, ranks, self._report)
        self.evaluator = Evaluator(
            self.policy,
            models.reward,
            self.held_out,
            inputs.judge,
            config,
            run,
            ranks,
            self.placement,
            self.check,
            lambda done: self._report("evaluation", done),
        )
        self.policy_name = policy_name(self.policy.kind, config.policy)
        self.state = TrainingState(policy=self.policy_name, prompts=self.items.digest)
        self.exports = Exports(run, config)
        self.unsaved: Snapshot | None = None
        self.saved_iteration, self.resume_message = -1, ""

    # --- loading -----------------------------------------------------------------------------------------------------

    def _plan(self) -> MemoryPlan:
        references = max((len(item.references) for item in (*self.items, *self.held_out)), default=0)
        ranks = self.ranks
        plan = plan_memory(self.config, ranks.device, references, ranks.count, ranks.least)
        if plan.phases and self.ranks.is_main:
            largest = plan.largest
            self.run.log(
                f"memory plan {plan.name}: expected peak {gib(largest.total)} ({largest.name}) of {gib(plan.available)}"
            )
        return plan

    def _sampled_items(self) -> list[PromptItem]:
        """The items that the run trains on, in order of their place in the set."""
        config = self.config
        used = used_items(config.seed, config.iterations, config.rollout.groups, len(self.items))
        return [self.items[place] for place in used]

    def _adapt(self, policy: Policy, config: TrainConfig) -> None:
        reason = prepare(policy, config, self.ranks.device, self.ranks.context)
        self.compiled = not reason
        self.progress.compiling = {"evaluation", "rollouts", "update"} if self.compiled else set()
        if self.ranks.is_main:
            self.run.log(f"blocks are not compiled: {reason}" if reason else "blocks are compiled at their first use")
        if config.start_lora and not self.from_checkpoint:
            load_lora_into(policy.transformer, read_lora(config.start_lora))

    def _encode(self, policy: Policy, placement: Placement) -> None:
        """All items that the run samples, once: a machine's first process encodes them, its others read the results.

        Without a GPU nothing has to make room, and each item is encoded when it is sampled first.
        """
        wanted = ((self._sampled_items(), self.size), (self.held_out, evaluation_size(self.config)))

        def report(done: float) -> None:
            if self.ranks.is_main:
                self.progress.update(self.run.status().iteration, "encoding", done)

        # Once on every machine, which may have a disk of its own.
        ahead = self.ranks.is_local_main and (self.ranks.device.type != "cpu" or placement.moves)
        own = wanted if ahead else ()
        self.ranks.on_all_ranks(
            lambda: encode_items(policy, placement, own, self.run.encodings_folder, self.check, report)
        )

    # --- the run -----------------------------------------------------------------------------------------------------

    def train(self, resume: bool = False) -> None:
        """From the start or the newest checkpoint to the configured number of iterations.

        Raises Stopped when the run was asked to stop, with all complete iterations saved.
        """
        try:
            if self.from_checkpoint:
                self._restore()
            elif resume:
                self._begin_again()
            self._finish_iteration()
            while self.state.iteration < self.config.iterations:
                self._iterate()
        except Stopped:
            self._save_unsaved()
            raise

    def result(self, state: str) -> Result:
        export = self.run.export_path(max(0, self.saved_iteration))
        return Result(state, self.state.iteration, export if export.is_file() else None)

    @property
    def message(self) -> str:
        """What the user should know: a damaged checkpoint, a reward that is hacked, a LoRA that was not published."""
        texts = (self.resume_message, self.evaluator.warning, self.exports.warning)
        return ". ".join(text for text in texts if text)

    def _restore(self) -> None:
        # The others may not have the main process's disk.
        def load() -> tuple[Snapshot, str]:
            state, message = load_newest(self.run, self.policy_name, self.items.digest, self.update)
            return capture(state, self.update), message

        snapshot, self.resume_message = self.ranks.from_main(load)
        self.state = snapshot.state
        if not self.ranks.is_main:
            restore(snapshot, self.update)
        self.saved_iteration = self.state.iteration
        if self.ranks.is_main:
            self._note()
            self.run.truncate_metrics(self.state.iteration)
            if not self.run.export_path(self.saved_iteration).is_file():
                self._export()
            self.exports.publish()

    def _begin_again(self) -> None:
        self.resume_message = "nothing had been saved before: started again at iteration 0"
        if self.ranks.is_main:
            self._note()
            self.run.truncate_metrics(-1)

    def _iterate(self) -> None:
        """One iteration: rollouts and rewards, then the updates, then evaluation and checkpoint when they are due."""
        self.progress.begin()
        self.ranks.take_times()
        started = time.perf_counter()
        config, iteration = self.config, self.state.iteration
        plan = plan_iteration(config.seed, iteration, config.rollout, len(self.items))
        updates, rewards = self.iteration.collect(plan, plan_windows(config.seed, iteration, config.rollout))
        sampled, rollout_times = time.perf_counter(), self.ranks.take_times()
        if self.saved_iteration < iteration:
            self.unsaved = capture(self.state, self.update)
        self.update.set_progress(iteration / config.iterations)
        metrics = self.iteration.learn(plan, updates, self._shuffled(rewards), self.state.updates)
        self.unsaved = None
        updated, update_times = time.perf_counter(), self.ranks.take_times()
        self._advance(iteration=iteration + 1, updates=self.state.updates + len(updates))
        metrics |= {
            "kind": "train",
            "iteration": iteration + 1,
            "reward_mean": rewards[:, 0].mean().item(),
            "reward_std_in_group": rewards[:, 0].view(-1, config.rollout.group_size).std(1, correction=0).mean().item(),
            **{f"reward_{name}": rewards[:, i].mean().item() for i, name in enumerate(self.rewards.names) if i},
            "seconds_rollout": sampled - started,
            "seconds_rollout_mean": rollout_times.mean,
            "seconds_rollout_slowest": rollout_times.slowest,
            "seconds_update": updated - sampled,
            "seconds_update_mean": update_times.mean,
            "seconds_update_slowest": update_times.slowest,
            **{metric_name(phase): peak for phase, peak in self.placement.take_peaks().items()},
        }
        if self.ranks.is_main:
            self.run.append_metrics(metrics)
        self.ranks.log(metrics, iteration + 1)
        self._finish_iteration()
        self.progress.end(sampled - started, updated - sampled)
        self._report("training", metrics=metrics)

    def _finish_iteration(self) -> None:
        """Evaluation and checkpoint of the present iteration, as far as they are due and not done yet.

        What is evaluated is also saved: the best of them is kept, and a resumed run repeats no evaluation.
        """
        iteration, config = self.state.iteration, self.config
        last = iteration == config.iterations
        due = last or iteration % config.evaluation.every == 0
        evaluate = due and not self.ranks.broadcast(self._evaluated())
        sample, save = self._requested("sample"), self._requested("save")
        if evaluate:
            row = self.evaluator.evaluate(iteration, self.update.ema)
            self.ranks.log({f"held_out/{name}": value for name, value in row.items()}, iteration)
            if self.state.best_margin < row["margin"]:
                self._advance(best_iteration=iteration, best_margin=row["margin"])
        elif sample:
            self.evaluator.write_samples(iteration, self.update.ema)
        due = self.saved_iteration < iteration and iteration % config.checkpoint.every == 0
        if evaluate or due or save:
            self._save(asked=save)

    def _shuffled(self, rewards: Tensor) -> Tensor:
        """The control experiment: the rewards are shuffled within each group."""
        if not self.config.reward.shuffle:
            return rewards
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "shuffle", self.state.iteration))
        groups = rewards.unflatten(0, (-1, self.config.rollout.group_size))
        return torch.cat([group[torch.randperm(len(group), generator=generator)] for group in groups])

    # --- evaluation and saving ---------------------------------------------------------------------------------------

    def _evaluated(self) -> bool:
        """Whether the present iteration was evaluated before the run was interrupted."""
        done = any(row["iteration"] == self.saved_iteration for row in self.run.evaluations())
        return self.saved_iteration == self.state.iteration and done

    def _save(self, asked: bool = False) -> None:
        """Checkpoint and export of the present iteration; `asked`: the user asked for it."""

        def write() -> None:
            if not self.ranks.is_main:
                return
            self._report("saving")
            if self.saved_iteration < self.state.iteration:
                save_checkpoint(self.run.checkpoints_folder, capture(self.state, self.update))
                prune(self.run, self.config.checkpoint.keep, self.state.best_iteration)
            self._export(asked)

        self.ranks.on_all_ranks(write)
        self.saved_iteration = self.state.iteration

    def _save_unsaved(self) -> None:
        """Before the run stops: save the last complete iteration, unless it is saved already."""
        if self.saved_iteration < self.state.iteration:
            if self.unsaved:
                restore(self.unsaved, self.update)
                self.state = self.unsaved.state
            self._save()

    def _export(self, asked: bool = False) -> None:
        """Write the averaged LoRA, as it is evaluated."""
        with self.update.ema.applied():
            lora = to_lora(self.policy.transformer)
        self.exports.write(lora, self.state.iteration, self.policy.kind, asked)

    # --- requests and reports ----------------------------------------------------------------------------------------

    def _advance(self, **changes: float) -> None:
        self.state = dataclasses.replace(self.state, **changes)

    def _report(self, phase: str, within: float = 0.0, metrics: dict[str, float] | None = None) -> None:
        if self.ranks.is_main:
            self._note()
            self.progress.update(self.state.iteration, phase, within, metrics)

    def _note(self) -> None:
        """Show a new message at once, in the status and in the log."""
        if self.message != self.progress.message:
            self.progress.message = self.message
            self.run.set_status(message=self.message)
            if self.message:
                self.run.log(self.message)

    def _requested(self, name: str) -> bool:
        """Whether the user asked for `name`; every process gets the same answer."""
        return self.ranks.broadcast(self.ranks.is_main and self.run.take(name))
