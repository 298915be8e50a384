"""Run ComfyUI's own Wan text encoder on files: python core_text.py COMFYUI JOB, with ComfyUI's interpreter.

JOB is a JSON file: `files` {name: path}, `texts`, `config` (where it differs from UMT5-XXL), `length` (core pads to
it), and `found`: the path for `<name>.ids.<i>` and `<name>.embeddings.<i>` of every text, as safetensors.
"""

import json
import sys
from pathlib import Path


def main(comfyui: str, job: str) -> None:
    sys.argv = sys.argv[:1]
    sys.path.insert(0, comfyui)
    from comfy.cli_args import args

    args.cpu = True
    import comfy.sd
    import torch
    from safetensors.torch import save_file

    job = json.loads(Path(job).read_text(encoding="utf-8"))
    options = {"umt5xxl_model_config": job["config"], "dtype": torch.float32}
    found = {}
    with torch.inference_mode():
        for name, path in job["files"].items():
            clip = comfy.sd.load_clip([path], clip_type=comfy.sd.CLIPType.WAN, model_options=options)
            clip.set_tokenizer_option("umt5xxl_min_length", job["length"])
            for i, text in enumerate(job["texts"]):
                tokens = clip.tokenize(text)
                found[f"{name}.ids.{i}"] = torch.tensor([token for token, *_ in tokens["umt5xxl"][0]])
                found[f"{name}.embeddings.{i}"] = clip.encode_from_tokens(tokens)[0].float().contiguous()
    save_file(found, job["found"])


if __name__ == "__main__":
    main(*sys.argv[1:])
