"""What the nodes show of a run, and waiting for one."""

from __future__ import annotations

import time

import comfy.model_management as management
import comfy.utils

from ..trainers.errors import UserError
from ..trainers.runs.folder import RunFolder
from ..trainers.runs.registry import is_alive, refresh
from ..trainers.runs.summary import sentence

NO_WAIT, FIRST_LORA, END = "no", "for the first LoRA", "for the end"
WAITS = [NO_WAIT, FIRST_LORA, END]
CHECKS_PER_SECOND = 5


def wait_for_run(run: RunFolder, until: str) -> None:
    """Wait for the run's first LoRA or its end.

    Raises InterruptProcessingException when the run is stopped meanwhile, and UserError when it fails or has no LoRA.
    """
    bar = comfy.utils.ProgressBar(refresh(run).iterations or 1)
    waited = False
    while is_alive(run):
        waited = True
        if until == FIRST_LORA and _has_trained_lora(run):
            return
        bar.update_absolute(run.status().iteration)
        management.throw_exception_if_processing_interrupted()
        time.sleep(1 / CHECKS_PER_SECOND)
    status = refresh(run)
    if waited and status.state == "stopped":
        raise management.InterruptProcessingException
    if status.state in ("failed", "damaged") or not _has_trained_lora(run):
        raise UserError(f"{sentence(run)}; {status.last_error or 'it has no LoRA: resume it, or choose another run'}")


def _has_trained_lora(run: RunFolder) -> bool:
    """Whether it has a LoRA of a later iteration than 0, which is the one it started from."""
    return any(export.iteration for export in run.exports())


def base_model_warning(run: RunFolder) -> str:
    """Says so when a LoRA of the run is that of iteration 0, in which nothing is trained yet; empty otherwise."""
    newest, best = run.newest(), run.best()
    try:
        start = "the LoRA that the run started from" if run.config().start_lora else "the base model"
    except UserError:
        start = "the base model"
    if newest and newest.iteration == 0:
        return f"`latest` and `best` are iteration 0, {start}: nothing is trained yet"
    if best and best.iteration == 0:
        return f"`best` is iteration 0, {start}: no evaluation since then is better"
    return ""


def shown(run: RunFolder, text: str, warning: str = "") -> dict:
    """What the editor and the history show of the run: text, its id for the node's buttons, and numbers.

    `reward_margin` and `win_rate` are those of the last evaluation against the base policy, None before the first.
    """
    status = refresh(run)
    last = next((row for row in reversed(run.evaluations()) if row["iteration"]), {})
    values = {
        "identity_grpo_run": run.id,
        "state": status.state,
        "iteration": status.iteration,
        "iterations": status.iterations,
        "evaluated_iteration": last.get("iteration"),
        "reward_margin": last.get("margin"),
        "win_rate": last.get("win"),
    }
    # Core joins the tuples of all values of a key.
    return {"text": (text,), "warning": (warning,) if warning else ()} | {n: (value,) for n, value in values.items()}
