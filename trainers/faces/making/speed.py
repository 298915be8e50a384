"""How long a report takes and how much memory, and whether the GPU gives what the CPU does.

`python -m trainers.faces.making.speed PICTURES [DEVICE]`, with a folder of two or more portraits (.jpg). The clip has
two people in FRAMES frames of SIZE. It needs torch, numpy, pillow and safetensors alone.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ...pictures.reading import read_pixels
from ..detect import detect
from ..embed import embed
from ..report import find_people, report

FRAMES, SIZE, FPS = 81, (832, 480), 16.0
COMPARED = 8  # frames that are computed on both devices
GIB = 2**30


def make_clip(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """uint8 [FRAMES, H, W, 3]: two portraits, mirrored, which move on a plain background."""
    frames = []
    for number in range(FRAMES):
        frame = Image.new("RGB", SIZE, (90, 120, 110))
        for index, portrait in enumerate((left, right)):
            picture = ImageOps.mirror(Image.fromarray(portrait))
            width = round(230 + 15 * np.sin(number / 9 + index))
            picture = picture.resize((width, round(width * picture.height / picture.width)))
            frame.paste(picture, (round(90 + 400 * index + 20 * np.sin(number / 8 + 2 * index)), 120))
        frames.append(np.array(frame))
    return np.stack(frames)


def main(pictures: Path, device: torch.device) -> None:
    files = sorted(path for path in pictures.glob("*.jpg") if "chip" not in path.stem)[:2]
    portraits = [read_pixels(path) for path in files]
    clip = torch.from_numpy(make_clip(*portraits))
    people = find_people(portraits, device, [path.name for path in files])
    report(clip[:8], people, FPS, device)  # what is done once: weights, and algorithms of the GPU
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start, cpu = time.perf_counter(), time.process_time()
    found = report(clip, people, FPS, device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"device: {name}")
    print(f"{FRAMES} frames of {SIZE[0]}x{SIZE[1]}, 2 people: {seconds:.2f} s, of which the CPU worked {cpu:.2f} s")
    print(f"memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB at most")
    if device.type == "cuda":
        print(f"memory on the GPU: {torch.cuda.max_memory_allocated() / GIB:.2f} GiB at most")
    print(f"headline {found.headline:.4f}, faces found {len(found.faces)} of {2 * FRAMES}")
    if device.type != "cpu":
        _compare(clip[:COMPARED], device)


def _compare(clip: torch.Tensor, device: torch.device) -> None:
    """The largest differences between the devices, of the same faces."""
    there, here = detect(clip, device), detect(clip, "cpu")
    if len(there) != len(here):
        print(f"DIFFERENT: {len(there)} faces on the GPU, {len(here)} on the CPU")
        return
    boxes = (there.box - here.box).abs().max().item()
    distances = (embed(there) - embed(here)).norm(dim=1).max().item()
    print(f"GPU and CPU: the same {len(here)} faces; boxes differ by {boxes:.3f} pixels, embeddings by {distances:.4f}")


if __name__ == "__main__":
    default = "cuda" if torch.cuda.is_available() else "cpu"
    main(Path(sys.argv[1]), torch.device((sys.argv[2:3] or [default])[0]))
