"""`runs`: list runs; show, control, copy, export and delete one; order the queue. Without torch."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from ..errors import UserError, command_line, meant, shown
from ..files import write_atomic
from ..runs import claims, launcher, trash
from ..runs.devices import holders
from ..runs.folder import RunFolder
from ..runs.history import metrics_table
from ..runs.progress import duration
from ..runs.registry import find, list_runs, misnamed, refresh
from ..runs.requests import sample_now, save_now
from ..runs.starting import copy_run
from ..runs.summary import sentence
from .numbers import number_between
from .options import RUN_HELP, add_runs_folder, add_set, parse_settings
from .tables import markdown_table

LONGEST_WAIT = 86_400.0
LONGEST_DAYS = 36_500.0
ACTIONS = {
    "list": "all runs",
    "show": "one run",
    "stop": "end it, or take it out of the queue",
    "save": "write a checkpoint and a LoRA after the iteration in flight",
    "sample": "sample held-out clips after the iteration in flight",
    "queue": "all runs of this user that wait for a device, in the order of their turns",
    "move": f"change its place in the queue: {', '.join(claims.MOVES)}",
    "rename": "give it a title",
    "copy": "a new run with its settings and the changes of --set, not started",
    "export": "its metrics as --csv FILE",
    "delete": "move it to the trash",
    "restore": "bring it back from there",
    "empty-trash": "remove what was deleted for good",
}
NEED_RUN = ("move", "rename", "delete")
"""Actions that take no run by default."""
NO_RUN = ("list", "queue", "empty-trash")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        default="list",
        metavar="ACTION",
        help=f"{'; '.join(f'{name}: {text}' for name, text in ACTIONS.items())} (default: list)",
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help=f"{RUN_HELP}; {', '.join(NEED_RUN)} need one")
    parser.add_argument(
        "to",
        nargs="?",
        metavar="TO",
        help=f"rename: the title, an empty one removes it; move: {', '.join(claims.MOVES)}",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="export: where to write the table")
    parser.add_argument("--name", help="copy: how the new run's id begins (default: as that of the other)")
    parser.add_argument(
        "--days",
        type=number_between(0, LONGEST_DAYS, float),
        default=0.0,
        help="empty-trash: only what was deleted at least so many days ago (default: 0, everything)",
    )
    add_set(parser)
    parser.add_argument(
        "--wait",
        type=number_between(0, LONGEST_WAIT, float),
        default=60.0,
        help="stop: seconds before the run is ended by force (default: 60)",
    )
    add_runs_folder(parser)


def main(options: Namespace) -> int:
    """Raises UserError for an option of another action: nobody should believe that it had an effect."""
    action, root, wanted = options.action, options.runs, options.run or "latest"
    _refuse_unused(options)
    if action == "list":
        return _list(root)
    if action == "queue":
        return _queue()
    if action == "empty-trash":
        return _empty_trash(root, options.days)
    if action == "restore":
        print(f"restored {trash.restore(root, wanted).path}")
        return 0
    run = find(root, wanted)
    if action == "rename":
        return _rename(run, options.to)
    if action == "move":
        return _move(run, options.to)
    if action == "copy":
        return _copy(run, parse_settings(options.set), options.name)
    if action == "export":
        return _export(run, options.csv)
    if action == "delete":
        return _delete(run)
    if action in ("save", "sample"):
        print((save_now if action == "save" else sample_now)(run))
        return 0
    return _show(run) if action == "show" else _stop(run, options.wait)


def _refuse_unused(options: Namespace) -> None:
    """Raises UserError for an unknown action, and for an argument that it does not use or that is missing."""
    action, run = options.action, options.run
    if action not in ACTIONS:
        is_id = any(found.id.startswith(action) for found in list_runs(options.runs))
        show = f"; `{command_line('runs', 'show', action, '--runs', options.runs)}` shows that run"
        advice = show if is_id else meant(action, ACTIONS)
        raise UserError(f"`{shown(action)}` is no action; choose one of {', '.join(ACTIONS)}{advice}")
    used = {
        "to": ("rename", "move"),
        "csv": ("export",),
        "name": ("copy",),
        "set": ("copy",),
        "days": ("empty-trash",),
    }
    for name, actions in used.items():
        if getattr(options, name) and action not in actions:
            given = f"`{shown(options.to)}`" if name == "to" else f"--{name}"
            raise UserError(f"{given} has no meaning for runs {action}; it belongs to runs {' and '.join(actions)}")
    if run is not None and action in NO_RUN:
        raise UserError(f"`{shown(run)}` has no meaning for runs {action}, which takes no run")
    if run is None and action in NEED_RUN:
        raise UserError(f"runs {action} needs a run: its id, or the beginning of one")


def _list(root: Path) -> int:
    runs, deleted = list_runs(root), trash.deleted_runs(root)
    print(markdown_table([_row(run) for run in runs]) if runs else f"no runs in {root.absolute()}")
    for path in misnamed(root):
        print(f"\nnot listed is {shown(path)}: rename the folder, an id has lower-case letters, digits and dashes")
    if deleted:
        print(f"\nin the trash: {', '.join(run.id for run in deleted)}; `{command_line('runs', 'restore')} RUN`")
    return 0


def _queue() -> int:
    rows = []
    for claim in claims.claims():
        place = len(claims.earlier(claim)) + 1
        busy = sorted({holder.name for holder in holders(claim.devices).values()})
        rows.append(
            {"place": place, "run": claim.run.name, "waits for": ", ".join(claim.devices), "taken by": ", ".join(busy)}
            | {"folder": claim.run.parent}
        )
    print(markdown_table(rows) if rows else "no run waits for a device")
    return 0


def _move(run: RunFolder, to: str | None) -> int:
    if to is None:
        line = command_line("runs", "move", run.id)
        raise UserError(f"runs move needs where to: `{line} {claims.MOVES[0]}`, or {', '.join(claims.MOVES[1:])}")
    print(f"{run.id}: place {claims.move(run.path, to)} in the queue")
    return 0


def _rename(run: RunFolder, title: str | None) -> int:
    if title is None:
        raise UserError(f"runs rename needs a title: `{command_line('runs', 'rename', run.id)} TITLE`")
    run.rename(title)
    print(f"{run.id}: {run.title or 'no title'}")
    return 0


def _copy(run: RunFolder, changes: dict[str, Any], name: str | None) -> int:
    copy = copy_run(run, changes, name)
    print(f"run {copy.path}\nstart {command_line('resume', copy.path)}")
    return 0


def _export(run: RunFolder, file: Path | None) -> int:
    """Write the metrics as CSV."""
    if file is None:
        raise UserError("runs export needs a file: --csv metrics.csv")
    if not file.absolute().parent.is_dir() or file.is_dir():
        raise UserError(f"--csv {file}: give a file in a folder that exists")
    table, rows, columns = metrics_table(run)
    write_atomic(file, table, sync=False)
    print(f"{run.id}: {rows} rows of {columns} columns: {file.absolute()}")
    return 0


def _delete(run: RunFolder) -> int:
    trash.delete(run)
    back = command_line("runs", "restore", run.id, "--runs", run.path.parent)
    print(f"{run.id} is in the trash for {trash.KEPT_DAYS:.0f} days; undo: {back}")
    return 0


def _empty_trash(root: Path, days: float) -> int:
    removed = trash.empty(root, days)
    print(f"removed {', '.join(removed)}" if removed else "nothing to remove")
    return 0


def _row(run: RunFolder) -> dict[str, Any]:
    status = refresh(run)
    left = status.eta_seconds if status.state == "running" else None
    return {
        "run": run.id,
        "title": run.title,
        "state": status.state + (f" ({status.place})" if status.place else ""),
        "iteration": f"{status.iteration}/{'?' if status.iterations is None else status.iterations}",
        "win rate": _win_rate(run),
        "left": duration(left) if left is not None else "",
        "updated": _ago(status.updated),
    }


def _show(run: RunFolder) -> int:
    status = refresh(run)
    print(f"{sentence(run)}, updated {_ago(status.updated)}")
    print(f"folder   {run.path}")
    try:
        config = run.settings()
    except UserError as error:
        print(f"settings {error}")
    else:
        what = (
            f"{config.policy.source} by {config.reward.source} on {config.prompts}"
            if run.kind == "policy"
            else f"a reward on {config.pairs}, base model {config.base_model}"
        )
        print(f"trains   {what}, preset {config.preset}, seed {config.seed}")
    for name in ("message", "last_error"):
        if text := getattr(status, name):
            print(f"{name.replace('_', ' ')}: {text}")
    if evaluations := run.evaluations():
        names = ("iteration", "reward_mean", "win", "tie", "loss", "margin", "identity", "alignment")
        print("\n" + markdown_table([{n: row[n] for n in names if row.get(n) is not None} for row in evaluations[-5:]]))
    if newest := run.newest():
        print(f"\nLoRA     {newest.path}")
    if run.kind == "reward":
        _show_measured(run)
    return 0


def _show_measured(run: RunFolder) -> None:
    """What a run that trains a reward has measured, and the reward."""
    rows = [row for row in run.read_metrics() if row.get("kind") == "evaluation"]
    names = ("iteration", "accuracy", "accuracy_with_ties", "preference_loss")
    if rows:
        print("\n" + markdown_table([{name: row.get(name) for name in names} for row in rows[-5:]]))
    if run.has_reward():
        print(f"\nreward   {run.reward_folder}")


def _stop(run: RunFolder, wait: float) -> int:
    print(f"{run.id}: {launcher.stop(run, wait)}")
    return 0


def _win_rate(run: RunFolder) -> str:
    last = run.last_evaluation()
    return f"{last['win']:.0%}" if last and last["iteration"] > 0 else ""


def _ago(updated: float | None) -> str:
    return f"{duration(max(0.0, time.time() - updated))} ago" if updated else ""
