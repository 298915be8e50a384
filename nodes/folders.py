"""Which files the nodes may use: the options of a widget, and the path behind a choice.

Every path comes from ComfyUI's own folders; a choice that is not among the options is refused.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ..trainers.config import BUILT_IN_LORAS, TINYWORLD_WEIGHTS
from ..trainers.errors import UserError
from ..trainers.rewards.alignment import is_clip
from ..trainers.runs.folder import RunFolder
from ..trainers.runs.machines import FILES as LAUNCH_FILES
from ..trainers.runs.machines import LaunchConfig, read_launch_config
from ..trainers.runs.registry import list_runs
from ..trainers.scenes.portraits import holds_portraits

REWARDS = "identity_reward"
SINGLE_FILES = "diffusion_models"
POLICIES = {"TinyWorld VACE (built in)": "tinyworld", "TinyWorld Phantom (built in)": "tinyworld-phantom"}
BUILT_IN = "TinyWorld (built in)"
BUILT_IN_SETS = {"TinyWorld: training (built in)": "train", "TinyWorld: held out (built in)": "held_out"}
WITH_MODEL = "beside the model"
AS_CHECKPOINT = "as the checkpoint says"
WEIGHTS, PICKLED, GGUF = ".safetensors", ".pth", ".gguf"
# What is offered of each folder of models; LoRAs are .safetensors only.
ENDINGS = {SINGLE_FILES: (WEIGHTS, PICKLED), "text_encoders": (WEIGHTS, PICKLED), "vae": (WEIGHTS, PICKLED)}
NO_MODULE = "none"
LATEST, BEST = "latest", "best"
BUILT_IN_LORA = "TinyWorld VACE, 4 steps (built in)"
NEWEST_RUN = "newest run"
THIS_MACHINE = "this machine"
NO_CLIP, NO_REWARD, BUILT_IN_FACES = "none", "none", "built in"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA behind a choice: the file or PEFT folder, and its name for the user."""

    path: Path
    label: str

    @property
    def fingerprint(self) -> list[tuple[str, int, int]]:
        """Path, modification time in ns and size in bytes of each of its files: changes when the LoRA does."""
        files = sorted(p for p in self.path.iterdir() if p.is_file()) if self.path.is_dir() else [self.path]
        return [(str(f), stat.st_mtime_ns, stat.st_size) for f in files for stat in [f.stat()]]


def register() -> None:
    """Add the folder for reward checkpoints and their base models to ComfyUI's: `models/identity_reward`."""
    folder_paths.add_model_folder_path(REWARDS, str(Path(folder_paths.models_dir) / REWARDS))


def runs_root() -> Path:
    """Where the runs of this ComfyUI are kept: its private user folder, which no HTTP route serves."""
    return Path(folder_paths.get_system_user_directory("identity_grpo")) / "runs"


def published_root() -> Path:
    """Where runs put their LoRAs: `models/loras/identity_grpo`, which every loader lists."""
    return Path(folder_paths.get_folder_paths("loras")[0]) / "identity_grpo"


def machine_choices() -> list[str]:
    """`this machine`, then the launch configurations in the folder `machines` beside the runs."""
    return [THIS_MACHINE, *_launch_files()]


def launch_config(choice: str) -> LaunchConfig | None:
    """The launch configuration behind a choice of `machine_choices`; None for this machine alone."""
    if choice == THIS_MACHINE:
        return None
    if choice not in _launch_files():
        raise UserError(
            f"there is no file `{choice}` in {_machines_root()}; put one there, as `accelerate config` writes it, and "
            "refresh"
        )
    return read_launch_config(_machines_root() / choice)


def _machines_root() -> Path:
    return runs_root().parent / "machines"


def _launch_files() -> list[str]:
    root = _machines_root()
    names = os.listdir(root) if root.is_dir() else []
    return sorted(name for name in names if name.endswith(LAUNCH_FILES) and (root / name).is_file())


