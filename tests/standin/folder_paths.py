"""ComfyUI's folders, below `--base-directory`."""

from __future__ import annotations

import os
from pathlib import Path

from comfy.cli_args import args

WEIGHTS = {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"}

base_path = os.path.abspath(args.base_directory)
models_dir = os.path.join(base_path, "models")
folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {
    kind: ([os.path.join(models_dir, kind)], WEIGHTS) for kind in ("checkpoints", "loras", "vae", "vae_approx")
}
folder_names_and_paths |= {
    "text_encoders": ([os.path.join(models_dir, "text_encoders"), os.path.join(models_dir, "clip")], WEIGHTS),
    "diffusion_models": ([os.path.join(models_dir, "unet"), os.path.join(models_dir, "diffusion_models")], WEIGHTS),
    "diffusers": ([os.path.join(models_dir, "diffusers")], {"folder"}),
}
_places = {kind: os.path.join(base_path, kind) for kind in ("input", "output", "temp", "user")}
os.makedirs(_places["input"], exist_ok=True)


def get_input_directory() -> str:
    return _places["input"]


def get_output_directory() -> str:
    return _places["output"]


def get_temp_directory() -> str:
    return _places["temp"]


def get_user_directory() -> str:
    return _places["user"]


def get_system_user_directory(name: str = "system") -> str:
    if not name.replace("_", "").isalnum() or name.startswith("_"):
        raise ValueError(f"not a system user's name: {name!r}")
    return os.path.join(get_user_directory(), f"__{name}")


def add_model_folder_path(folder_name: str, full_folder_path: str, is_default: bool = False) -> None:
    paths = folder_names_and_paths.setdefault(folder_name, ([], set()))[0]
    if full_folder_path not in paths:
        paths.insert(0 if is_default else len(paths), full_folder_path)


def get_folder_paths(folder_name: str) -> list[str]:
    return list(folder_names_and_paths[folder_name][0])


def get_filename_list(folder_name: str) -> list[str]:
    paths, endings = folder_names_and_paths[folder_name]
    found = {str(f.relative_to(root)) for root in map(Path, paths) for f in root.rglob("*") if f.is_file()}
    return sorted(name for name in found if not endings or os.path.splitext(name)[1].lower() in endings)


def get_full_path(folder_name: str, filename: str) -> str | None:
    inside = os.path.relpath(os.path.join("/", filename), "/")
    full = (os.path.join(root, inside) for root in get_folder_paths(folder_name))
    return next((path for path in full if os.path.isfile(path)), None)


def _inside(directory: str, target: str) -> bool:
    directory = os.path.realpath(directory)
    return os.path.commonpath((directory, os.path.realpath(target))) == directory


def get_save_image_path(
    filename_prefix: str, output_dir: str, image_width=0, image_height=0
) -> tuple[str, str, int, str, str]:
    """Folder, name, next free number, subfolder and prefix of what is to be saved as `<name>_<number>_…`."""
    subfolder, name = os.path.split(os.path.normpath(filename_prefix))
    folder = os.path.join(output_dir, subfolder)
    if not _inside(output_dir, folder):
        raise ValueError("Saving image outside the output folder is not allowed.")
    os.makedirs(folder, exist_ok=True)
    taken = (f[len(name) + 1 :].split(".")[0].split("_")[0] for f in os.listdir(folder) if f.startswith(f"{name}_"))
    return folder, name, max((int(n) for n in taken if n.isdigit()), default=0) + 1, subfolder, filename_prefix
