"""A run that trains a reward from votes, in its process: as `grpo.trainer` for one that trains a policy."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import RewardRunConfig
from ..errors import Stopped
from ..files import remove, write_atomic
from ..runs.ending import Ending
from ..runs.folder import RunFolder
from ..runs.progress import Progress, ProgressReport
from .reward_train import adapted_recipe, measure_files

if TYPE_CHECKING:
    import torch

    from ..grpo.trainer import Result
    from ..preference.stored import VotedPairs
    from ..preference.train import Trained
    from ..ranks import Ranks


def train_reward_run(
    config: RewardRunConfig,
    run: RunFolder,
    pairs: VotedPairs,
    resume: bool,
    progress: Callable[[ProgressReport], None],
    ranks: Ranks,
) -> Result:
    """Train from the start or, with `resume`, from the newest checkpoint, and leave status, metrics, checkpoints and
    the reward in `run`.

    Ctrl-C, SIGTERM and a `stop` request end it after the current step, which is saved. Any error leaves state `failed`.
    """
    from ..grpo.trainer import Result

    ending = Ending(run, ranks)
    job = _Job(config, run, pairs, Progress(run, config.iterations, progress), ranks, ending.check)
    with ending.awaited():
        job.train(resume)
    step = run.status().iteration
    if ending.state == "stopped":
        saved = run.checkpoints()
        step = int(saved[-1].name) if saved else 0
    ending.write(iteration=step, message=job.message, phase="")
    return Result(ending.state, step, None)


class _Job:
    """One process's part of such a run."""

    def __init__(
        self,
        config: RewardRunConfig,
        run: RunFolder,
        pairs: VotedPairs,
        progress: Progress,
        ranks: Ranks,
        check: Callable[[], None],
    ) -> None:
        self.config, self.run, self.pairs, self.progress, self.ranks = config, run, pairs, progress, ranks
        self.check, self.message, self.began = check, "", time.monotonic()
        self.step = self.measured = 0
        progress.typical = False  # until a measurement of the held-out pairs has been timed

    def train(self, resume: bool) -> None:
        from ..preference.recipe import RewardTraining
        from ..preference.train import train_reward

        config, run, device = self.config, self.run, self.ranks.device
        base, start = Path(config.base_model), Path(config.start) if config.start else None
        first = self.ranks.from_main(lambda: self._first_step(resume))
        if first is None:
            return
        self.step = first
        given = {"learning_rate": config.learning_rate, "seed": config.seed, "patience": config.patience}
        recipe = adapted_recipe(config.preset, base, device, config.low_memory, start, given)
        del recipe["epochs"]
        every = max(1, config.iterations // config.evaluations)
        training = RewardTraining(steps=config.iterations, evaluate_every=every, save_every=every, **recipe)
        self.progress.begin()
        made = train_reward(
            base,
            self.pairs.train,
            run.reward_folder,
            training,
            device,
            self.pairs.held_out,
            self._report,
            start=start,
            resume=first > 0,
            states=run.checkpoints_folder,
            ask=self._asked,
            ranks=self.ranks,
        )
        self.ranks.from_main(lambda: self._measure(made, training.frozen))

    def _measure(self, made: Trained, dtype: torch.dtype) -> None:
        """Write how well the reward in its files agrees with the held-out votes."""
        found: dict[str, Any] = {"steps": made.steps, "seconds": round(made.seconds, 1), "loss": made.loss}
        if made.accuracy:
            self.progress.update(self.step, "measuring")
            held_out, base = self.pairs.held_out, Path(self.config.base_model)
            found["held_out"] = measure_files(self.run.reward_folder, base, held_out, self.ranks.device, dtype)
            self.message = (
                f"the reward is that of step {made.steps}: {made.accuracy.without_ties:.1%} of the held-out pairs"
            )
        write_atomic(self.run.reward_folder / "training.json", json.dumps(found, indent=1) + "\n")

    def _first_step(self, resume: bool) -> int | None:
        """The step it continues from; None where the reward is written already: a run may die after its last step."""
        run = self.run
        if run.has_reward():
            return None
        remove(run.reward_folder)  # what a killed writer left
        saved = run.checkpoints() if resume else []
        step = int(saved[-1].name) if saved else 0
        run.truncate_metrics(step)
        return step

    def _asked(self) -> str | None:
        try:
            self.check()
        except Stopped:
            return "stop"
        return "save" if self.run.requested("save") and self.ranks.is_main and self.run.take("save") else None

    def _report(self, event: dict[str, Any]) -> None:
        """A row of metrics and the status, after every step and measurement."""
        step = event["step"]
        if "accuracy" in event:
            found = event["accuracy"]
            print(
                f"step {step}: {found['without_ties']:.1%} of the held-out pairs, loss {found['loss']:.4f}", flush=True
            )
            if step < self.step or step == self.measured:
                return  # of the best step again, as it is written: rows are in the order of steps
            self.measured = step
            row = {
                "kind": "evaluation",
                "iteration": step,
                "accuracy": found["without_ties"],
                "accuracy_with_ties": found["with_ties"],
                "preference_loss": found["loss"],
            }
        else:
            now = time.monotonic()
            row = {
                "kind": "train",
                "iteration": step,
                "preference_loss": event["loss"],
                "learning_rate": event["rate"],
                "seconds_update": now - self.began,
            }
            self.began, self.step = now, step
            self.progress.end(0.0, 1.0)
            self.progress.begin()
            self.progress.typical = self.measured > 0
        self.run.append_metrics(row)
        self.progress.update(step, "training", metrics=row)
