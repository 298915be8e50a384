"""How much GPU memory a run needs in each phase of an iteration, and which plan fits a card.

The weights' sizes come from the files' headers. The working memory is a model of what is alive at the worst moment, in
units of one number of the policy's dtype per token and channel of the hidden states, with T tokens (all guidance
branches of all videos at once, references included), L blocks and V control blocks:

- a sampled step: T (V + 17.5) units: the hints of all control blocks, and the feed-forward of one block;
- a trained step with gradient checkpointing: T (L + V + 51): the input of every block, and the graph of one;
- a trained step without: T (L + V) 37.5: the graphs of all blocks. `auto` takes what is free for such graphs, and is
  counted with one;
- with context parallelism T is this process's part; keys and values of all tokens come on top, gathered and in order (4
  units of the whole sequence), and in the backward pass their gradients (8);
- the VAE: 25 KB per pixel of a frame and clip at once to decode, 18 or 6 KB to encode (footprint.py), in float32, less
  for narrower VAEs;
- scoring: 3 numbers per channel of the feed-forward, and 8 per channel of the states, for each token of the language
  model (99 KB for Qwen2.5-VL-3B); 3 and 20 for each patch of the vision tower (72 KB).

The first three are counts of all tensors alive, made with the real classes at 1.3B for 4,290 to 35,880 tokens a
sequence: VACE 32.4, 95.6 and 1,678 units, Phantom 16.2, 80.3 and 1,120. VACE-1.3B with 4 videos of 33x240x416, trained
with checkpointing, is 14.1 GiB by them with its weights; 13.6 GiB were measured on an H100. Compiled blocks need less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ..config import TrainConfig
from ..errors import UserError
from ..policies.base import Guidance, VideoSize
from ..policies.footprint import ENCODED_BYTES_PER_PIXEL, VAE_BYTES_PER_PIXEL, VAE_WIDTH
from ..policies.phantom import branch_weights
from ..policies.vae import VAE_PIXELS
from ..rewards.geometry import MAX_PIXELS, SIDE, VIDEO_MIN_PIXELS, resized
from .shards import has_fsdp2
from .sizes import Sizes

GIB = 2**30
PlanName = Literal["resident", "phases", "sharded", "block_swap"]
PLANS: tuple[PlanName, ...] = ("resident", "phases", "sharded", "block_swap")
"""From the fastest to that with the least memory."""
GATHERED = 3
"""Whole blocks of a sharded transformer on the device: one computes, one is gathered, one is about to be freed."""
SAMPLED, CHECKPOINTED, GRAPH = 17.5, 51.0, 37.5
SAMPLED_KEYS, TRAINED_KEYS = 4, 8
PATCHES_OF_TOKEN = 4
SCORED_STEPS, INSTRUCTION_TOKENS = 2, 200  # of the released reward: 4 frames, two to a step
TEXT_BYTES = GIB // 2
OVERHEAD = GIB // 2
"""Work spaces of the libraries, and what lies unused between tensors."""
LATENT_SIDE, LATENT_FRAMES = 8, 4  # pixels and frames of one latent of Wan's VAE


@dataclass(frozen=True)
class Phase:
    """Bytes on the GPU in one phase: the weights of `parts` by name, and `working` memory."""

    name: str
    parts: dict[str, int]
    working: int

    @property
    def total(self) -> int:
        return sum(self.parts.values()) + self.working + OVERHEAD


@dataclass(frozen=True)
class MemoryPlan:
    """What is on the GPU, when. `phases`: the expected needs, empty where they were not estimated (no CUDA).

    `swap_text`: the text encoder's blocks are swapped. `vae_pixels`: see `WanVae`. `recompute_all`: all blocks are
    recomputed in the backward pass, whatever `optim.gradient_checkpointing` says. `available`: bytes.
    """

    name: PlanName
    phases: tuple[Phase, ...] = ()
    swap_text: bool = False
    recompute_all: bool = False
    vae_pixels: int | None = None
    available: int | None = None

    @property
    def largest(self) -> Phase:
        """The phase that needs the most."""
        return max(self.phases, key=lambda phase: phase.total)

    def lines(self) -> Iterator[str]:
        """A line for each phase with what it holds; the largest is marked."""
        for phase in self.phases:
            parts = ", ".join(f"{name} {gib(size)}" for name, size in phase.parts.items() if size)
            mark = "  <- peak" if phase is self.largest else ""
            yield f"{phase.name:18} {gib(phase.total):>9}: {parts}, working {gib(phase.working + OVERHEAD)}{mark}"

    @property
    def fits(self) -> bool:
        return self.available is None or self.largest.total <= self.available


@dataclass(frozen=True)
class Workload:
    """What runs on one device: the config, sizes of its models, and the largest number of references of an item.

    `processes`: of the run, each on a device of its own.
    """

    config: TrainConfig
    sizes: Sizes
    references: int
    processes: int = 1

    @property
    def plans(self) -> list[PlanName]:
        """Those that can run. Weights of 8 bits are not sharded."""
        policy = self.config.policy
        sharded = self.processes > 1 and not policy.fp8 and policy.weights != "stored" and has_fsdp2()
        return [name for name in PLANS if name != "sharded" or sharded]

    def plan(self, name: PlanName, available: int | None) -> MemoryPlan:
        """The named plan with its expected needs, whether it fits or not."""
        sizes, resident, own = self.sizes, name == "resident", self.config.reward.device == "own"
        if own:  # the rewards have another GPU
            sizes = replace(sizes, reward=0, rewards=0)
        transformer = sizes.transformer
        always_there = name in ("sharded", "block_swap")
        if name == "block_swap":
            transformer += 2 * sizes.largest_block - sizes.transformer_blocks
        elif name == "sharded":
            part = sizes.transformer_blocks // self.processes
            transformer += part + GATHERED * sizes.largest_block - sizes.transformer_blocks
        weights = {"transformer": transformer, "VAE": sizes.vae, "reward": sizes.reward}
        always = {"LoRA and optimiser": sizes.lora, "other rewards": sizes.rewards} | (
            {"transformer": transformer} if always_there else {}
        )

        def parts(*working: str) -> dict[str, int]:
            return always | {part: weights[part] for part in (weights if resident else working)}

        room = math.inf if available is None else available - sum(parts("VAE").values()) - OVERHEAD
        videos = [self._size(evaluation) for evaluation in (False, True)]
        pixels = min(self._vae_pixels(size, room) for size in videos)
        swap_text = available is not None and sizes.text_encoder + TEXT_BYTES + OVERHEAD > available
        text = sizes.text_encoder
        if swap_text:
            text += 2 * sizes.largest_text_block - sizes.text_blocks
        phases = [Phase("encode texts", {"text encoder": text}, TEXT_BYTES)]
        encoding = max(self._vae_bytes(size, ENCODED_BYTES_PER_PIXEL[sizes.kind]) for size in videos)
        phases.append(Phase("encode references", {"VAE": sizes.vae}, encoding))
        for evaluation, prefix in ((False, ""), (True, "evaluation: ")):
            size = videos[evaluation]
            clips = max(1, min(self._at_once(evaluation), pixels // (size.frames * size.height * size.width)))
            decoding = clips * self._vae_bytes(size)
            phases += [
                Phase(prefix + "sample", parts("transformer"), self._sampling(evaluation)),
                Phase(prefix + "decode", parts("VAE"), decoding),
                *([] if own else [Phase(prefix + "score", parts("reward"), self._scoring(evaluation))]),
            ]
        recompute_all = name == "block_swap"
        update = Phase("update", parts("transformer"), self._updating(recompute_all))
        if self.config.optim.gradient_checkpointing == "auto" and available is not None and update.total > available:
            recompute_all, update = True, replace(update, working=self._updating(True))
        return MemoryPlan(
            name,
            (*phases, update),
            swap_text,
            recompute_all,
            pixels if pixels < VAE_PIXELS["other"] else None,
            available,
        )

    def tokens(self, evaluation: bool = False) -> float:
        """Of one video and its references, in one guidance branch."""
        size = self._size(evaluation)
        frames = 1 + (size.frames - 1) // LATENT_FRAMES + self.references
        return frames * size.height * size.width / LATENT_SIDE**2 / math.prod(self.sizes.patch)

    def copied(self, name: PlanName) -> int:
        """Bytes that one device gets from host memory or other devices in an iteration, its evaluation left out."""
        sizes, rollout, optim = self.sizes, self.config.rollout, self.config.optim
        if name == "resident":
            return 0
        if name == "phases":
            return 2 * sizes.transformer + sizes.vae + sizes.reward
        videos = rollout.groups * rollout.group_size * self.config.parallel.context / self.processes
        sampled = math.ceil(videos / rollout.micro_batch) * rollout.steps
        # Forward, recomputed, and the base policy for the KL.
        trained = math.ceil(videos / optim.micro_batch) * rollout.window.size * (3 if optim.kl else 2)
        blocks = sizes.transformer_blocks
        if name == "sharded":
            blocks -= blocks // self.processes
        return (sampled + trained) * blocks + sizes.vae + sizes.reward

    def _size(self, evaluation: bool) -> VideoSize:
        video = (evaluation and self.config.evaluation.video) or self.config.video
        return VideoSize(video.height, video.width, video.frames)

    def _unit(self, videos: int, evaluation: bool) -> float:
        """Bytes of one unit for so many videos at once."""
        return videos * self._branches(evaluation) * self.tokens(evaluation) * self.sizes.width * self.sizes.item

    def _branches(self, evaluation: bool) -> int:
        rollout, own = self.config.rollout, self.config.evaluation
        text, image = rollout.guidance, rollout.image_guidance
        if evaluation:
            text = text if own.guidance is None else own.guidance
            image = image if own.image_guidance is None else own.image_guidance
        if self.sizes.kind == "vace":
            return 1 if text == 1 else 2
        return sum(weight != 0 for weight in branch_weights(Guidance(text, image)))

    def _sampling(self, evaluation: bool) -> int:
        units = self._per_process(self.sizes.control_blocks + SAMPLED, SAMPLED_KEYS)
        return int(self._unit(self._at_once(evaluation), evaluation) * units)

    def _per_process(self, units: float, keys: int) -> float:
        """Of `units`, what a process has with its part of the tokens, and the keys and values of all."""
        context = self.config.parallel.context
        return units / context + keys if context > 1 else units

    def _at_once(self, evaluation: bool) -> int:
        """Videos that are sampled, and decoded, together."""
        size, training = self._size(evaluation), self._size(False)
        pixels = training.frames * training.height * training.width
        fitting = self.config.rollout.micro_batch * pixels // (size.frames * size.height * size.width)
        return max(1, min(fitting, self._videos(evaluation)))

    def _videos(self, evaluation: bool) -> int:
        """All that are sampled one after the other, without the transformer's weights changing."""
        rollout = self.config.rollout
        return self.config.evaluation.items if evaluation else rollout.groups_per_update * rollout.group_size

    def _updating(self, recompute_all: bool) -> int:
        optim, blocks = self.config.optim, self.sizes.blocks + self.sizes.control_blocks
        share = 1.0 if recompute_all else optim.gradient_checkpointing
        # `auto` keeps the graph of one block at least, and none where several processes have to choose alike.
        kept = int(self.config.parallel.context == 1) if share == "auto" else blocks - int(blocks * share)
        units = kept * GRAPH + (blocks - kept + CHECKPOINTED if kept < blocks else 0)
        return int(self._unit(optim.micro_batch, False) * self._per_process(units, TRAINED_KEYS))

    def _scoring(self, evaluation: bool) -> int:
        size = self._size(evaluation)
        height, width = resized(size.height, size.width, VIDEO_MIN_PIXELS)
        clip = SCORED_STEPS * height * width // SIDE**2
        tokens = clip + self.references * MAX_PIXELS // SIDE**2 + INSTRUCTION_TOKENS
        patches = PATCHES_OF_TOKEN * clip
        videos = min(self.config.reward.micro_batch, self._videos(evaluation))
        return videos * max(tokens * self.sizes.reward_token, patches * self.sizes.reward_patch)

    def _vae_bytes(self, size: VideoSize, per_pixel: int = VAE_BYTES_PER_PIXEL) -> int:
        return per_pixel * size.height * size.width * self.sizes.vae_width // VAE_WIDTH

    def _vae_pixels(self, size: VideoSize, room: float) -> int:
        """Pixels that the VAE takes at once, within `room` bytes; at least one clip."""
        clip = size.frames * size.height * size.width
        most = max(1, min(self.config.rollout.micro_batch, VAE_PIXELS["other"] // clip))
        clips = max(1, min(most, int(min(room, 1e15) // self._vae_bytes(size))))
        return VAE_PIXELS["other"] if clips == most else clips * clip


def choose(work: Workload, available: int | None) -> MemoryPlan:
    """The plan that `memory.plan` names, or the first that fits into `available` bytes (None: no limit).

    Raises UserError when it does not fit, or none does, naming the smallest that would, or when it cannot run.
    """
    memory = work.config.memory
    if memory.plan == "sharded":
        require_sharding(work.config, work.processes)
    every = [work.plan(name, available) for name in work.plans]
    wanted = [plan for plan in every if memory.plan in ("auto", plan.name)]
    for plan in wanted:
        if plan.fits:
            return plan
    fitting = next((plan for plan in every if plan.fits), None)
    raise UserError(_too_small(wanted[0] if fitting else every[-1], fitting))


def require_sharding(config: TrainConfig, processes: int) -> None:
    """Raises UserError where the plan `sharded` cannot run."""
    if processes < 2:
        raise UserError(
            "memory.plan `sharded` splits the transformer over several processes, and this run has one; start it with "
            "--processes 2, or set memory.plan to `auto`"
        )
    if config.policy.fp8:
        raise UserError(
            "policy.fp8 cannot be used with memory.plan `sharded`; set it to false, or memory.plan to `auto`"
        )
    if config.policy.weights == "stored":
        raise UserError(
            "policy.weights `stored` cannot be used with memory.plan `sharded`; set it to `converted`, or memory.plan "
            "to `auto`"
        )
    if not has_fsdp2():
        raise UserError("memory.plan `sharded` needs PyTorch 2.7 or newer; update it, or set memory.plan to `auto`")


def _too_small(plan: MemoryPlan, fitting: MemoryPlan | None) -> str:
    """Why `plan` cannot run; `fitting`: the first plan that can, if there is one."""
    text = (
        f"the GPU has {gib(plan.available)} for this run, and the plan `{plan.name}` needs {gib(plan.largest.total)} "
        f"(in the phase `{plan.largest.name}`)"
    )
    if fitting:
        return f"{text}; set memory.plan to `{fitting.name}`, which needs {gib(fitting.largest.total)}, or to `auto`"
    return f"{text}; no plan needs less. {_remedy(plan.largest.name)}, or free memory of the GPU"


def _remedy(phase: str) -> str:
    kind = phase.removeprefix("evaluation: ")
    micro_batch = {"sample": "rollout", "update": "optim", "score": "reward"}.get(kind)
    size = "evaluation.video" if kind != phase else "video"
    return f"Lower {micro_batch}.micro_batch, or the size of {size}" if micro_batch else f"Lower the size of {size}"


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
