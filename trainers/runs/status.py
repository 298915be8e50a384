"""The status of a run: what status.json may say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..files import read_regular
from .machines import MOST_PROCESSES, Machines

State = Literal["queued", "starting", "running", "stopping", "hung", "stopped", "finished", "failed", "damaged"]
LONGEST = 1e11  # seconds: three thousand years
ALIVE: tuple[State, ...] = ("starting", "running", "stopping", "hung")
"""States in which a process of the run should exist."""
WAITS = "machine 0 waits for the others"
"""How the message of a run begins that waits for its other machines."""
BEFORE_FIRST_STEP = {"phase": "", "phase_done": 0.0, "eta_seconds": None, "slowest_seconds": None}
"""What a process writes at its start: what an earlier one wrote would be shown as its own."""


class RunStatus(BaseModel):
    """How a run stands, as its process wrote it last.

    `pid` and `pid_started` (processes.start_token) name the process on the machine `host`, `group` its process group;
    `folder`: the run's when this was written.
    `gpus`: the CUDA devices it was started on, none of them: the CPU; None: not known, as of one started in a terminal.
    `processes`: on each of its `machines`. `phase` of the iteration in
    flight is done to the fraction `phase_done`. `eta_seconds`: None while it is not known. `slowest_seconds`: what the
    longest iteration of the process took; None before its first. `place`: in the queue for its devices, 1 is the next.
    `updated`: seconds since the epoch.

    State `queued`: it waits for a device or, without a process, was never started. State `hung`: the process lives but
    gives no sign of life; it is never written. State `damaged`: the file cannot be read.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    state: State
    pid: int | None = Field(None, ge=0, lt=2**31)
    pid_started: str | float | None = None
    group: int | None = Field(None, ge=0, lt=2**31)
    host: str = ""
    folder: str = ""
    gpus: list[Annotated[int, Field(ge=0, lt=1024)]] | None = None
    processes: int = Field(1, ge=1, le=MOST_PROCESSES)
    machines: Machines = Machines()
    iteration: int = Field(0, ge=0, lt=2**63)
    iterations: int | None = Field(None, ge=0, lt=2**63)
    phase: str = ""
    phase_done: float = Field(0.0, ge=0, le=1)
    eta_seconds: float | None = Field(None, ge=0, le=LONGEST)
    slowest_seconds: float | None = Field(None, ge=0, le=LONGEST)
    place: int | None = Field(None, ge=1, lt=2**31)
    message: str = ""
    last_error: str = ""
    updated: float | None = Field(None, ge=0, le=LONGEST)

    @property
    def active(self) -> bool:
        """Whether a process of the run should exist: it trains, or waits for its turn."""
        return self.state in ALIVE or (self.state == "queued" and self.pid is not None)


def waits_for_machines(status: RunStatus) -> bool:
    """Whether the run's processes have started, and those of other machines have not joined them: nothing is in
    flight."""
    return status.state == "starting" and status.message.startswith(WAITS)


def waiting_ended(status: RunStatus) -> dict[str, str]:
    """What to change in the status of a run that has ended: one without a step waited for what its message says."""
    return {} if status.phase else {"message": ""}


def read_status(path: Path) -> RunStatus:
    """The status in the file; one of state `damaged` that says why when it cannot be read."""
    try:
        return RunStatus.model_validate_json(read_regular(path), strict=True)
    except (OSError, ValidationError) as error:
        reason = error.errors()[0] if isinstance(error, ValidationError) else None
        said = f"{'.'.join(map(str, reason['loc'])) or 'the file'}: {reason['msg']}" if reason else str(error)
        return RunStatus(state="damaged", last_error=f"{path.name} cannot be read ({said})")