def found() -> str:
    """What is there to work with, for the log: models of this kind by their names, rewards, runs."""
    counts = {
        "VACE or Phantom model": sum(_is_policy(choice) for choice in policy_choices()),
        "reward": len(_checkpoints()),
        "training run": len(list_runs(runs_root())),
    }
    return ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in counts.items()) + "; TinyWorld is built in"


# --- policies ---------------------------------------------------------------------------------------------------------


def policy_choices() -> list[str]:
    """Built-in models, then diffusers folders, then single files of `models/diffusion_models`."""
    return [*POLICIES, *_pipelines(), *(f"{SINGLE_FILES}/{name}" for name in _files(SINGLE_FILES))]


def default_policy(choices: list[str]) -> str:
    """The first VACE or Phantom model by its name that is not built in; TinyWorld's VACE when there is none."""
    return next((choice for choice in choices if _is_policy(choice)), choices[0])


def _is_policy(choice: str) -> bool:
    """Whether a model that is not built in is VACE or Phantom by its name."""
    named = re.search("vace|phantom", choice, re.IGNORECASE) is not None
    return named and choice not in POLICIES and "module" not in choice.lower()


def policy_source(choice: str) -> str:
    """What `trainers.policies.load` understands: a built-in's name or a path."""
    if choice in POLICIES:
        return POLICIES[choice]
    if choice in _pipelines():
        return str(_pipelines()[choice])
    if choice not in policy_choices():
        raise UserError(
            f"there is no model `{choice}`; put a diffusers folder into models/diffusers or a file "
            f"(.safetensors, .gguf, .pth) into models/{SINGLE_FILES}, and refresh"
        )
    return str(_file_path(SINGLE_FILES, choice.removeprefix(f"{SINGLE_FILES}/")))


def _pipelines() -> dict[str, Path]:
    return {f"diffusers/{name}": path for name, path in _folders("diffusers", "transformer/config.json").items()}


def module_choices() -> list[str]:
    """`none`, then the files of `models/diffusion_models` that are named as VACE's control blocks may be."""
    return [NO_MODULE, *(name for name in _files(SINGLE_FILES) if "vace" in name.lower())]


def module_source(choice: str) -> str | None:
    """The path behind a choice of `module_choices`; None for `none`."""
    if choice == NO_MODULE:
        return None
    if choice not in module_choices():
        raise UserError(f"there is no file `{choice}` in models/{SINGLE_FILES}; put it there and refresh")
    return str(_file_path(SINGLE_FILES, choice))


def part_choices(kind: str) -> list[str]:
    """`beside the model`, then the files of `models/<kind>` (`text_encoders` or `vae`)."""
    return [WITH_MODEL, *_files(kind)]


def part_source(kind: str, choice: str) -> str | None:
    """The path behind a choice of `part_choices`; None for the part that lies beside the model."""
    if choice == WITH_MODEL:
        return None
    if choice not in _files(kind):
        raise UserError(
            f"there is no file `{choice}` in models/{kind}; put it there and refresh, or choose `{WITH_MODEL}`"
        )
    return str(_file_path(kind, choice))


# --- rewards ----------------------------------------------------------------------------------------------------------


def reward_choices() -> list[str]:
    """The built-in reward, the checkpoint folders of `models/identity_reward`, then `<run>: best` of the runs that have
    trained one, newest first."""
    return [BUILT_IN, *_checkpoints(), *_trained_rewards()]


def reward_source(choice: str) -> str:
    """What `trainers.rewards.load` understands: a built-in's name or a path."""
    if choice == BUILT_IN:
        return "tinyworld"
    found = _checkpoints() | _trained_rewards()
    if choice not in found:
        raise UserError(
            f"there is no reward `{choice}`; put its folder (with model_config.json) into models/{REWARDS} and refresh"
        )
    return str(found[choice])


def reward_choice(run: RunFolder) -> str:
    """What the reward of a run is called in the list."""
    return f"{run.id}: {BEST}"


