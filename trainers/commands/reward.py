"""`reward`: votes on pairs of clips become a reward; every action is a module `reward_<action>`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from importlib import import_module

ACTIONS = {
    "pairs": "show a folder of pairs, or add to it: a table, another folder, the samples of a run, a folder of clips",
    "train": "train a reward on pairs",
    "distort": "make pairs of real clips by distorting them: swap, drop, blend or drift of a person, by their faces",
    "compare": "show the held-out pairs on which two rewards disagree",
    "proof": "TinyWorld: a reward of 200 votes, GRPO on it, and both with shuffled votes, as one table",
    "bench": "measure step time and memory of training a reward of the real size, with random weights",
}


def add_arguments(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action", help="what to do")
    for name, text in ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        module = import_module(f".reward_{name}", __package__)
        module.add_arguments(action)
        action.set_defaults(act=module.main)


def main(options: Namespace) -> int:
    return options.act(options)
