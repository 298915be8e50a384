"""On which machines and devices the processes of a run start, and the file of accelerate that says so."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.plain_yaml import parse_yaml
from ..errors import UserError, meant, shown
from ..files import read_regular

MOST_MACHINES = 1024
MOST_PROCESSES = 64
"""Of one machine."""
MOST_GPUS = 1024
"""Of one machine, counted from 0."""
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
    "dynamo_backend": "compiling is `policy.compile`, a setting of the run",
    "fp16": "the precision is `policy.dtype`, a setting of the run",
    "ipex_config": TPU,
    "use_xpu": TPU,
    "downcast_bf16": TPU,
    "tpu_name": TPU,
    "tpu_zone": TPU,
    "tpu_env": TPU,
    "tpu_vm": TPU,
    "tpu_use_cluster": TPU,
    "tpu_use_sudo": TPU,
    "command_file": TPU,
    "commands": TPU,
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
    "dynamo_backend": ("NO",),
    "dynamo_config": ({"dynamo_backend": "NO"},),
    "fp16": (False,),
    "ipex_config": ({"ipex": False}, {"ipex": False, "use_xpu": False}),
    "use_xpu": (False,),
}
"""Keys that change nothing here, with the values that mean so, of all versions of accelerate from 1.8 on."""
NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")
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


@dataclass(frozen=True)
class Given:
    """What replaces the values of a launch configuration; None: nothing does. `processes`: of each machine."""

    processes: int | None = None
    machines: int | None = None
    rank: int | None = None
    rendezvous: str | None = None


def read_launch_config(path: Path, given: Given = Given()) -> LaunchConfig:
    """The launch configuration in a file as `accelerate config` writes it, in YAML or JSON.

    Read are READ, but for what is `given`; `num_processes` counts those of all machines. Raises UserError naming the
    file, the key and what to do, for impossible values and for everything that accelerate does by such a file and a run
    does not.
    """
    found = _read(path)
    for key, value in found.items():
        _require_supported(path, str(key), value)

    def number(key: str, least: int, most: int, default: int | None = None) -> int:
        value = found.get(key, default)
        if isinstance(value, str) and value.strip().isdecimal():
            raise _wrong(path, key, f'"{value}"', "write the number without quotes")
        if type(value) is not int or not least <= value <= most:
            raise _wrong(path, key, value, f"give a whole number from {least} to {most}")
        return value

    count = number("num_machines", 1, MOST_MACHINES, 1) if given.machines is None else given.machines
    processes = given.processes
    if processes is None:
        of_file = number("num_machines", 1, MOST_MACHINES, 1)
        total = number("num_processes", 1, of_file * MOST_PROCESSES)
        if total % of_file:
            raise _wrong(
                path, "num_processes", total, f"it counts the processes of all {of_file} machines; give a multiple"
            )
        processes = total // of_file
    address = ""
    if count > 1:
        address = given.rendezvous
        if address is None:
            named = found.get("main_process_ip")
            if not (host := _host(named)):
                raise _wrong(path, "main_process_ip", named, "give the name or address of machine 0")
            address = f"{host}:{number('main_process_port', 1, 65535)}"
    rank = number("machine_rank", 0, count - 1, 0) if given.rank is None else given.rank
    return LaunchConfig(processes, Machines(count, rank, address), _gpus(path, found, processes))


def is_rendezvous(address: str) -> bool:
    """Whether this is host:port; an IPv6 address is in brackets."""
    host, _, port = address.rpartition(":")
    return (
        _host(host) == host != "" and port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 2**16
    )


def require_rendezvous(machines: Machines) -> None:
    """Raises UserError on machine 0 when it cannot be met at the rendezvous: torch would wait for hours, or fail with a
    traceback."""
    if machines.count == 1 or machines.rank:
        return
    host, _, port = machines.rendezvous.rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except OSError as error:
        raise UserError(
            f"rendezvous {machines.rendezvous}: machine 0 does not know the name `{host}` ({error.strerror}); give its "
            "address (`--rendezvous`, main_process_ip)"
        ) from error
    with socket.socket() as probe:
        if os.name == "posix":  # as torch does; elsewhere it would take a port that is in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            raise UserError(
                f"rendezvous {machines.rendezvous}: port {port} of machine 0 cannot be used ({error.strerror}); end "
                "what uses it, or give another port (`--rendezvous`, main_process_port)"
            ) from error


def readable(value: object) -> str:
    """A value for a message: shortened, in one line, and what a terminal would obey is written as its escape."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in shown(value))


def _host(text: Any) -> str:
    """The name or address as it is written before a port, an IPv6 address in brackets; empty for anything else."""
    if not isinstance(text, str):
        return ""
    if NAME.fullmatch(text):
        return text
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ipaddress.IPv6Address(inner)
    except ValueError:
        return ""
    return f"[{inner}]"


def _read(path: Path) -> dict[Any, Any]:
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; give a file as `accelerate config` writes it")
        path.stat()
        found = parse_yaml(read_regular(path).decode())
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; write it with `accelerate config --config_file {path}`") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; give a file as `accelerate config` writes it"
        ) from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read as YAML: {readable(error)}; write it with `accelerate config`"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no launch configuration; write it with `accelerate config`")
    return found


def _gpus(path: Path, found: Mapping[str, Any], processes: int) -> tuple[int, ...] | None:
    on_cpu, ids = found.get("use_cpu", False), found.get("gpu_ids")
    if type(on_cpu) is not bool:
        raise _wrong(path, "use_cpu", on_cpu, "give true or false")
    if on_cpu:
        return ()
    if ids in (None, "all"):
        return None
    texts = [text.strip() for text in str(ids).split(",")]
    if not all(text.isascii() and text.isdecimal() and len(text) <= len(str(MOST_GPUS)) for text in texts):
        raise _wrong(path, "gpu_ids", ids, f"give `all`, or numbers as 0,1, each below {MOST_GPUS}")
    numbers = tuple(map(int, texts))
    if max(numbers) >= MOST_GPUS:
        raise _wrong(path, "gpu_ids", ids, f"give `all`, or numbers as 0,1, each below {MOST_GPUS}")
    if len(set(numbers)) < len(numbers):
        raise _wrong(path, "gpu_ids", ids, "it names a GPU twice; name each once")
    if len(numbers) < processes:
        raise _wrong(path, "gpu_ids", ids, f"it names fewer GPUs than the {processes} processes of a machine; add some")
    return numbers


def _require_supported(path: Path, key: str, value: Any) -> None:
    if key not in (*READ, *ALLOWED, *REMEDIES):
        raise UserError(f"{path}: `{readable(key)}` is not supported{meant(key, (*READ, *ALLOWED))}; remove it")
    if key in READ or value in (None, "", [], {}):
        return
    allowed = ALLOWED.get(key, ())
    if repr(value) in map(repr, allowed):  # 0 is not false
        return
    plain = [str(one).lower() if isinstance(one, bool) else one for one in allowed if not isinstance(one, dict)]
    remedy = f": {REMEDIES[key]}" if key in REMEDIES else ""
    if plain:
        raise _wrong(path, key, value, f"it is not supported; set it to {' or '.join(plain)}{remedy}")
    raise UserError(f"{path}: `{key}` is not supported; remove it{remedy}")


def _wrong(path: Path, key: str, value: Any, remedy: str) -> UserError:
    if value is None:
        return UserError(f"{path}: `{key}` is missing; {remedy}")
    text = str(value).lower() if isinstance(value, bool) else readable(value)
    return UserError(f"{path}: `{key}: {text}`: {remedy}")