def reward_run(source: str) -> RunFolder | None:
    """The run that has trained the reward behind a source; None for any other."""
    runs = (run for run in list_runs(runs_root()) if run.kind == "reward")
    return next((run for run in runs if str(run.reward_folder) == source), None)


def start_reward_folder(choice: str) -> Path | None:
    """The folder of a reward that a training begins with; None for `none`."""
    if choice == NO_REWARD:
        return None
    return TINYWORLD_WEIGHTS / "reward" / "identity_reward" if choice == BUILT_IN else Path(reward_source(choice))


def base_choices() -> list[str]:
    """`as the checkpoint says`, Qwen2.5-VL folders beside the rewards, then such files of `models/text_encoders`."""
    return [AS_CHECKPOINT, *_base_models(), *_base_files()]


def base_source(choice: str) -> str | None:
    """The path behind a choice of `base_choices`; None for what the checkpoint says."""
    if choice == AS_CHECKPOINT:
        return None
    if choice in _base_files():
        return str(_file_path("text_encoders", choice.removeprefix("text_encoders/")))
    if choice not in _base_models():
        raise UserError(
            f"there is no base model `{choice}`; put the Qwen2.5-VL folder into models/{REWARDS} and refresh"
        )
    return str(_base_models()[choice])


def training_base_choices() -> list[str]:
    """TinyWorld's base model, then the Qwen2.5-VL folders beside the rewards: a reward is trained on a folder."""
    return [BUILT_IN, *_base_models()]


def training_base(choice: str) -> Path:
    """The folder behind a choice of `training_base_choices`."""
    return TINYWORLD_WEIGHTS / "reward" / "base_model" if choice == BUILT_IN else Path(str(base_source(choice)))


def _checkpoints() -> dict[str, Path]:
    return _folders(REWARDS, "model_config.json")


def _trained_rewards() -> dict[str, Path]:
    runs = [run for run in reversed(list_runs(runs_root())) if run.kind == "reward" and run.has_reward()]
    return {reward_choice(run): run.reward_folder for run in runs}


def _base_files() -> list[str]:
    return [f"text_encoders/{name}" for name in _files("text_encoders") if re.search("qwen.*vl", name, re.IGNORECASE)]


def _base_models() -> dict[str, Path]:
    return {
        name: path
        for name, path in _folders(REWARDS, "config.json").items()
        if name not in _checkpoints() and not is_clip(path)
    }


def clip_choices() -> list[str]:
    """`none`, then the folders of `models/identity_reward` that hold a CLIP model."""
    return [NO_CLIP, *_clips()]


def clip_source(choice: str) -> str:
    """The folder behind a choice of `clip_choices`."""
    if choice not in _clips():
        raise UserError(
            f"there is no CLIP model `{choice}`; put its folder (with config.json) into models/{REWARDS} and refresh, "
            "or set the weight of alignment to 0"
        )
    return str(_clips()[choice])


def _clips() -> dict[str, Path]:
    return {name: path for name, path in _folders(REWARDS, "config.json").items() if is_clip(path)}


# --- face networks ----------------------------------------------------------------------------------------------------


def face_choices() -> list[str]:
    """`built in`, then the ONNX files of `models/insightface`, at any depth."""
    return [BUILT_IN_FACES, *_listed_files(str(_face_root()), ".onnx")]


def face_file(choice: str) -> str | None:
    """The path behind a choice of `face_choices`; None for what is built in."""
    if choice == BUILT_IN_FACES:
        return None
    if choice not in face_choices():
        raise UserError(f"there is no file `{choice}` in models/insightface; put it there and refresh")
    return str(_face_root() / choice)


def _face_root() -> Path:
    return Path(folder_paths.models_dir) / "insightface"


# --- prompt sets ------------------------------------------------------------------------------------------------------


def prompt_set_choices() -> list[str]:
    """The built-in sets, then the CSV files of ComfyUI's input folder, at any depth."""
    return [*BUILT_IN_SETS, *_listed_files(folder_paths.get_input_directory(), ".csv")]


