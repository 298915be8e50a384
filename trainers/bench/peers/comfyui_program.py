"""A program for ComfyUI's own interpreter: seconds of a sampling step of core's Wan model with random weights.

Its one argument is JSON (see `comfyui.py`, which starts it); its last line of output is JSON: `seconds` of a step of
one video for each repeat, `peak_bytes` and `version`, or `error`. Nothing imports this file, and it imports nothing of
this package.
"""

from __future__ import annotations

import json
import math
import sys
import time


def main(task: dict) -> dict:
    """Measure what `task` describes."""
    sys.path.insert(0, task["folder"])
    del sys.argv[1:]
    from comfy.cli_args import args

    args.cpu = task["cpu"]
    import comfyui_version
    import torch

    patcher = load(task, getattr(torch, task["dtype"]))
    times: list[float] = []

    def after_step(step: int, *_) -> None:
        if step in (0, task["steps"]):
            if not task["cpu"]:
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    seconds, peak = [], 0
    for repeat in range(task["repeats"] + 1):
        times.clear()
        if not task["cpu"]:
            torch.cuda.reset_peak_memory_stats()
        sample(patcher, task, after_step)
        if repeat:  # the first is for warming up
            seconds.append((times[1] - times[0]) / task["steps"])
    if not task["cpu"]:
        peak = torch.cuda.max_memory_allocated()
    return {"seconds": seconds, "peak_bytes": peak, "version": comfyui_version.__version__}


def load(task: dict, dtype):
    """ComfyUI's loader at a state dict of random weights, as its node Load Diffusion Model calls it."""
    import comfy.ldm.wan.model
    import comfy.model_management
    import comfy.ops
    import comfy.sd
    import torch

    vace = task["kind"] == "vace"
    network = comfy.ldm.wan.model.VaceWanModel if vace else comfy.ldm.wan.model.WanModel
    empty = network(
        model_type="vace" if vace else "t2v",
        **task["network"],
        device="meta",
        dtype=dtype,
        operations=comfy.ops.disable_weight_init,
    )
    device = comfy.model_management.get_torch_device()

    def weight(name: str, shape: tuple[int, ...]):
        if len(shape) == 1:
            return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=dtype)
        inputs = shape[-1] if len(shape) < 4 else math.prod(shape[1:])
        return (torch.randn(shape, dtype=dtype, device=device) / math.sqrt(inputs)).cpu()

    state = {name: weight(name, tuple(tensor.shape)) for name, tensor in empty.state_dict().items()}
    stated = {"config": json.dumps({"transformer": task["network"]})}
    patcher = comfy.sd.load_diffusion_model_state_dict(state, metadata=stated)
    if patcher is None:
        raise RuntimeError("ComfyUI does not recognise the model")
    return patcher


def sample(patcher, task: dict, after_step) -> None:
    """One video by euler, with the conditioning that core's nodes for VACE and Phantom make."""
    import comfy.sample
    import torch

    channels, frames, height, width = task["latents"]
    references, text = task["references"], [torch.randn(1, 512, task["network"]["text_dim"]) for _ in range(2)]
    if task["kind"] == "vace":
        control = {
            "vace_frames": [torch.zeros(1, 2 * channels, frames, height, width)],
            "vace_mask": [torch.ones(1, 64, frames, height, width)],
            "vace_strength": [1.0],
        }
        positive, middle, negative = control, control, control
    else:
        pictures = torch.randn(1, channels, references, height, width)
        positive = middle = {"time_dim_concat": pictures}
        negative = {"time_dim_concat": torch.zeros_like(pictures)}
    conditions = [[[text[0], positive]], [[text[1], middle]], [[text[1], negative]]]
    latent = torch.zeros(1, channels, frames, height, width)
    noise = torch.randn(latent.shape)
    steps = task["steps"] + 1
    watched = {"callback": after_step, "disable_pbar": True, "seed": 0}
    if task["image_cfg"] is None:
        ends = conditions[0], conditions[2]
        comfy.sample.sample(patcher, noise, steps, task["cfg"], "euler", "simple", *ends, latent, **watched)
        return
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    guider = Guider_DualCFG(patcher)
    guider.set_conds(*conditions)
    guider.set_cfg(task["cfg"], task["image_cfg"])
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", steps)
    euler = comfy.samplers.sampler_object("euler")
    guider.sample(noise, latent, euler, sigmas, **watched)


if __name__ == "__main__":
    try:
        found = main(json.loads(sys.argv[1]))
    except (ImportError, RuntimeError) as problem:
        found = {"error": f"{type(problem).__name__}: {problem}"}
    print("\n" + json.dumps(found))
