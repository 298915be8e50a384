"""Run ComfyUI's own Wan VAE on a file: python core_vae.py COMFYUI VAE GIVEN FOUND, with ComfyUI's interpreter.

GIVEN and FOUND are safetensors. GIVEN holds `clip` [1, 3, F, H, W] in [-1, 1]; FOUND gets its `latents`, as core's
sampler takes them, and `frames` [F, H, W, 3] in [0, 1], decoded from them.
"""

import sys


def main(comfyui: str, vae: str, given: str, found: str) -> None:
    sys.argv = sys.argv[:1]
    sys.path.insert(0, comfyui)
    from comfy.cli_args import args

    args.cpu = True
    import comfy.latent_formats
    import comfy.sd
    import comfy.utils
    import torch
    from safetensors.torch import load_file, save_file

    clip = load_file(given)["clip"]
    model = comfy.sd.VAE(sd=comfy.utils.load_torch_file(vae), dtype=torch.float32)
    with torch.inference_mode():
        latents = model.encode((clip[0].permute(1, 2, 3, 0) + 1) / 2)
        frames = model.decode(latents)[0]
        latents = comfy.latent_formats.Wan21().process_in(latents)
    save_file({"latents": latents.contiguous(), "frames": frames.contiguous()}, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
