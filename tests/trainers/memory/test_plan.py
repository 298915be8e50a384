"""What a run is expected to need, and which plan is chosen for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainers.config import make_config
from trainers.config.presets import merge
from trainers.errors import UserError
from trainers.memory.plan import GATHERED, GIB, Workload, choose
from trainers.memory.sizes import Sizes

# VACE-1.3B in bfloat16 with a LoRA of rank 32, UMT5-XXL and Qwen2.5-VL-3B.
BLOCK, CONTROL = 46_400_000 * 2, 48_760_000 * 2
VACE = Sizes(
    kind="vace",
    transformer=2_153_972_032 * 2,
    transformer_blocks=30 * BLOCK + 15 * CONTROL,
    largest_block=CONTROL + 2 * 1536**2,
    lora=35_389_440 * 4 * 5,
    text_encoder=5_680_910_336 * 2,
    text_blocks=4_630_000_000 * 2,
    largest_text_block=193_000_000 * 2,
    vae=126_892_531 * 4,
    reward=3_754_622_976 * 2,
    reward_token=98_816,
    reward_patch=71_720,
    width=1536,
    blocks=30,
    control_blocks=15,
    patch=(1, 2, 2),
    item=2,
    vae_width=96,
)
AUTO = {"optim": {"gradient_checkpointing": "auto"}}
FOUR_AT_ONCE = {
    "rollout": {"micro_batch": 4},
    "optim": {"gradient_checkpointing": 1.0, "micro_batch": 4},
    "reward": {"micro_batch": 16},
}


def workload(preset: str = "fast", sizes: Sizes = VACE, processes: int = 1, **changes) -> Workload:
    return Workload(make_config(preset, merge(FOUR_AT_ONCE, changes)), sizes, 2, processes)


def needs(work: Workload, plan: str = "resident", available: float | None = None) -> dict[str, float]:
    """GiB by phase."""
    found = work.plan(plan, None if available is None else int(available * GIB))
    return {phase.name: phase.total / GIB for phase in found.phases}


def test_a_trained_step_of_four_videos_is_what_was_measured():
    """13.6 GiB on an H100 with the VAE beside the transformer; the count leaves 0.5 GiB for what it cannot see."""
    found = workload().plan("phases", None)
    update = next(phase for phase in found.phases if phase.name == "update")
    assert (update.total - GIB / 2) / GIB == pytest.approx(13.6, rel=0.05)


def test_working_memory_grows_with_the_videos_at_once_and_weights_do_not():
    few, many = (workload(optim={"micro_batch": n}).plan("phases", None).phases[-1] for n in (2, 4))
    assert many.working == pytest.approx(2 * few.working, rel=1e-6)
    assert many.parts == few.parts


def test_a_reward_with_a_gpu_to_itself_needs_nothing_of_the_policy_s():
    shared, own = needs(workload()), needs(workload(reward={"device": "own"}))
    assert set(shared) - set(own) == {"score", "evaluation: score"}
    assert shared["update"] - own["update"] == pytest.approx(VACE.reward / GIB)


def test_without_recomputing_the_graphs_of_all_blocks_are_kept():
    kept, auto, half = (
        needs(workload(optim={"gradient_checkpointing": value}))["update"] for value in (0.0, "auto", 0.5)
    )
    assert needs(workload())["update"] < auto < half < kept
    assert kept > 80


def test_automatic_recomputing_becomes_recomputing_all_where_a_graph_does_not_fit():
    wide, narrow = (workload(**AUTO).plan("phases", available * GIB) for available in (24, 16))
    assert not wide.recompute_all and narrow.recompute_all
    assert choose(workload(**AUTO), 16 * GIB).name == "phases"
    kept = {"optim": {"gradient_checkpointing": 0.0}}
    assert not workload(**kept).plan("phases", 16 * GIB).recompute_all, "what is asked for is not changed"


def test_every_plan_needs_less_than_the_one_before():
    plans = workload().plans
    peaks = [workload().plan(name, None).largest.total for name in plans]
    assert peaks == sorted(peaks, reverse=True)
    updates = [needs(workload(), name)["update"] for name in plans]
    assert updates[0] - updates[1] == pytest.approx((VACE.vae + VACE.reward) / GIB)
    assert updates[1] - updates[2] == pytest.approx((VACE.transformer_blocks - 2 * VACE.largest_block) / GIB, rel=1e-6)


@pytest.mark.parametrize("processes", [2, 4])
def test_sharded_blocks_are_a_part_of_each_and_the_few_that_are_gathered(processes):
    work = workload(processes=processes)
    saved = needs(work, "phases")["update"] - needs(work, "sharded")["update"]
    held = VACE.transformer_blocks / processes + GATHERED * VACE.largest_block
    assert saved == pytest.approx((VACE.transformer_blocks - held) / GIB, rel=1e-6)
    assert work.copied("sharded") < work.copied("block_swap")


def test_auto_shards_before_it_swaps_where_there_are_several_processes():
    wide = replace(VACE, transformer=10 * VACE.transformer, transformer_blocks=10 * VACE.transformer_blocks)
    assert choose(workload(sizes=wide, processes=2), 40 * GIB).name == "sharded"
    assert choose(workload(sizes=wide), 40 * GIB).name == "block_swap"


@pytest.mark.parametrize("processes, fp8, sentence", [(1, False, "--processes 2"), (2, True, "policy.fp8")])
def test_sharding_is_refused_where_it_cannot_run(processes, fp8, sentence):
    work = workload(processes=processes, memory={"plan": "sharded"}, policy={"fp8": fp8})
    with pytest.raises(UserError, match=sentence):
        choose(work, None)


def test_processes_that_share_a_video_need_less_for_each():
    apart, together = (workload(processes=2, parallel={"context": size}).plan("phases", None) for size in (1, 2))
    for name in ("sample", "update"):
        alone, shared = (next(p.working for p in plan.phases if p.name == name) for plan in (apart, together))
        assert 0.5 < shared / alone < 0.8
    assert workload(processes=2, parallel={"context": 2}).copied("sharded") > workload(processes=2).copied("sharded")


@pytest.mark.parametrize("available, plan", [(80, "resident"), (24, "resident"), (16, "phases"), (12, "block_swap")])
def test_auto_takes_the_first_that_fits(available, plan):
    assert choose(workload(), available * GIB).name == plan


def test_without_a_limit_everything_stays():
    assert choose(workload(), None).name == "resident"


def test_a_text_encoder_that_does_not_fit_is_swapped():
    assert not choose(workload(), 16 * GIB).swap_text
    found = choose(workload(), 11 * GIB)
    assert found.swap_text
    assert found.phases[0].total < 5 * GIB


def test_the_vae_takes_as_many_clips_at_once_as_fit():
    clip = 33 * 240 * 416
    wide, narrow = (work.plan("phases", available * GIB) for work, available in ((workload(), 80), (workload(), 8)))
    assert wide.vae_pixels is None
    assert narrow.vae_pixels is not None and narrow.vae_pixels % clip == 0 and narrow.vae_pixels < 4 * clip
    decode = next(phase for phase in narrow.phases if phase.name == "decode")
    assert decode.total <= 8 * GIB


def test_a_plan_that_does_not_fit_is_refused_with_the_one_that_does():
    work = workload(memory={"plan": "resident"})
    with pytest.raises(UserError, match=r"has 16.0 GiB.*`resident` needs .* GiB.*set memory.plan to `phases`"):
        choose(work, 16 * GIB)


def test_a_card_that_is_too_small_is_refused_with_what_to_lower():
    with pytest.raises(UserError, match=r"`block_swap` needs .*phase `update`.*Lower optim.micro_batch"):
        choose(workload(), 9 * GIB)
    with pytest.raises(UserError, match=r"phase `evaluation: decode`.*Lower the size of evaluation.video"):
        ones = {name: {"micro_batch": 1} for name in ("rollout", "optim", "reward")}
        choose(workload("paper", **ones), 9 * GIB)


def test_phantom_needs_less_and_its_third_branch_more():
    phantom = replace(VACE, kind="phantom", control_blocks=0)
    config = {"rollout": {"guidance": 7.5, "image_guidance": 5.0}}
    two, three = (workload("fast-phantom", phantom, **changes) for changes in ({"rollout": {"guidance": 5.0}}, config))
    assert two.plan("phases", None).phases[2].working < workload().plan("phases", None).phases[2].working
    ratio = three.plan("phases", None).phases[2].working / two.plan("phases", None).phases[2].working
    assert ratio == pytest.approx(1.5, rel=1e-6)


def test_copies_of_an_iteration():
    work = workload()
    assert work.copied("resident") == 0
    assert work.copied("phases") == 2 * VACE.transformer + VACE.vae + VACE.reward
    passes = 32 * 10 + 32 * 2  # 128 videos by fours: 10 sampled steps, one trained step forward and recomputed
    assert work.copied("block_swap") == passes * VACE.transformer_blocks + VACE.vae + VACE.reward
