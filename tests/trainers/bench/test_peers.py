"""Other programs at TinyWorld's size: diffusers as it is installed, stand-ins for a checkout and for ComfyUI."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trainers.bench.measure import OUT_OF_MEMORY, measure
from trainers.bench.peers import comfyui
from trainers.bench.peers.comfyui import measure_comfyui, task_of
from trainers.bench.peers.plain_diffusers import PlainDiffusers
from trainers.bench.peers.published import Published
from trainers.config import make_config

CPU = torch.device("cpu")
VIDEO = {"height": 32, "width": 32, "frames": 5}
ROLLOUT = {"guidance": 2.0, "steps": 2, "window": {"kind": "random", "size": 1, "last": 1}}
CONFIG = {"video": VIDEO, "rollout": ROLLOUT, "optim": {"micro_batch": 2}}
# What the adapter calls of the published code, at its simplest.
SAMPLER = """
import torch

def sde_step_with_logprob(scheduler, velocity, timesteps, sample, prev_sample=None):
    mean = sample - 0.1 * velocity
    after = mean + 0.1 if prev_sample is None else prev_sample
    return after, -(after - mean).square().mean((1, 2, 3, 4)), mean, torch.full((1, 1, 1, 1, 1), 0.1)

def wan_pipeline_with_logprob(self, num_inference_steps, return_dict, prompt_embeds, reference_images, **_):
    self.scheduler.set_timesteps(num_inference_steps)
    states, densities = [torch.zeros(1, 16, 4, 4, 4)], []
    control = torch.zeros(1, 96, 4, 4, 4)
    with self.progress_bar(total=num_inference_steps) as bar:
        for t in self.scheduler.timesteps:
            velocity = self.transformer(
                hidden_states=states[-1], timestep=t.expand(1), encoder_hidden_states=prompt_embeds,
                control_hidden_states=control, return_dict=False)[0]
            found = sde_step_with_logprob(self.scheduler, velocity, t, states[-1])
            states.append(found[0]); densities.append(found[1])
            bar.update()
    return None, states, densities, None, control
"""


@pytest.fixture
def checkout(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "published" / "flow_grpo" / "diffusers_patch"
    folder.mkdir(parents=True)
    (folder / "wan_vace_pipeline_with_logprob.py").write_text(SAMPLER)
    yield tmp_path / "published"
    for name in [name for name in sys.modules if name.partition(".")[0] == "flow_grpo"]:
        del sys.modules[name]


@pytest.mark.parametrize("kind", ["vace", "phantom"])
def test_diffusers_samples_and_decodes(kind):
    rows = [
        measure(phase, CPU, 1) for phase in PlainDiffusers("tiny", kind, make_config("tiny", CONFIG), 2, CPU).phases()
    ]
    assert [row.error for row in rows] == ["", ""]
    assert [row.ours for row in rows] == ["sample step (ODE)", "decode"]


def test_the_published_code_samples_and_trains(checkout):
    config = make_config("tiny", {**CONFIG, "optim": {"micro_batch": 2, "kl": 0.1}})
    published = Published(checkout, "tiny", "vace", config, 2, CPU)
    rows = [measure(phase, CPU, 1) for phase in published.phases()]
    assert [row.error for row in rows] == ["", ""]
    gradients = [p.grad for n, p in published.pipeline.transformer.named_parameters() if "lora_B" in n]
    assert gradients and all(g.isfinite().all() for g in gradients) and any(g.any() for g in gradients)


def test_a_folder_that_is_no_checkout_is_a_row(tmp_path):
    row = measure(Published(tmp_path, "tiny", "vace", make_config("tiny", CONFIG), 2, CPU).phases()[0], CPU, 1)
    assert "give a checkout of alibaba/identity-grpo" in row.error


def test_a_checkout_that_cannot_be_imported_is_a_row(checkout):
    (checkout / "flow_grpo" / "diffusers_patch" / "wan_vace_pipeline_with_logprob.py").write_text("import absent_thing")
    row = measure(Published(checkout, "tiny", "vace", make_config("tiny", CONFIG), 2, CPU).phases()[0], CPU, 1)
    assert "absent_thing" in row.error


def test_the_published_code_has_no_phantom(checkout):
    row = measure(Published(checkout, "tiny", "phantom", make_config("tiny-phantom"), 2, CPU).phases()[1], CPU, 1)
    assert "no Phantom" in row.error


# --- ComfyUI ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, rollout, frames, scales",
    [
        ("vace", {"guidance": 4.5}, 3 + 2, (4.5, None)),
        ("phantom", {"guidance": 7.5, "image_guidance": 5.0}, 3, (7.5, 5.0)),
        ("phantom", {"guidance": 1.0, "image_guidance": 1.0}, 3, (1.0, None)),
    ],
)
def test_comfyui_gets_the_same_size_and_guidance(kind, rollout, frames, scales):
    config = make_config(
        f"fast{'-phantom' * (kind == 'phantom')}", {"video": {**VIDEO, "frames": 9}, "rollout": rollout}
    )
    task = task_of("1.3b", kind, config, 2, 3)
    assert task["latents"] == [16, frames, 4, 4]
    assert (task["cfg"], task["image_cfg"]) == scales
    assert (task["network"]["dim"], task["network"]["num_heads"]) == (1536, 12)
    assert task["network"].get("vace_layers") == (15 if kind == "vace" else None)


def run_program(tmp_path, monkeypatch, text: str, kind: str = "phantom"):
    """The row of a program in the place of ours."""
    (tmp_path / "program.py").write_text(text)
    monkeypatch.setattr(comfyui, "PROGRAM", tmp_path / "program.py")
    task = task_of("tiny", kind, make_config(f"tiny{'-phantom' * (kind == 'phantom')}"), 2, 2)
    return measure_comfyui(tmp_path, Path(sys.executable), task, CPU)


def test_the_last_line_of_its_process_is_the_measurement(tmp_path, monkeypatch):
    found = json.dumps({"seconds": [1.0, 3.0], "peak_bytes": 5, "version": "0.33"})
    row = run_program(tmp_path, monkeypatch, f"print('loading'); print({found!r})")
    assert (row.seconds, row.peak_bytes, row.error) == ([1.0, 3.0], 5, "")


@pytest.mark.parametrize(
    "text, error",
    [
        ("import json; print(json.dumps({'error': 'OutOfMemoryError: CUDA out of memory'}))", OUT_OF_MEMORY),
        ("raise SystemError('no such card')", "no such card"),
        ("raise SystemExit(3)", "exit status 3"),
    ],
)
def test_why_it_failed_is_the_note(tmp_path, monkeypatch, text, error):
    row = run_program(tmp_path, monkeypatch, text)
    assert error in row.error and row.seconds == []


def test_control_blocks_that_comfyui_cannot_place_are_not_tried(tmp_path, monkeypatch):
    row = run_program(tmp_path, monkeypatch, "raise SystemError", kind="vace")
    assert "2 control blocks for 5 layers" in row.error
