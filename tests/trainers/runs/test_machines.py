"""Launch configurations of accelerate: what is read, and what is refused by its name."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from trainers.errors import UserError
from trainers.runs.machines import Given, LaunchConfig, Machines, read_launch_config

# As `accelerate config` writes it for two machines of eight GPUs.
TWO = """\
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: MULTI_GPU
downcast_bf16: 'no'
enable_cpu_affinity: false
gpu_ids: all
machine_rank: 0
main_process_ip: 10.0.0.1
main_process_port: 29500
main_training_function: main
mixed_precision: 'no'
num_machines: 2
num_processes: 16
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
"""


@pytest.fixture
def read(tmp_path: Path):
    """`read(text)`: the launch configuration of a file with this text."""

    def read(text: str) -> LaunchConfig:
        file = tmp_path / "two.yaml"
        file.write_text(text, encoding="utf-8")
        return read_launch_config(file)

    return read


def test_a_file_of_accelerate_for_two_machines_is_read(read):
    assert read(TWO) == LaunchConfig(8, Machines(2, 0, "10.0.0.1:29500"))


def test_what_accelerate_writes_by_itself_is_read(tmp_path):
    """Here on a computer that may have no GPU, in its form of today."""
    config = pytest.importorskip("accelerate.commands.config.config_args").ClusterConfig(
        compute_environment="LOCAL_MACHINE",
        distributed_type="MULTI_CPU",
        mixed_precision="no",
        use_cpu=True,
        debug=False,
        num_processes=4,
        num_machines=2,
        machine_rank=1,
        main_process_ip="head",
        main_process_port=1,
    )
    for file, write in (("a.yaml", config.to_yaml_file), ("a.json", config.to_json_file)):
        write(tmp_path / file)
        assert read_launch_config(tmp_path / file) == LaunchConfig(2, Machines(2, 1, "head:1"), gpus=())


@pytest.mark.parametrize(
    ("line", "gpus"), [("gpu_ids: 0,2", (0, 2)), ("gpu_ids: 3", (3,)), ("gpu_ids: all", None), ("use_cpu: true", ())]
)
def test_the_gpus_of_this_machine_are_chosen(read, line, gpus):
    assert read(f"num_processes: 1\n{line}\n") == LaunchConfig(1, Machines(), gpus)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("deepspeed_config: {zero_stage: 2}", "`deepspeed_config` is not supported; remove it: .*memory.plan=sharded"),
        ("fp8_config: {backend: TE}", "`fp8_config` is not supported; remove it: FP8 is `policy.fp8`"),
        ("tpu_name: a", "`tpu_name` is not supported; remove it: runs train on NVIDIA GPUs or CPUs"),
        ("distributed_type: FSDP", "`distributed_type: FSDP`: it is not supported; set it to NO or MULTI_GPU or MULTI"),
        ("mixed_precision: bf16", "`mixed_precision: bf16`: it is not supported; set it to no: .*`policy.dtype`"),
        ("debug: true", "`debug: true`: it is not supported; set it to false"),
        ("num_procesess: 4", "`num_procesess` is not supported; did you mean `num_processes`.; remove it"),
        ("num_processes: 3", "`num_processes: 3`: it counts the processes of all 2 machines; give a multiple"),
        ("num_processes: all", "`num_processes: all`: give a whole number from 1 to 128"),
        ("num_processes: null", "`num_processes` is missing; give a whole number"),
        ("machine_rank: 2", "`machine_rank: 2`: give a whole number from 0 to 1"),
        ("main_process_ip: null", "`main_process_ip` is missing; give the name or address of machine 0"),
        ("main_process_ip: --join", "`main_process_ip: --join`: give the name or address of machine 0"),
        ("main_process_port: 70000", "`main_process_port: 70000`: give a whole number from 1 to 65535"),
        ("gpu_ids: 0,1", "`gpu_ids: 0,1`: it names fewer GPUs than the 8 processes of a machine"),
        ("gpu_ids: first", "`gpu_ids: first`: give `all`, or numbers as 0,1"),
        ("gpu_ids: 0,00", "`gpu_ids: 0,00`: it names a GPU twice"),
        ("gpu_ids: 1024", "`gpu_ids: 1024`: give `all`, or numbers as 0,1, each below 1024"),
        (f"gpu_ids: '{'1' * 5000}'", "`gpu_ids: 1+…1+`: give `all`"),
        ("use_cpu: 1", "`use_cpu: 1`: give true or false"),
        ("num_procesess:", "`num_procesess` is not supported; did you mean `num_processes`.; remove it"),
        ("ipex_config: {ipex: true}", "`ipex_config` is not supported; remove it: runs train on NVIDIA GPUs"),
        ("main_process_port: '29511'", '`main_process_port: "29511"`: write the number without quotes'),
        ("main_process_ip: '[[[::'", r"`main_process_ip: \[\[\[::`: give the name or address of machine 0"),
        ("main_process_ip: ''", "`main_process_ip: `: give the name or address of machine 0"),
        (r'"\e[2J": 1', r"`\\x1b\[2J` is not supported"),
        (r'mixed_precision: "a\nb"', r"`mixed_precision: a\\nb`: it is not supported"),
    ],
)
def test_what_a_run_does_not_do_is_refused_with_its_key_and_the_remedy(read, line, problem):
    key = line.partition(":")[0]
    others = [one for one in TWO.splitlines() if one.partition(":")[0] != key]
    with pytest.raises(UserError, match=rf"two\.yaml: {problem}"):
        read("\n".join([*others, line]))


def test_keys_that_ask_for_nothing_are_read(read):
    neutral = ["ipex_config: {ipex: false}", "dynamo_config: {dynamo_backend: 'NO'}", "fsdp_config: {}", "commands:"]
    assert read("\n".join([TWO, *neutral])) == read(TWO)


def test_an_ipv6_address_gets_brackets(read):
    text = TWO.replace("10.0.0.1", "'::1'")
    assert read(text).machines.rendezvous == read(text.replace("::1", "[::1]")).machines.rendezvous == "[::1]:29500"


def test_what_is_given_replaces_values_that_could_not_be_used(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("num_machines: 2\nnum_processes: 3\nmachine_rank: 2\n", encoding="utf-8")
    given = Given(processes=1, rank=1, rendezvous="head:1")
    assert read_launch_config(file, given) == LaunchConfig(1, Machines(2, 1, "head:1"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [("- 1", "is no launch configuration"), ("a: [", "cannot be read as YAML"), ("a: &x 1", "anch")],
)
def test_a_file_of_another_kind_is_refused(read, text, problem):
    with pytest.raises(UserError, match=problem):
        read(text)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no file " + re.escape(str(tmp_path / "none.yaml"))):
        read_launch_config(tmp_path / "none.yaml")


@pytest.mark.skipif(os.name != "posix", reason="makes a pipe and a link")
def test_what_is_no_file_is_called_by_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, problem in (
        ("", "is a folder"),
        ("pipe", "it is not a regular file"),
        ("loop", "cannot be read: Too man"),
    ):
        with pytest.raises(UserError, match=problem):
            read_launch_config(tmp_path / name)
