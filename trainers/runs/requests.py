"""Asking a run that trains to save or to sample: what it will do, and when."""

from __future__ import annotations

from ..errors import UserError
from .folder import RunFolder
from .registry import refresh


def save_now(run: RunFolder) -> str:
    """Ask for a checkpoint and, of a policy, its LoRA, which is kept for good; returns after which iteration they are
    written.

    Raises UserError for a run that does not train.
    """
    return _ask(run, "save", f"run {run.id} will save")


def sample_now(run: RunFolder) -> str:
    """Ask for clips of the first held-out items; returns after which iteration they are sampled.

    Raises UserError for a run that does not train, or trains a reward.
    """
    if run.kind == "reward":
        raise UserError(f"run {run.id} trains a reward and has no clips; its log shows what it measures")
    return _ask(run, "sample", f"run {run.id} will sample held-out clips")


def _ask(run: RunFolder, request: str, answer: str) -> str:
    status = refresh(run)
    if status.state not in ("starting", "running"):
        raise UserError(f"run {run.id} is {status.state} and cannot {request}: {_instead(run, status.state, request)}")
    run.request(request)
    after = status.iteration if status.state == "starting" else status.iteration + 1
    last = after if status.iterations is None else min(after, status.iterations)
    return f"{answer} after iteration {last}"


def _instead(run: RunFolder, state: str, request: str) -> str:
    """What there is of a run that does not train now."""
    if state == "hung":
        return "its process gives no sign of life; stop it, then resume it"
    if request == "sample":
        clips = run.clips()
        newest = f"its newest clips are of iteration {int(clips[0][0].parent.name)}" if clips else "it has no clips"
        return newest if state == "finished" else f"{newest}; resume it first"
    if state == "stopping":
        return "it saves what is finished before it ends"
    if state == "finished":
        return "its last LoRA is saved already"
    saved = run.checkpoints()
    return f"it is saved at iteration {int(saved[-1].name)}" if saved else "nothing was saved, Resume begins again"
