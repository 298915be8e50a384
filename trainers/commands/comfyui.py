"""Where ComfyUI is on this machine, and which interpreter runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PACK = Path(__file__).parents[2]
MARK = "comfyui_version.py"
CHECK = """
import sys
from importlib.metadata import PackageNotFoundError, version
def missing(name):
    try:
        return version(name) is None
    except PackageNotFoundError:
        return True
print("\\n".join(name for name in sys.argv[1:] if missing(name)))
"""


def find_comfyui() -> Path | None:
    """ComfyUI's folder: `COMFYUI_PATH`, else the one this pack sits in, else comfy-cli's default place."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        return Path(named).expanduser().resolve() if (Path(named).expanduser() / MARK).is_file() else None
    around = [PACK.parents[1]] if PACK.parent.name == "custom_nodes" else []
    return next((place for place in (*around, default_place()) if (place / MARK).is_file()), None)


def default_place() -> Path:
    """Where comfy-cli installs ComfyUI unless told otherwise."""
    if sys.platform in ("darwin", "win32"):
        return Path.home() / "Documents" / "comfy" / "ComfyUI"
    return Path.home() / "comfy" / "ComfyUI"


def find_python(comfyui: Path) -> Path | None:
    """The interpreter that has all that ComfyUI requires: its own environment's, the embedded one's, else this one."""
    own = [comfyui / env / place for env in (".venv", "venv") for place in ("bin/python", "Scripts/python.exe")]
    candidates = [*own, comfyui.parent / "python_embeded" / "python.exe", Path(sys.executable)]
    return next((python for python in candidates if python.exists() and not missing_requirements(comfyui, python)), None)


def missing_requirements(comfyui: Path, python: Path) -> list[str]:
    """Distributions of ComfyUI's requirements.txt that the interpreter lacks."""
    lines = (comfyui / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [found[0] for line in lines if (found := re.match(r"[A-Za-z0-9][\w.-]*", line))]
    done = subprocess.run([python, "-c", CHECK, *names], capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else names
