"""A run as text, for nodes, routes and the command line."""

from __future__ import annotations

from .folder import RunFolder
from .heartbeat import rank_signs
from .progress import duration
from .registry import refresh


def sentence(run: RunFolder) -> str:
    """Its state in one line."""
    status = refresh(run)
    total = "?" if status.iterations is None else status.iterations
    name = f"{run.title} ({run.id})" if run.title else run.id
    if status.state == "queued" and status.place:
        return f"{name}: queued, place {status.place}"
    line = f"{name}: {status.state}, iteration {status.iteration} of {total}"
    if status.state == "running":
        if status.phase:
            line += f", {status.phase}" + (f" {status.phase_done:.0%}" if status.phase_done else "")
        if status.eta_seconds is not None:
            line += f", {duration(status.eta_seconds)} left"
    return line


def summary(run: RunFolder) -> str:
    """Its state, what the last evaluation measured, and what went wrong, a line each."""
    status = refresh(run)
    lines = [sentence(run)]
    if status.active and (text := processes(run)):
        lines.append(text)
    last = run.last_evaluation()
    if last and last["iteration"]:
        lines.append(
            f"iteration {last['iteration']} against the base policy: win rate {last['win']:.0%} "
            f"(95% CI {last['win_low']:.0%} to {last['win_high']:.0%}), reward {last['margin']:+.2f}"
        )
        if last.get("identity_gain") is not None:
            judge = "the face report" if last.get("alignment") is None else "TinyWorld's oracle"
            lines.append(f"identity by {judge}: {last['identity_gain']:+.1%}")
    if run.kind == "reward":
        lines += _measured(run)
    lines += [text for text in (status.message, status.last_error) if text]
    if status.state == "queued" and not status.active:
        lines.append("Not started yet: Resume starts it.")
    if status.state in ("failed", "stopped"):
        saved = run.checkpoints()
        lines.append(
            f"Resume continues from iteration {int(saved[-1].name)}."
            if saved
            else (
                "No checkpoint is left: start a new run."
                if run.kind == "policy" and run.training()
                else "Nothing was saved: Resume begins again."
            )
        )
    return "\n".join(lines)


def processes(run: RunFolder) -> str:
    """The processes of a run of several, and when each last gave a sign of life; empty for others."""
    signs = rank_signs(run)
    if not signs:
        return ""
    machines = len({machine for _, machine, _ in signs})
    ages = ", ".join(f"{rank} {seconds:.0f} s" for rank, _, seconds in signs)
    return f"{len(signs)} processes on {machines} machine{'s' * (machines > 1)}, last sign of life: {ages}"


def _measured(run: RunFolder) -> list[str]:
    """What a run that trains a reward has measured last, and where the reward is."""
    rows = [row for row in run.read_metrics() if row.get("accuracy") is not None]
    lines = (
        [f"step {rows[-1]['iteration']}: agrees with {rows[-1]['accuracy']:.1%} of the held-out pairs"] if rows else []
    )
    return [*lines, f"reward: {run.reward_folder}"] if run.has_reward() else lines
