"""`comfyui`: find or install ComfyUI, put this pack in and start it.

Needs the standard library only, so that it works before anything is installed. The tests use it too, to find ComfyUI
and its interpreter.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from ..errors import UserError, program
from .numbers import number_between

PACK = Path(__file__).parents[2]
NAME = "identity-grpo"
MARK = "comfyui_version.py"
ENDING_SECONDS = 20.0
MISSING = """
import sys
from importlib.metadata import PackageNotFoundError, version
def missing(name):
    try:
        return version(name) is None
    except PackageNotFoundError:
        return True
print("\\n".join(name for name in sys.argv[1:] if missing(name)))
"""
HAS_GPU = """
import sys, torch
sys.exit(not (torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()))
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--port", type=number_between(1, 65535), default=8188, help="where ComfyUI's server answers (default: 8188)"
    )


def main(options: Namespace) -> int:
    """Find or install ComfyUI, put the pack in, start it and print its address; returns when ComfyUI ends.

    Returns 1 when ComfyUI cannot be installed. Raises UserError for what the user can change, and where only the wheel
    is installed.
    """
    if Path(__file__).parents[1].name != "trainers":
        raise UserError(
            f"ComfyUI needs the pack's folder and {PACK} has none; get the repository, run `make comfyui` there"
        )
    folder = find_comfyui()
    if folder is None or unfinished(folder):
        folder = install()
    if folder is None:
        print(
            "ComfyUI could not be installed through comfy-cli; the reason is above.\n"
            "Once that is fixed, the same command continues from there. Or install ComfyUI yourself\n"
            "(https://docs.comfy.org/installation) and set COMFYUI_PATH to its folder.\n"
            f"The pack works without ComfyUI too: see `make demo` and `{program()} --help`.",
            file=sys.stderr,
        )
        return 1
    python = find_python(folder)
    if python is None:
        raise UserError(
            f"ComfyUI is in {folder}, but no interpreter has what its requirements.txt asks for; name the one that "
            "has: `make comfyui PYTHON=/path/to/python`, or make one: "
            "https://docs.comfy.org/installation/manual_install"
        )
    name = put_in(folder)
    add_requirements(python)
    return start(folder, python, name, options.port)


# --- finding ---------------------------------------------------------------------------------------------------------


