"""Which files the nodes may use: what a widget offers, and the path behind a choice.

Every path comes from ComfyUI's own folders; a choice that is not among those offered is refused, whatever it says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ..trainers.errors import UserError
from ..trainers.runs.folder import RunFolder
from ..trainers.runs.registry import list_runs

REWARDS = "identity_reward"
POLICIES = {"TinyWorld VACE (built in)": "tinyworld", "TinyWorld Phantom (built in)": "tinyworld-phantom"}
BUILT_IN = "TinyWorld (built in)"
WITH_MODEL = "beside the model"
AS_CHECKPOINT = "as the checkpoint says"
WEIGHTS = ".safetensors"
EXPORT = re.compile(r".+-(\d{6})\.safetensors")
LATEST, BEST = "latest", "best"
NEWEST_RUN = "newest run"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA behind a choice: the file or PEFT folder, and where it is known, the run and iteration it comes from."""

    path: Path
    label: str
    run: str | None = None
    iteration: int | None = None

    @property
    def fingerprint(self) -> tuple[str, int, int]:
        """Changes when the file behind the choice does: path, time of change in ns, bytes."""
        file = next(self.path.glob("*.safetensors"), self.path) if self.path.is_dir() else self.path
        stat = file.stat()
        return str(file), stat.st_mtime_ns, stat.st_size


def register() -> None:
    """Tell ComfyUI of the folder for reward checkpoints and their base models: `models/identity_reward`."""
    folder_paths.add_model_folder_path(REWARDS, str(Path(folder_paths.models_dir) / REWARDS))


def runs_root() -> Path:
    """Where the runs of this ComfyUI are kept: its private user folder, which no HTTP route serves."""
    return Path(folder_paths.get_system_user_directory("identity_grpo")) / "runs"


def published_root() -> Path:
    """Where runs put their LoRAs: `models/loras/identity_grpo`, which every loader lists."""
    return Path(folder_paths.get_folder_paths("loras")[0]) / "identity_grpo"


# --- policies ------------------------------------------------------------------------------------------------------------


def policy_choices() -> list[str]:
    """Built-in models, then diffusers folders, then single files of `models/diffusion_models`."""
    folders = [f"diffusers/{name}" for name in _folders("diffusers", "transformer/config.json")]
    return [*POLICIES, *folders, *(f"diffusion_models/{name}" for name in _files("diffusion_models"))]


def policy_source(choice: str) -> str:
    """What `trainers.policies.load` understands: a built-in's name or a path."""
    if choice in POLICIES:
        return POLICIES[choice]
    kind, _, name = choice.partition("/")
    if choice not in policy_choices():
        raise UserError(f"there is no model `{choice}`; put a diffusers folder into models/diffusers or a .safetensors file into "
                        "models/diffusion_models, and refresh")
    return str(_folder_path(kind, name) if kind == "diffusers" else _file_path(kind, name))


def part_choices(kind: str) -> list[str]:
    """`beside the model`, then the files of `models/<kind>` (`text_encoders` or `vae`)."""
    return [WITH_MODEL, *_files(kind)]


def part_source(kind: str, choice: str) -> str | None:
    """The path behind a choice of `part_choices`; None for the part that lies beside the model."""
    if choice == WITH_MODEL:
        return None
    if choice not in _files(kind):
        raise UserError(f"there is no file `{choice}` in models/{kind}; put it there and refresh, or choose `{WITH_MODEL}`")
    return str(_file_path(kind, choice))


# --- rewards -------------------------------------------------------------------------------------------------------------


def reward_choices() -> list[str]:
    return [BUILT_IN, *_folders(REWARDS, "model_config.json")]


def reward_source(choice: str) -> str:
    if choice == BUILT_IN:
        return "tinyworld"
    if choice not in reward_choices():
        raise UserError(f"there is no reward `{choice}`; put its folder (with model_config.json) into models/{REWARDS} and refresh")
    return str(_folder_path(REWARDS, choice))


def base_choices() -> list[str]:
    """`as the checkpoint says`, then the Qwen2.5-VL folders beside the rewards."""
    return [AS_CHECKPOINT, *(n for n in _folders(REWARDS, "config.json") if n not in _folders(REWARDS, "model_config.json"))]


def base_source(choice: str) -> str | None:
    if choice == AS_CHECKPOINT:
        return None
    if choice not in base_choices():
        raise UserError(f"there is no base model `{choice}`; put the Qwen2.5-VL folder into models/{REWARDS} and refresh")
    return str(_folder_path(REWARDS, choice))


# --- prompt sets ---------------------------------------------------------------------------------------------------------


