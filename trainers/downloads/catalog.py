"""The published files that each task needs: where they come from, and into which of ComfyUI's folders they belong."""

from __future__ import annotations

from dataclasses import dataclass

RELEASE = "https://cloudbook-public-daily.oss-cn-hangzhou.aliyuncs.com/identity_grpo"
COMFY = "Comfy-Org/Wan_2.1_ComfyUI_repackaged"
QWEN = "Qwen/Qwen2.5-VL-3B-Instruct"
UNKNOWN = "see the page"


@dataclass(frozen=True)
class Published:
    """A file, or with `archive` a .tgz of a folder.

    `folder`: below ComfyUI's `models`; `name`: there. `url`: of the file itself; `page`: where a person reads about it.
    `size` in bytes and `sha256`: where they were published; None is read from the server when it is downloaded.
    """

    name: str
    folder: str
    url: str
    page: str
    licence: str
    size: int | None = None
    sha256: str | None = None
    archive: bool = False


@dataclass(frozen=True)
class Repository:
    """A repository on Hugging Face that becomes a folder; its files, sizes and checksums are read from the server."""

    name: str
    folder: str
    repository: str
    licence: str

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.repository}"


def _comfy(name: str, folder: str, size: int | None = None, sha256: str | None = None) -> Published:
    return Published(
        name,
        folder,
        f"https://huggingface.co/{COMFY}/resolve/main/split_files/{folder}/{name}",
        f"https://huggingface.co/{COMFY}",
        "Apache-2.0 (Wan 2.1)",
        size,
        sha256,
    )


TEXT_ENCODER = _comfy(
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "text_encoders",
    6_735_906_897,
    "c3355d30191f1f066b26d93fba017ae9809dce6c627dda5f6a66eaa651204f68",
)
VAE = _comfy("wan_2.1_vae.safetensors", "vae")
VACE = _comfy("wan2.1_vace_1.3B_fp16.safetensors", "diffusion_models")
PHANTOM = Published(
    "Phantom-Wan-1_3B_fp16.safetensors",
    "diffusion_models",
    "https://huggingface.co/Kijai/WanVideo_comfy/resolve/main/Phantom-Wan-1_3B_fp16.safetensors",
    "https://huggingface.co/Kijai/WanVideo_comfy",
    UNKNOWN,
)
LORA = Published(
    "identity_grpo_released",
    "loras",
    f"{RELEASE}/lora_best.tgz",
    "https://github.com/alibaba/identity-grpo",
    "MIT",
    archive=True,
)
REWARD = Published(
    "identity_reward",
    "identity_reward",
    f"{RELEASE}/identity_reward.tgz",
    "https://github.com/alibaba/identity-grpo",
    "MIT",
    archive=True,
)
REWARD_BASE = Repository("Qwen2.5-VL-3B-Instruct", "identity_reward", QWEN, UNKNOWN)

TASKS: dict[str, tuple[Published | Repository, ...]] = {
    "vace": (VACE, TEXT_ENCODER, VAE),
    "phantom": (PHANTOM, TEXT_ENCODER, VAE),
    "lora": (LORA,),
    "reward": (REWARD, REWARD_BASE),
    "train-vace": (VACE, TEXT_ENCODER, VAE, REWARD, REWARD_BASE),
    "train-phantom": (PHANTOM, TEXT_ENCODER, VAE, REWARD, REWARD_BASE),
}
"""What a person wants to do -> what it needs. All is of the models of 1.3 billion parameters."""
