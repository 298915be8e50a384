"""Starting a run from settings: at most one run of the same settings, at most one run on a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..config import TrainConfig
from ..errors import UserError
from ..prompts import PromptSet, save_prompt_set
from . import launcher
from .devices import busy, device_name, holders
from .folder import RunFolder, run_name
from .registry import is_alive, list_runs, refresh


def freeze_prompts(prompts: PromptSet, root: Path) -> str:
    """What a configuration calls this set: `tinyworld`, or a CSV of its own below `root`, named by its content.

    A run then keeps its items when the file or graph that they came from changes.
    """
    if prompts.source == "tinyworld":
        return prompts.source
    path = root / prompts.digest[:16] / "prompts.csv"
    return str(path if path.is_file() else save_prompt_set(prompts.items, path))


def find_same(root: Path, config: TrainConfig, name: str) -> RunFolder | None:
    """The newest run under `root` of this name with these settings."""
    wanted = config.with_absolute_paths()
    for run in reversed(list_runs(root)):
        try:
            same = run.config() == wanted
        except UserError:
            continue  # of another version
        if same and run.name == run_name(name, config):
            return run
    return None


def start_once(root: Path, config: TrainConfig, name: str, gpus: Sequence[int]) -> tuple[RunFolder, bool]:
    """The run of these settings, and whether it was started now: one that exists is left as it is.

    gpus: CUDA devices as this process counts them; none: the CPU. Raises UserError naming the run that has a device.
    """
    known = find_same(root, config, name)
    # One that ended before its first checkpoint has nothing to show or to resume: it begins again.
    if known is not None and (is_alive(known) or known.checkpoints()):
        return known, False
    require_free(root, "cuda" if gpus else "cpu", gpus)
    run = known or RunFolder.create(root, config, name)
    launcher.start(run, resume=known is not None, gpus=gpus)
    return run, True


def resume(root: Path, run: RunFolder) -> None:
    """Continue a run on the devices that it had; one that ended before its first checkpoint begins again.

    Raises UserError when it cannot.
    """
    status = refresh(run)
    if is_alive(run):
        raise UserError(f"run {run.id} is {status.state} already")
    if status.state == "finished":
        raise UserError(f"run {run.id} is finished; to train further, start a run from its LoRA")
    require_free(root, "cuda" if status.gpus else "cpu", status.gpus)
    launcher.start(run, resume=True, gpus=status.gpus)


def require_free(root: Path, kind: str, gpus: Sequence[int] = ()) -> None:
    """Raises UserError naming the run that has one of these devices, or that is about to take it and lies in `root`.

    kind: torch's name of the device type; gpus: which CUDA devices, as this process counts them.
    """
    titles = {device_name(kind, gpu): f"GPU {gpu}" for gpu in gpus} or {kind: f"the {kind.upper()}"}
    for device, holder in holders(titles).items():
        raise busy(titles[device], holder)
    for run in list_runs(root):
        status = refresh(run)
        theirs = set(status.gpus)
        # Its process takes the device only when it has loaded torch.
        if status.state == "starting" and (theirs & set(gpus) or (not theirs and kind == "cpu")):
            raise UserError(
                f"run {run.id} is just starting there; stop that run, wait for its end, or choose another device"
            )