def prompt_set_path(choice: str) -> Path:
    """The CSV behind a choice that is not built in."""
    if choice not in prompt_set_choices():
        raise UserError(
            f"there is no prompt set `{choice}`; put the CSV and its pictures into ComfyUI's input folder and refresh"
        )
    return Path(folder_paths.get_input_directory()) / choice


def text_choices() -> list[str]:
    """The text files of ComfyUI's input folder, at any depth."""
    return _listed_files(folder_paths.get_input_directory(), ".txt")


def text_path(choice: str) -> Path:
    """The text file behind a choice."""
    if choice not in text_choices():
        raise UserError(f"there is no text file `{choice}`; put it into ComfyUI's input folder and refresh")
    return Path(folder_paths.get_input_directory()) / choice


def portrait_choices() -> list[str]:
    """The folders of ComfyUI's input folder that hold people, at most two levels down: not core's own empty `3d`."""
    root = Path(folder_paths.get_input_directory())
    found = (path for depth in ("*", "*/*") for path in root.glob(depth) if path.is_dir())
    shown = (path for path in found if not path.name.startswith(".") and holds_portraits(path))
    return sorted(path.relative_to(root).as_posix() for path in shown)


def portrait_path(choice: str) -> Path:
    """The folder behind a choice of portraits."""
    if choice not in portrait_choices():
        raise UserError(
            f"there is no folder `{choice}` with pictures in ComfyUI's input folder; put portraits there and refresh"
        )
    return Path(folder_paths.get_input_directory()) / choice


def _listed_files(root: str, ending: str) -> list[str]:
    """Files below `root`, relative to it, cached until a folder below it changes.

    An input folder may hold many files, and ComfyUI requests a widget's options several times for each queued graph.
    """
    files, times = _listed.get((root, ending), ([], {}))
    if not times or any(_modified(folder) != time for folder, time in times.items()):
        files, times = [], {}
        for folder, _, names in os.walk(root):
            times[folder] = _modified(folder)
            found = (Path(folder, name) for name in names if name.endswith(ending))
            files += [path.relative_to(root).as_posix() for path in found if path.is_file()]
        files.sort()
        _listed[root, ending] = files, times
    return files


_listed: dict[tuple[str, str], tuple[list[str], dict[str, int | None]]] = {}


def _modified(folder: str) -> int | None:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None


def may_read(path: Path) -> bool:
    """Whether a picture that a CSV names lies in ComfyUI's input or output folder."""
    roots = [Path(root) for root in (folder_paths.get_input_directory(), folder_paths.get_output_directory())]
    resolved = [root.resolve() for root in roots]
    # As it is written first: resolving a path on another computer (Windows shares) would already connect to it.
    if not any(Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)) for root in (*roots, *resolved)):
        return False
    return any(path.resolve().is_relative_to(root) for root in resolved)


# --- LoRAs ------------------------------------------------------------------------------------------------------------


def lora_choices(of_newest_run: bool = True, built_in: bool = False) -> list[str]:
    """Runs to follow (`<run>: latest`, `<run>: best`, newest first), then files and PEFT folders of `models/loras`.

    of_newest_run: with `newest run: latest` and `newest run: best`, which saved graphs hold: the editor marks a value
    that is not listed as wrong. Without a run they come last, since the first entry is what a new node shows. built_in:
    with the LoRA for TinyWorld's VACE, which is distilled to 4 steps without guidance.
    """
    runs = [run.id for run in reversed(_policy_runs())]
    newest = _choices_of(NEWEST_RUN) if of_newest_run else []
    followed = [choice for run in runs for choice in _choices_of(run)]
    files = [*_files("loras"), *_adapters(), *([BUILT_IN_LORA] if built_in else [])]
    return [*newest, *followed, *files] if runs else [*files, *newest]


def _choices_of(run: str) -> list[str]:
    return [f"{run}: {which}" for which in (LATEST, BEST)]


