"""The command line: `python -m trainers …` in a checkout, `identity-grpo …` where it is installed.

Only words are read here; a command's module, and with it torch, is imported when the command is called.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 a check failed, 2 something the user can mend, 130 interrupted."""
    options = make_parser().parse_args(arguments)
    try:
        return options.call(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        # The system's refusal (a place that cannot be written, a full disk); the log of a run in the background tells all.
        if options.call is _work or error.errno is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def program() -> str:
    """How the user called us: to be written in commands we propose."""
    name = Path(sys.argv[0]).name
    return "python -m trainers" if name in ("__main__.py", "-m", "-c") else name


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        program(), description="Teach video models to keep several people's faces, by GRPO."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, call, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(call=call)
        return added

    demo = command("demo", _demo, "train TinyWorld's policy for some minutes on this machine and show before and after")
    _built_in(demo)
    _root(demo)

    train = command("train", _train, "train a policy's LoRA against the identity reward")
    _settings(train)
    train.add_argument("--name", help="how the run's id begins (default: the preset)")
    _processes(train)
    _root(train)

    resume = command("resume", _resume, "go on with a run from its newest checkpoint")
    resume.add_argument(
        "run", nargs="?", default="latest", help="id, beginning of an id, folder, or `latest` (default)"
    )
    _processes(resume)
    _root(resume)

    evaluate = command("evaluate", _evaluate, "measure a run's LoRA on the held-out items against the untouched policy")
    evaluate.add_argument(
        "run", nargs="?", default="latest", help="id, beginning of an id, folder, or `latest` (default)"
    )
    evaluate.add_argument("--lora", type=Path, help="another LoRA than the run's newest export")
    _root(evaluate)

    sample = command("sample", _sample, "draw a video of some people")
    _settings(sample, training=False)
    sample.add_argument(
        "--reference",
        nargs="+",
        type=Path,
        default=[],
        metavar="IMAGE",
        help="one picture per person, in the order of the prompt (TinyWorld can do without: it draws its own)",
    )
    sample.add_argument("--prompt", help="what the video shows")
    sample.add_argument("--negative", default="", help="what it should not show")
    sample.add_argument("--lora", type=Path, help="a LoRA file or PEFT folder")
    sample.add_argument("--strength", type=float, default=1.0, help="of the LoRA (default: 1)")
    sample.add_argument("--seed", type=int, default=0)
    for name, kind in (
        ("height", int),
        ("width", int),
        ("frames", int),
        ("steps", int),
        ("guidance", float),
        ("image-guidance", float),
        ("shift", float),
    ):
        only = "Phantom's scale of the references; " if name == "image-guidance" else ""
        sample.add_argument(f"--{name}", type=kind, help=f"{only}default: the preset's, as in evaluation")
    sample.add_argument(
        "--solver",
        choices=["euler", "unipc"],
        default="euler",
        help="euler (default) as in evaluation; unipc may need half the steps, but not at strong guidance",
    )
    sample.add_argument(
        "--out", type=Path, default=Path("sample.webp"), help="animation, .webp or .gif; frames go to a .png beside it"
    )

    score = command("score", _score, "score clips by the identity reward; a score has no zero, compare it with another")
    score.add_argument("clip", nargs="+", type=Path, help="animation (GIF, WebP), folder of frames, or video file")
    score.add_argument(
        "--reference", nargs="+", type=Path, required=True, metavar="IMAGE", help="one picture per person"
    )
    score.add_argument("--reward", default="tinyworld", help="a reward checkpoint's folder, or `tinyworld` (default)")
    score.add_argument("--base-model", help="the Qwen2.5-VL folder, if the checkpoint does not name it")
    score.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    score.add_argument("--fps", type=float, help="it enters the score (default: the file's, 10 for a folder of frames)")

    runs = command("runs", _runs, "list runs, show one, or stop one")
    runs.add_argument("action", nargs="?", choices=["list", "show", "stop"], default="list")
    runs.add_argument(
        "run", nargs="?", default="latest", help="for show and stop: id, beginning of an id, folder, or `latest`"
    )
    runs.add_argument(
        "--wait", type=float, default=60, help="stop: seconds before it is interrupted, then ended (default: 60)"
    )
    _root(runs)

    proof = command(
        "proof", _proof, "repeat the learning claim: several seeds and a control with shuffled rewards, as one table"
    )
    proof.add_argument("--seeds", type=int, default=5, help="tuned runs (default: 5)")
    proof.add_argument("--controls", type=int, default=5, help="runs with shuffled rewards (default: 5)")
    proof.add_argument("--jobs", type=int, default=3, help="runs at a time on the device (default: 3)")
    _built_in(proof)
    _set(proof)
    _root(proof, "runs/proof")

    verify = command("verify", _verify, "recompute golden kits and print each quantity's error; exit 1 if one is out")
    verify.add_argument("path", nargs="+", type=Path, help="a kit, or a folder of kits")

    comfyui = command(
        "comfyui", _comfyui, "start ComfyUI with this pack in it; finds it, or installs it through comfy-cli"
    )
    comfyui.add_argument("--port", type=int, default=8188, help="default: 8188")

    # Not for people, so not in the list: the process of a run that `train`, `resume` or ComfyUI started.
    work = commands.add_parser("work")
    work.set_defaults(call=_work)
    work.add_argument("folder", type=Path)
    work.add_argument("--resume", action="store_true")
    work.add_argument("--share-devices", action="store_true")
    return parser


def _built_in(parser) -> None:
    parser.add_argument(
        "--policy", choices=("vace", "phantom"), default="vace", help="which of TinyWorld's policies (default: vace)"
    )


def _root(parser: argparse.ArgumentParser, default: str = "runs") -> None:
    parser.add_argument(
        "--runs", type=Path, default=Path(default), metavar="FOLDER", help=f"where runs are kept (default: {default})"
    )


def _processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes", type=int, default=1, help="one per GPU; any number gives the same run (default: 1)"
    )


