"""Core's own nodes take what the pack's nodes give, without settings."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from comfy_graphs import SAMPLE, SHOW, node, sampling

IMAGES, VIDEO, FPS = [SAMPLE, 0], [SAMPLE, 2], [SAMPLE, 3]
PROBE = """
import av, json, sys
with av.open(sys.argv[1]) as clip:
    stream = clip.streams.video[0]
    print(json.dumps([stream.width, stream.height, float(stream.average_rate), sum(1 for _ in clip.decode(stream))]))
"""


@pytest.fixture(scope="module")
def saved(comfyui, item) -> dict:
    """The outputs of core's nodes behind one sampler, which is executed once."""
    graph = sampling("VACE", item.prompt) | {
        "6": node("SaveVideo", video=VIDEO, filename_prefix="direct", format="auto", codec="auto"),
        "7": node("CreateVideo", images=IMAGES, fps=FPS),
        "8": node("SaveVideo", video=["7", 0], filename_prefix="created", format="auto", codec="auto"),
        "9": node("GetVideoComponents", video=VIDEO),
        "10": node("PreviewImage", images=["9", 0]),
    }
    result = comfyui.run(graph, 240)
    assert result.status == "success", result.error
    return result.outputs


@pytest.mark.parametrize("name", ["6", "8"], ids=["Save Video", "Create Video and Save Video"])
def test_core_saves_the_video_at_the_models_frame_rate(comfyui, comfyui_python, saved, name):
    (shown,) = saved[name]["images"]
    file = comfyui.base / shown["type"] / shown["subfolder"] / shown["filename"]
    probe = subprocess.run([comfyui_python[1], "-c", PROBE, file], capture_output=True, text=True, check=True)
    assert json.loads(probe.stdout) == [80, 48, 10.0, 9]


def test_core_shows_the_frames_alone_and_out_of_the_video(comfyui, saved):
    alone, unpacked = (comfyui.pictures(saved[name]["images"]) for name in (SHOW, "10"))
    assert alone.shape == (9, 48, 80, 3) and (alone == unpacked).all()


def test_the_templates_examples_are_in_the_input_folder(comfyui):
    examples = sorted(p.name for p in (Path(__file__).parents[2] / "workflows" / "examples").iterdir())
    assert [name for name in examples if not (comfyui.base / "input" / name).is_file()] == []


def test_one_line_at_the_start_says_what_was_found(comfyui):
    lines = [line for line in comfyui.log.splitlines() if "Identity-GRPO" in line and "import" not in line.lower()]
    assert "0 VACE or Phantom models, 0 rewards" in lines[0]