def find_lora(choice: str) -> LoraFile:
    """The LoRA behind a choice at this moment. Raises UserError when there is none (yet)."""
    choice = str(choice)  # a queued graph may hold any type
    if choice == BUILT_IN_LORA:
        return LoraFile(BUILT_IN_LORAS["tinyworld-4-steps"], choice)
    run = followed(choice)
    if run is not None:
        return _run_lora(run, choice.rpartition(": ")[2])
    if choice in _adapters():
        return LoraFile(_adapters()[choice], choice)
    if choice not in _files("loras"):
        raise UserError(
            f"there is no LoRA `{choice}`; put a .safetensors file or a PEFT folder into models/loras and refresh"
        )
    return LoraFile(_file_path("loras", choice), choice)


def followed(choice: str) -> RunFolder | None:
    """The run that a choice of `lora_choices` follows; None for a file. Raises UserError when there is no such run."""
    name, colon, which = choice.rpartition(": ")
    if not colon or which not in (LATEST, BEST):
        return None
    if name == NEWEST_RUN and not _policy_runs():
        raise UserError(
            f"`{choice}` follows a training run, and there is none yet; start one with Train, or choose a file of "
            "models/loras"
        )
    return find_run(name)


def _adapters() -> dict[str, Path]:
    return {f"{name}/": path for name, path in _folders("loras", "adapter_config.json").items()}


def _run_lora(run: RunFolder, which: str) -> LoraFile:
    """The run's newest export, or that of its best evaluation (the newest while none is measured).

    Raises UserError when it has none yet.
    """
    export = run.best() if which == BEST else run.newest()
    if export is None:
        raise UserError(f"run {run.id} has no LoRA yet; it writes the first one with its first checkpoint")
    return LoraFile(export.path, f"{run.id}: {which}")


def run_choices() -> list[str]:
    """`newest run`, then every run that trains a policy, newest first."""
    return [NEWEST_RUN, *(run.id for run in reversed(_policy_runs()))]


def find_run(choice: str) -> RunFolder:
    """The run behind a choice of `run_choices`. Raises UserError when there is none."""
    runs = _policy_runs()
    return runs[-1] if choice == NEWEST_RUN and runs else _named(choice, runs)


def run_by_id(run_id: str) -> RunFolder:
    """A run of either kind. Raises UserError when there is none."""
    return _named(run_id, list_runs(runs_root()))


def _named(name: str, runs: list[RunFolder]) -> RunFolder:
    if not runs:
        raise UserError("there is no training run yet; queue a Train node first")
    found = {run.id: run for run in runs}
    if name not in found:
        raise UserError(f"there is no run `{name}`; there are {', '.join(list(found)[-5:])}")
    return found[name]


def _policy_runs() -> list[RunFolder]:
    """Oldest first. Those that train a reward have no LoRA and no clips."""
    return [run for run in list_runs(runs_root()) if run.kind == "policy"]


# --- the folders themselves -------------------------------------------------------------------------------------------


def _files(kind: str) -> list[str]:
    """The weights of `models/<kind>`, at any depth; with `/` on Windows too, so that a workflow opens everywhere."""
    endings = ENDINGS.get(kind, (WEIGHTS,))
    names = [name for name in folder_paths.get_filename_list(kind) if name.endswith(endings)]
    if kind in (SINGLE_FILES, "text_encoders"):
        # ComfyUI does not list them.
        names += [name for root in folder_paths.get_folder_paths(kind) for name in _listed_files(root, GGUF)]
    return [name.replace(os.sep, "/") for name in names]


def _file_path(kind: str, name: str) -> Path:
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        raise UserError(f"`{name}` is no longer in models/{kind}; refresh and choose again")
    return Path(path)


def _folders(kind: str, mark: str) -> dict[str, Path]:
    """Folders of `models/<kind>` that hold the file `mark`, by their names relative to it, at most two levels down."""
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(kind)):
        for marked in (p for depth in ("*", "*/*") for p in root.glob(f"{depth}/{mark}")):
            folder = marked.parents[mark.count("/")]
            found.setdefault(folder.relative_to(root).as_posix(), folder)
    return dict(sorted(found.items()))
