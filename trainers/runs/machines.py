"""On which machines and devices the processes of a run start, and the file of accelerate that says so."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.plain_yaml import parse_yaml
from ..errors import UserError, meant, shown
from ..files import read_regular

MOST_MACHINES = 1024
MOST_PROCESSES = 64
"""Of one machine."""
FILES = (".yaml", ".yml", ".json")
SPLIT = (
    "the transformer is split by `memory.plan=sharded`, and a video's computation by `parallel.context`, settings of "
    "the run"
)
TPU = "runs train on NVIDIA GPUs or CPUs"
REMEDIES = {
    "mixed_precision": "the precision is `policy.dtype`, a setting of the run",
    "fp8_config": "FP8 is `policy.fp8`, a setting of the run",
    "dynamo_config": "compiling is `policy.compile`, a setting of the run",
    "deepspeed_config": SPLIT,
    "fsdp_config": SPLIT,
    "megatron_lm_config": SPLIT,
    "parallelism_config": SPLIT,
    "distributed_type": SPLIT,
    "compute_environment": "the machines are started by you, or by SLURM or SkyPilot",
    "rdzv_backend": "machines meet at main_process_ip and main_process_port",
    "mpirun_config": "processes are started without MPI",
    "downcast_bf16": TPU,
    "tpu_name": TPU,
    "tpu_zone": TPU,
    "tpu_env": TPU,
    "tpu_vm": TPU,
    "tpu_use_cluster": TPU,
    "tpu_use_sudo": TPU,
}
"""What to do in place of a key, or of a value of it, that is not supported."""
ALLOWED: dict[str, tuple[Any, ...]] = {
    "compute_environment": ("LOCAL_MACHINE",),
    "distributed_type": ("NO", "MULTI_GPU", "MULTI_CPU"),
    "mixed_precision": ("no",),
    "rdzv_backend": ("static",),
    "main_training_function": ("main",),
    "downcast_bf16": ("no", False),
    "same_network": (True, False),
    "debug": (False,),
    "enable_cpu_affinity": (False,),
    "tpu_use_cluster": (False,),
    "tpu_use_sudo": (False,),
}
"""Keys that change nothing here, with the values that mean so."""
HOST = re.compile(r"[0-9A-Za-z:\[][0-9A-Za-z.:\[\]_-]*")
READ = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port", "gpu_ids", "use_cpu")


@dataclass(frozen=True)
class Machines:
    """`count` machines with equally many processes each, of which this is number `rank`.

    They meet at `rendezvous`, host:port of machine 0; empty on one machine alone.
    """

    count: int = 1
    rank: int = 0
    rendezvous: str = ""


@dataclass(frozen=True)
class LaunchConfig:
    """What starts of a run: `processes` on each of the `machines`. `gpus`: of this one; empty: the CPU, None: the
    first."""

    processes: int = 1
    machines: Machines = Machines()
    gpus: tuple[int, ...] | None = None


def read_launch_config(path: Path) -> LaunchConfig:
    """The launch configuration in a file as `accelerate config` writes it, in YAML or JSON.

    Read are READ; `num_processes` counts those of all machines. Raises UserError naming the file, the key and what to
    do, for impossible values and for everything that accelerate does by such a file and a run does not.
    """
    try:
        found = parse_yaml(read_regular(path).decode())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}; write it with `accelerate config`") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no launch configuration; write it with `accelerate config`")
    for key, value in found.items():
        _require_supported(path, str(key), value)

    def number(key: str, least: int, most: int, default: int | None = None) -> int:
        value = found.get(key, default)
        if type(value) is not int or not least <= value <= most:
            raise _wrong(path, key, value, f"give a whole number from {least} to {most}")
        return value

    machines = number("num_machines", 1, MOST_MACHINES, 1)
    processes = number("num_processes", 1, machines * MOST_PROCESSES)
    if processes % machines:
        raise _wrong(
            path, "num_processes", processes, f"it counts the processes of all {machines} machines; give a multiple"
        )
    processes //= machines
    address = ""
    if machines > 1:
        host = found.get("main_process_ip")
        if not (isinstance(host, str) and HOST.fullmatch(host)):
            raise _wrong(path, "main_process_ip", host, "give the name or address of machine 0")
        address = f"{host}:{number('main_process_port', 1, 65535)}"
    rank = number("machine_rank", 0, machines - 1, 0)
    return LaunchConfig(processes, Machines(machines, rank, address), _gpus(path, found, processes))


def _gpus(path: Path, found: dict[str, Any], processes: int) -> tuple[int, ...] | None:
    on_cpu, ids = found.get("use_cpu", False), found.get("gpu_ids")
    if type(on_cpu) is not bool:
        raise _wrong(path, "use_cpu", on_cpu, "give true or false")
    if on_cpu:
        return ()
    if ids in (None, "all"):
        return None
    numbers = str(ids).split(",")
    if not all(number.strip().isdecimal() for number in numbers) or len(set(numbers)) < len(numbers):
        raise _wrong(path, "gpu_ids", ids, "give `all`, or numbers as 0,1")
    if len(numbers) < processes:
        raise _wrong(path, "gpu_ids", ids, f"it names fewer GPUs than the {processes} processes of a machine; add some")
    return tuple(map(int, numbers))


def _require_supported(path: Path, key: str, value: Any) -> None:
    if key in READ or value in (None, "", [], {}):
        return
    if key in ALLOWED:
        if repr(value) not in map(repr, ALLOWED[key]):  # 0 is not false
            said = " or ".join(str(one).lower() if isinstance(one, bool) else one for one in ALLOWED[key])
            remedy = f": {REMEDIES[key]}" if key in REMEDIES else ""
            raise _wrong(path, key, value, f"it is not supported; set it to {said}{remedy}")
        return
    if key in REMEDIES:
        raise UserError(f"{path}: `{key}` is not supported; remove it: {REMEDIES[key]}")
    raise UserError(f"{path}: `{shown(key)}` is not supported{meant(key, (*READ, *ALLOWED))}; remove it")


def _wrong(path: Path, key: str, value: Any, remedy: str) -> UserError:
    if value is None:
        return UserError(f"{path}: `{key}` is missing; {remedy}")
    text = str(value).lower() if isinstance(value, bool) else shown(value)
    return UserError(f"{path}: `{key}: {text}`: {remedy}")
