"""`reward pairs`: a folder of pairs for people to vote on, filled from tables, folders, runs and clips."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, listed
from .numbers import number_between
from .options import add_policy_and_preset, add_runs_folder, config_from
from .tables import markdown_table

if TYPE_CHECKING:
    from ..preference.folder import PairFolder, PairRecords


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of pairs; it is made when something is added")
    parser.add_argument(
        "--table",
        type=Path,
        metavar="CSV",
        help="add a table: path_A, path_B, `verdict` or `SA`, and if wanted ref_paths, prompt, fps, kind, who",
    )
    parser.add_argument("--data", type=Path, help="folder that the table's paths are relative to (default: its own)")
    parser.add_argument(
        "--merge", type=Path, nargs="+", default=[], metavar="FOLDER", help="add other folders of pairs"
    )
    parser.add_argument("--run", help="add the clips of a run: its base policy against its newest iteration")
    parser.add_argument("--iterations", type=int, nargs=2, metavar="N", help="of --run: compare these two")
    parser.add_argument(
        "--clips", type=Path, nargs="+", default=[], help="add all pairs of these clips of the same people"
    )
    parser.add_argument(
        "--reference", type=Path, nargs="+", default=[], metavar="IMAGE", help="of --clips, one per person"
    )
    parser.add_argument("--prompt", default="", help="of --clips")
    parser.add_argument(
        "--sample",
        type=number_between(1, 10**5),
        metavar="N",
        help="add pairs of the first N items of --sets: sampled with two seeds, or with two --loras under one seed",
    )
    parser.add_argument("--sets", dest="prompts", metavar="CSV", help="prompt set of --sample (default: TinyWorld's)")
    parser.add_argument("--loras", type=Path, nargs="+", default=[], help="of --sample: one for both videos, or two")
    parser.add_argument("--first-seed", type=number_between(0, 2**62), default=0, help="of --sample (default: 0)")
    add_policy_and_preset(parser)
    parser.add_argument("--who", default="", help="whose verdicts those of --table are (default: the table's name)")
    parser.add_argument("--automatic", action="store_true", help="no person gave the verdicts of --table")
    add_runs_folder(parser)


def main(options: Namespace) -> int:
    """Add what was named, then print what the folder holds. Raises UserError also for files that cannot be read."""
    from ..preference.folder import PairFolder
    from ..preference.importing import import_table

    folder = PairFolder(options.folder)
    if options.table:
        count = import_table(options.table, folder, options.data, options.who, options.automatic)
        print(f"{count} pairs read from {options.table}")
    for other in options.merge:
        print(f"{folder.merge(PairFolder(other))} lines new from {other}")
    if options.run:
        _add_run(folder, options)
    if options.clips:
        _add_clips(folder, options)
    if options.sample:
        _add_sampled(folder, options)
    records = folder.read()
    print(summary(folder.path, records))
    if problems := folder.unreadable(records):
        raise UserError(
            f"{folder.path} has clips or reference images that cannot be read; copy them there again, or remove all "
            f"lines that name these pairs:{listed(problems)}"
        )
    return 0


def _add_run(folder: PairFolder, options: Namespace) -> None:
    from ..runs.clip_pairs import clip_pairs
    from ..runs.registry import find

    run = find(options.runs, options.run)
    pairs = list(clip_pairs(run, *(options.iterations or (None, None))))
    for pair in pairs:
        folder.add(pair.clips, pair.references, pair.prompt, pair.kind)
    print(f"{len(pairs)} pairs of run {run.id}, {pairs[0].kind if pairs else 'none'}")


def _add_clips(folder: PairFolder, options: Namespace) -> None:
    if len(options.clips) < 2 or not options.reference:
        raise UserError("--clips needs two clips or more, and --reference a picture of every person")
    pairs = list(combinations(options.clips, 2))
    for pair in pairs:
        folder.add(pair, options.reference, options.prompt)
    print(f"{len(pairs)} pairs of {len(options.clips)} clips")


def _add_sampled(folder: PairFolder, options: Namespace) -> None:
    """Videos as evaluation samples them; each item's pair is on the disk before the next one is sampled."""
    if len(options.loras) > 2:
        raise UserError(f"--loras names {len(options.loras)} files; give one for both videos of a pair, or two")
    from accelerate import PartialState

    from ..diffusion.sampling import sample_videos
    from ..grpo.evaluate import evaluation_guidance, evaluation_size
    from ..lora.formats import read_lora
    from ..lora.inject import load_lora_into, remove_lora
    from ..policies.load import policy_of
    from ..prompts import load_prompt_set
    from ..runs.inputs import with_negative
    from ..tinyworld.prompts import tiny_prompt_set
    from .progress import quiet_libraries

    quiet_libraries()
    config = config_from(options).with_absolute_paths()
    if config.prompts == "tinyworld":
        items = tiny_prompt_set("train", options.sample, options.first_seed)
    else:
        items = with_negative(load_prompt_set(config.prompts), config.negative_prompt).items[: options.sample]
    adapters = [read_lora(path) for path in options.loras]
    policy, size = policy_of(config.policy, PartialState().device), evaluation_size(config)
    kind = "two LoRAs" if len(adapters) == 2 else "two seeds"
    for number, item in enumerate(items):
        conditions, videos = policy.encode(item, size), []
        for side in (0, 1):
            adapter = adapters[min(side, len(adapters) - 1)] if adapters else None
            seed = options.first_seed + 2 * number + (side if len(adapters) < 2 else 0)
            if adapter:
                load_lora_into(policy.transformer, adapter)
            videos += sample_videos(
                policy,
                [conditions],
                size,
                config.evaluation.steps,
                config.rollout.shift,
                evaluation_guidance(config),
                [seed],
            )
            if adapter:
                remove_lora(policy.transformer)
        folder.add(
            (videos[0].cpu().numpy(), videos[1].cpu().numpy()), item.references, item.prompt, kind, config.reward.fps
        )
        print(f"{number + 1} of {len(items)} pairs sampled", flush=True)


def summary(path: Path, records: PairRecords) -> str:
    """What the folder `path` holds, by kind and by person, as tables."""
    names = {1: "A", -1: "B", 0: "tie", 22: "no verdict"}
    kinds: dict[str, Counter] = {}
    for pair, record in records.pairs.items():
        kinds.setdefault(record.kind or "-", Counter())[names[records.label(pair)]] += 1
    rows = [
        {"kind": kind, "pairs": counts.total(), **{name: counts[name] for name in names.values()}}
        for kind, counts in sorted(kinds.items())
    ]
    people = sorted({vote.who for vote in records.votes.values()})
    votes = []
    for who in people:
        found = records.agreement(who)
        repeated = f"{found.same} of {found.pairs}" if found.pairs else "-"
        swapped = f"{found.same_swapped} of {found.swapped}" if found.swapped else "-"
        count = sum(vote.who == who for vote in records.votes.values())
        votes.append({"who": who or "-", "votes": count, "same verdict again": repeated, "with sides swapped": swapped})
    tables = [f"{path}: {len(records.pairs)} pairs, {len(records.votes)} votes", markdown_table(rows)]
    return "\n\n".join(tables + ([markdown_table(votes)] if votes else []))
