"""Starting a run from settings: at most one run of the same settings, at most one run on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import RunConfig, change_config
from ..errors import UserError
from . import launcher
from .claims import claims
from .devices import busy, device_name, hold_runs, holders
from .folder import RunFolder, run_name
from .machines import Machines
from .queue import starting_on
from .registry import is_alive, list_runs, refresh
from .status import BEFORE_FIRST_STEP, RunStatus

if TYPE_CHECKING:
    from ..prompts import PromptSet


def freeze_prompts(prompts: PromptSet, root: Path) -> str:
    """What a configuration calls this set: `tinyworld`, or a CSV of its own below `root`, named by its content.

    A run then keeps its items when the file or graph that they came from changes.
    """
    from ..prompts import save_prompt_set

    if prompts.source == "tinyworld":
        return prompts.source
    path = root / prompts.digest[:16] / "prompts.csv"
    return str(path if path.is_file() else save_prompt_set(prompts.items, path))


def find_same(root: Path, config: RunConfig, name: str) -> RunFolder | None:
    """The newest run under `root` of this name with these settings."""
    wanted = config.with_absolute_paths()
    for run in reversed(list_runs(root)):
        try:
            same = run.settings() == wanted
        except UserError:
            continue  # of another version
        if same and run.name == run_name(name, config):
            return run
    return None


def start_once(
    root: Path,
    config: RunConfig,
    name: str,
    gpus: Sequence[int],
    wait: bool = False,
    processes: int = 1,
    machines: Machines = launcher.ALONE,
) -> tuple[RunFolder, bool]:
    """The run of these settings, and whether it was started now: one that exists is left as it is.

    gpus: CUDA devices as this process counts them; none: the CPU, with so many processes. machines: as
    `launcher.start`. wait: a run that finds one of them taken waits for its turn in a process of its own; else this
    raises UserError naming the run that has it.
    """
    with hold_runs(root):
        known = find_same(root, config, name)
        # One that ended before its first checkpoint has nothing to show or to resume: it begins again.
        if known is not None and (is_alive(known) or known.checkpoints() or known.has_reward()):
            return known, False
        devices = devices_for(root, "cuda" if gpus else "cpu", gpus, wait)
        run = known or RunFolder.create(root, config, name)
        queue = devices if wait else ()
        launcher.start(run, resume=was_started(run), processes=processes, gpus=gpus, wait=queue, machines=machines)
    return run, True


def resume(root: Path, run: RunFolder, wait: bool = False) -> None:
    """Continue a run on the devices and machines that it had, on the first GPUs where these are not known; one that
    ended before its first checkpoint begins again.

    wait: as in `start_once`. Raises UserError when it cannot.
    """
    with hold_runs(root):
        status = _require_idle(run)
        if status.state == "finished":
            raise UserError(f"run {run.id} is finished; to train further, start a run from its LoRA")
        gpus = first_gpus(run, status.processes) if status.gpus is None else status.gpus
        devices = devices_for(root, "cuda" if gpus else "cpu", gpus, wait)
        launcher.start(
            run,
            resume=was_started(run),
            processes=status.processes,
            gpus=gpus,
            wait=devices if wait else (),
            machines=status.machines,
        )


def first_gpus(run: RunFolder, processes: int) -> list[int]:
    """The CUDA devices that so many processes of the run take in a terminal; none on a machine without."""
    import torch

    return list(range(min(torch.cuda.device_count(), processes + run.settings().rewards_have_a_device)))


def claim(run: RunFolder) -> None:
    """Make this process the run's: its status is `starting`. Raises UserError when the run has a process already."""
    with hold_runs(run.path.parent):
        _require_idle(run)
        run.prepare()
        run.set_status(state="starting", group=None, **BEFORE_FIRST_STEP)


def _require_idle(run: RunFolder) -> RunStatus:
    status = refresh(run)
    if status.active:
        raise UserError(f"run {run.id} is {status.state} already")
    return status


def was_started(run: RunFolder) -> bool:
    """Whether a process has ever begun it: a copy has none before its first start."""
    return run.status().state != "queued"


def copy_run(run: RunFolder, changes: dict[str, Any], name: str | None = None) -> RunFolder:
    """A new run beside this one with its settings and the `changes` (nested dict), at iteration 0 and not started.

    It has no file of the other run, which may be deleted. name: how its id begins, that of the other if None. Raises
    UserError for settings that cannot be read or cannot be changed so.
    """
    copy = RunFolder.create(run.path.parent, change_config(run.settings(), changes), name or run.name)
    status = run.status()
    copy.set_status(gpus=status.gpus, processes=status.processes, machines=asdict(status.machines))
    return copy


def devices_for(root: Path, kind: str, gpus: Sequence[int] = (), wait: bool = False) -> list[str]:
    """The names of these devices (devices.device_name). They must be free, unless the run is to `wait` for them.

    kind: torch's name of the device type; gpus: which CUDA devices, as this process counts them. Raises UserError
    naming the run that has one, waits for it, or is about to take it and lies in `root`.
    """
    titles = {device_name(kind, gpu): f"GPU {gpu}" for gpu in gpus} or {kind: f"the {kind.upper()}"}
    if wait:
        return list(titles)
    for device, holder in holders(titles).items():
        raise busy(titles[device], holder)
    for claim in claims(titles):
        raise UserError(
            f"run {claim.run.name} waits for {' and '.join(titles.values())} and is next; wait as well (`--wait`), "
            "stop that run, or choose another device"
        )
    if (run := starting_on(root, kind, gpus)) is not None:
        raise UserError(
            f"run {run.id} is just starting there; stop that run, wait for its end, or choose another device"
        )
    return list(titles)