def _set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting, e.g. rollout.steps=8; may be repeated",
    )


def _settings(parser: argparse.ArgumentParser, training: bool = True) -> None:
    parser.add_argument(
        "--preset",
        choices=["paper", "fast", "tiny", "paper-phantom", "fast-phantom", "tiny-phantom"],
        help="default: that of the policy, tiny for TinyWorld, else paper",
    )
    parser.add_argument(
        "--policy",
        help="a diffusers folder or .safetensors file of VACE or Phantom, `tinyworld` (default) or `tinyworld-phantom`",
    )
    _set(parser)
    if training:
        parser.add_argument("--reward", help="a reward checkpoint's folder, or `tinyworld` (default)")
        parser.add_argument("--prompts", help="CSV with ref_paths and prompt, or `tinyworld` (default)")
        parser.add_argument("--evaluation-prompts", help="CSV of held-out items")
        parser.add_argument("--held-out", type=int, help="rows taken off the end of --prompts for evaluation instead")
        parser.add_argument("--iterations", type=int)
        parser.add_argument("--seed", type=int)
        parser.add_argument("--start-lora", help="a LoRA to start from")


def _demo(options) -> int:
    from .commands import demo

    return demo.main(options.runs, policy=options.policy)


def _train(options) -> int:
    from .commands import train
    from .commands.settings import config_from

    return train.main(config_from(options), options.runs, options.name, options.processes)


def _resume(options) -> int:
    from .commands import train
    from .runs.registry import find

    return train.resume(find(options.runs, options.run), options.processes)


def _work(options) -> int:
    from .commands import train
    from .runs.folder import RunFolder

    return train.work(RunFolder(options.folder), options.resume, options.share_devices)


def _evaluate(options) -> int:
    from .commands import evaluate
    from .runs.registry import find

    return evaluate.main(find(options.runs, options.run), options.lora)


def _sample(options) -> int:
    from .commands import sample
    from .commands.settings import config_from

    return sample.main(
        config_from(options),
        options.reference,
        options.prompt,
        options.negative,
        options.lora,
        options.strength,
        options.seed,
        options.out,
        options.solver,
    )


def _score(options) -> int:
    from .commands import score
    from .config import RewardConfig

    reward = RewardConfig(source=options.reward, base_model=options.base_model, dtype=options.dtype)
    return score.main(options.clip, options.reference, reward, options.fps)


def _runs(options) -> int:
    from .commands import runs

    return runs.main(options.action, options.runs, options.run, options.wait)


def _proof(options) -> int:
    from .commands import proof
    from .commands.settings import parse_settings

    return proof.main(
        options.runs, options.seeds, options.controls, options.jobs, parse_settings(options.set), options.policy
    )


def _verify(options) -> int:
    from . import verify

    return verify.main(options.path)


def _comfyui(options) -> int:
    from .commands import comfyui

    return comfyui.main(options.port)
