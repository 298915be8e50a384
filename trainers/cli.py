"""The command line: `python -m trainers …` in a checkout, `identity-grpo …` where it is installed.

Every command is a module of `commands` with `add_arguments(parser)` and `main(options) -> exit status`. Only the module
of the command that was called is imported, so that torch is loaded when a command needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn, TextIO

from .errors import UserError, meant, program, shown

COMMANDS = {
    "demo": "train TinyWorld's policy for some minutes on this machine and show before and after",
    "train": "train a policy's LoRA against the identity reward",
    "resume": "continue a run from its newest checkpoint",
    "evaluate": "measure a run's LoRA on the held-out items against the base policy",
    "sample": "generate a video of the people on reference images",
    "reward": "train a reward on votes, collect and distort pairs, compare rewards",
    "score": "score clips by the identity reward; a score has no zero, compare it with another",
    "faces": "report whether the people of clips are those of the reference images, by their faces",
    "runs": "list runs; show, stop, save, sample, rename, copy, export, delete or restore one; order the queue",
    "inspect": "say what files of weights are: kind, size, types, form, and what they were trained with",
    "convert": "write pickled weights (.pth) as .safetensors, without running code in them",
    "fetch": "list the published files that a task needs and where they belong; download them with --download",
    "prompts": "make a prompt set of portraits and scenes, with people and scenes held out",
    "settings": "print every setting with its type, default, preset values and meaning",
    "proof": "repeat the learning claim: several seeds and controls with shuffled rewards, as one table",
    "bench": "measure seconds, TFLOP/s and memory of every phase of an iteration on this machine",
    "memory": "train a short run under several limits of GPU memory, and compare what it needed with the plan",
    "scaling": "train a short run on one GPU and on several, and predict what more would take",
    "verify": "recompute golden cases and print each quantity's error; exit 1 if one is out of tolerance",
    "comfyui": "start ComfyUI with this pack in it; finds it, or installs it through comfy-cli",
}
WORK = "work"
"""The process of a run that `train`, `resume` or ComfyUI started: not for users, so not in the list."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 a check failed, 2 a user error, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        _escape_what_cannot_be_shown(stream)
    options = make_parser(arguments).parse_args(arguments)
    try:
        with _signals_as_ctrl_c():
            status = options.main(options)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has enough; without this, Python's flush at exit would report it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A folder that cannot be written, a full disk. The log of a run in the background gets the traceback.
        if options.command == WORK or error.errno is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


class Parser(argparse.ArgumentParser):
    """One whose errors are short and name the choice or option that was probably meant.

    Options of a command may stand anywhere: argparse by itself refuses an argument behind them that may be left out.
    """

    _intermixed = False

    def parse_known_args(self, args=None, namespace=None):
        if self._intermixed or any(action.nargs == argparse.PARSER for action in self._actions):
            return super().parse_known_args(args, namespace)
        self._intermixed = True
        try:
            for word in itertools.takewhile(lambda word: word != "--", sys.argv[1:] if args is None else args):
                self._require_known(word)
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixed = False

    def _require_known(self, word: str) -> None:
        name, options = word.partition("=")[0], list(self._option_string_actions)
        # As argparse has it, a word with a space is a value, and the beginning of an option stands for it.
        if re.match(r"--?[a-zA-Z]", name) and " " not in word and not any(o.startswith(name) for o in options):
            self.error(f"there is no option {name}{meant(name, [o for o in options if o.startswith('--')])}")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f"`{value}` is unknown; choose one of {', '.join(known)}{meant(str(value), known)}"
            )

    def error(self, message: str) -> NoReturn:
        super().error(re.sub(r"\S{201,}", lambda word: shown(word[0]), message))


def make_parser(arguments: Sequence[str]) -> Parser:
    """A parser of all commands by name, with the arguments of the one that is called."""
    parser = Parser(program(), description="Teach video models to keep several people's faces, by GRPO.")
    parsers = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    called = next((word for word in arguments if not word.startswith("-")), None)
    for name, text in COMMANDS.items():
        command = parsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == called:
            _complete(command, name)
    if called == WORK:
        _complete(parsers.add_parser(WORK), WORK)
    return parser


def _complete(parser: argparse.ArgumentParser, name: str) -> None:
    module = import_module(f".commands.{name}", __package__)
    module.add_arguments(parser)
    parser.set_defaults(main=module.main)


def _escape_what_cannot_be_shown(stream: TextIO | None) -> None:
    """A prompt or a path with letters that the console does not have must not end the program."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    elif stream is not None:
        # As a codecs.StreamWriter. Other streams without `reconfigure`, such as a notebook's, take every letter.
        with contextlib.suppress(AttributeError):
            stream.errors = "backslashreplace"


@contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a closed terminal, as Ctrl-C: a command that started processes then ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    # nohup ignores SIGHUP: that stays.
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) is signal.SIG_DFL}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