def prompt_set_choices() -> list[str]:
    """The built-in set, then the CSV files of ComfyUI's input folder, at any depth."""
    root = Path(folder_paths.get_input_directory())
    return [BUILT_IN, *sorted(p.relative_to(root).as_posix() for p in root.rglob("*.csv") if p.is_file())]


def prompt_set_source(choice: str) -> str:
    if choice == BUILT_IN:
        return "tinyworld"
    if choice not in prompt_set_choices():
        raise UserError(f"there is no prompt set `{choice}`; put the CSV and its pictures into ComfyUI's input folder and refresh")
    return str(Path(folder_paths.get_input_directory()) / choice)


def may_read(path: Path) -> bool:
    """Whether a picture that a CSV names lies in ComfyUI's input or output folder."""
    path = path.resolve()
    roots = folder_paths.get_input_directory(), folder_paths.get_output_directory()
    return any(path.is_relative_to(Path(root).resolve()) for root in roots)


# --- LoRAs ---------------------------------------------------------------------------------------------------------------


def lora_choices() -> list[str]:
    """Runs to follow (`<run>: latest`, `<run>: best`, newest first), then files and PEFT folders of `models/loras`."""
    runs = [run.id for run in reversed(list_runs(runs_root()))]
    followed = [f"{name}: {which}" for name in ([NEWEST_RUN] if runs else []) + runs for which in (LATEST, BEST)]
    return [*followed, *_files("loras"), *(f"{name}/" for name in _folders("loras", "adapter_config.json"))]


def find_lora(choice: str) -> LoraFile:
    """The LoRA behind a choice now. Raises UserError when there is none (yet)."""
    name, colon, which = choice.rpartition(": ")
    if colon and which in (LATEST, BEST):
        return run_lora(_run(name), which)
    if choice.endswith("/") and choice[:-1] in _folders("loras", "adapter_config.json"):
        return LoraFile(_folder_path("loras", choice[:-1]), choice)
    if choice not in _files("loras"):
        raise UserError(f"there is no LoRA `{choice}`; put a .safetensors file or a PEFT folder into models/loras and refresh")
    path = _file_path("loras", choice)
    match = EXPORT.fullmatch(path.name)
    return LoraFile(path, choice, path.parent.name if match else None, int(match[1]) if match else None)


def run_lora(run: RunFolder, which: str) -> LoraFile:
    """The run's newest export, or that of its best evaluation. Raises UserError when it has none yet."""
    exports = {int(m[1]): p for p in run.exports.glob("*.safetensors") if (m := EXPORT.fullmatch(p.name))}
    if not exports:
        raise UserError(f"run {run.id} has no LoRA yet; it writes the first one with its first checkpoint")
    iteration = max(exports)
    if which == BEST:
        measured = [r for r in run.read_metrics() if r.get("kind") == "evaluation" and r["iteration"] in exports]
        if measured:
            iteration = max(measured, key=lambda r: (r["margin"], r["iteration"]))["iteration"]
    return LoraFile(exports[iteration], f"{run.id}: {which}", run.id, iteration)


def run_choices() -> list[str]:
    """`newest run`, then every run, newest first."""
    return [NEWEST_RUN, *(run.id for run in reversed(list_runs(runs_root())))]


def find_run(choice: str) -> RunFolder:
    return _run(choice)


def _run(choice: str) -> RunFolder:
    runs = {run.id: run for run in list_runs(runs_root())}
    if not runs:
        raise UserError("there is no training run yet; queue a Train node first")
    if choice == NEWEST_RUN:
        return list(runs.values())[-1]
    if choice not in runs:
        raise UserError(f"there is no run `{choice}`; there are {', '.join(list(runs)[-5:])}")
    return runs[choice]


# --- the folders themselves ----------------------------------------------------------------------------------------------


def _files(kind: str) -> list[str]:
    return [name.replace("\\", "/") for name in folder_paths.get_filename_list(kind) if name.endswith(WEIGHTS)]


def _file_path(kind: str, name: str) -> Path:
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        raise UserError(f"`{name}` is no longer in models/{kind}; refresh and choose again")
    return Path(path)


def _folders(kind: str, mark: str) -> list[str]:
    """Folders of `models/<kind>` that hold the file `mark`, relative to it, at most two levels down."""
    found = []
    for root in map(Path, folder_paths.get_folder_paths(kind)):
        marks = [p for depth in ("*", "*/*") for p in root.glob(f"{depth}/{mark}")]
        found += [p.parents[mark.count("/")].relative_to(root).as_posix() for p in marks]
    return sorted(set(found))


def _folder_path(kind: str, name: str) -> Path:
    return next(Path(root) / name for root in folder_paths.get_folder_paths(kind) if (Path(root) / name).is_dir())