def find_comfyui() -> Path | None:
    """ComfyUI's folder: `COMFYUI_PATH`, else the one this pack sits in, else comfy-cli's default place.

    Raises UserError when COMFYUI_PATH names something else.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        folder = Path(os.path.expanduser(named)).resolve()
        if not (folder / MARK).is_file():
            raise UserError(f"COMFYUI_PATH is {folder}, which has no {MARK}; name the folder with ComfyUI's main.py")
        return folder
    around = [PACK.parents[1]] if PACK.parent.name == "custom_nodes" else []
    return next((place for place in (*around, default_place()) if (place / MARK).is_file()), None)


def default_place() -> Path:
    """Where comfy-cli installs ComfyUI when no workspace is given."""
    if sys.platform in ("darwin", "win32"):
        return Path.home() / "Documents" / "comfy" / "ComfyUI"
    return Path.home() / "comfy" / "ComfyUI"


def find_python(comfyui: Path) -> Path | None:
    """The interpreter that has all that ComfyUI requires: its own environment's, the embedded one's, else this one."""
    own = [comfyui / env / place for env in (".venv", "venv") for place in ("bin/python", "Scripts/python.exe")]
    candidates = [*own, comfyui.parent / "python_embeded" / "python.exe", Path(sys.executable)]
    return next(
        (python for python in candidates if python.exists() and not missing_requirements(comfyui, python)), None
    )


def unfinished(folder: Path) -> bool:
    """Whether comfy-cli began to install this ComfyUI: it is at the default place and its environment is incomplete."""
    return folder == default_place() and (folder / ".venv").is_dir() and find_python(folder) is None


def missing_requirements(folder: Path, python: Path) -> list[str]:
    """Distributions of the folder's requirements.txt that the interpreter lacks."""
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [found[0] for line in lines if (found := re.match(r"[A-Za-z0-9][\w.-]*", line))]
    done = subprocess.run([python, "-c", MISSING, *names], capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else names


# --- installing ------------------------------------------------------------------------------------------------------


def install() -> Path | None:
    """Install ComfyUI's newest release through comfy-cli at its default place, or complete it; None when that fails.

    comfy-cli goes into the pack's environment; ComfyUI gets an environment of its own, `.venv` in its folder.
    """
    environment = PACK / ".venv"
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    place = default_place()
    print(
        f"No complete ComfyUI was found. Installing it through comfy-cli into {place} (COMFYUI_PATH names another); "
        "with its packages these are gigabytes.",
        flush=True,
    )
    # With these set, comfy-cli would install ComfyUI's packages there.
    outside = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    # Without a version it would be the newest commit; an installed one keeps its version.
    what = ["--restore"] if place.exists() else ["--version", "latest"]
    commands = [
        [scripts / "python", "-m", "pip", "install", "--quiet", "comfy-cli"],
        [scripts / "comfy", "--skip-prompt", "--workspace", place, "install", *what, _card()],
    ]
    if not (scripts / "python").exists() and not (scripts / "python.exe").exists():
        commands.insert(0, [sys.executable, "-m", "venv", environment])
    if any(subprocess.run(command, env=outside, check=False).returncode for command in commands):
        return None
    return find_comfyui()


def _card() -> str:
    """comfy-cli's option for this machine's accelerator."""
    if sys.platform == "darwin":
        return "--m-series"
    return next(
        (option for tool, option in (("nvidia-smi", "--nvidia"), ("rocminfo", "--amd")) if shutil.which(tool)), "--cpu"
    )


def put_in(comfyui: Path) -> str:
    """The pack's name among ComfyUI's packs; a link is made unless it is there. Touches nothing that exists."""
    packs = comfyui / "custom_nodes"
    for entry in packs.iterdir():
        if entry.resolve() == PACK.resolve():
            return entry.name
    place = packs / NAME
    if place.exists() or place.is_symlink():
        raise UserError(f"{place} is there already and is not this checkout; move it away, or run `make comfyui` in it")
    try:
        place.symlink_to(PACK, target_is_directory=True)
    except OSError as error:
        raise UserError(
            f"cannot link this folder into ComfyUI ({error}); copy or move it to {place} yourself"
        ) from error
    print(f"linked {PACK} as {place}")
    return NAME


def add_requirements(python: Path) -> None:
    """Install what ComfyUI's interpreter lacks of the pack's requirements."""
    if lacking := missing_requirements(PACK, python):
        print(f"installing {', '.join(lacking)} for {python}", flush=True)
        if subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "-r", PACK / "requirements.txt"], check=False
        ).returncode:
            raise UserError(f"pip could not install {PACK / 'requirements.txt'} with {python}; its reason is above")


# --- starting --------------------------------------------------------------------------------------------------------


def start(comfyui: Path, python: Path, name: str, port: int) -> int:
    """Run the server in the foreground; its exit status."""
    if _answers(port):
        raise UserError(
            f"port {port} is taken, by a ComfyUI perhaps; end that one, or name another: make comfyui PORT={port + 1}"
        )
    command = [python, "main.py", "--port", str(port), "--disable-auto-launch"]
    if subprocess.run([python, "-c", HAS_GPU], capture_output=True, check=False).returncode:
        command.append("--cpu")
    server = subprocess.Popen(command, cwd=comfyui)
    try:
        if _wait(server, port):
            print(
                f"\nOpen {address(name, port)}\nIt shows the first workflow, ready to run; the others are under "
                f"Templates, {name}. Ctrl-C ends ComfyUI.\n",
                flush=True,
            )
        else:
            print(f"ComfyUI ended before it answered; the reason is above. It ran with {python}.", file=sys.stderr)
        return server.wait()
    except KeyboardInterrupt:
        # The terminal has sent Ctrl-C to the server as well; SIGTERM was for this process alone.
        try:
            return server.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            server.terminate()
            return server.wait()


def address(name: str, port: int) -> str:
    """Where the editor opens with the pack's first workflow (its template loader takes plain names only)."""
    first = min(
        (p.stem for p in (PACK / "workflows").glob("*.json") if re.fullmatch(r"[\w.-]+", p.stem, re.ASCII)),
        default=None,
    )
    return f"http://127.0.0.1:{port}/" + (f"?template={first}&source={name}" if first else "")


def _wait(server: subprocess.Popen, port: int) -> bool:
    """Whether the server answers before it ends; a first start may take minutes."""
    while server.poll() is None:
        try:
            urlopen(f"http://127.0.0.1:{port}/system_stats", timeout=5).close()
        except (URLError, OSError):
            time.sleep(0.5)
        else:
            return True
    return False


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
