"""`model_config.json` of a reward that was trained here: the keys that the published inference code reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .recipe import RewardTraining


def model_config(base: Path, output: Path, training: RewardTraining, start: Path | None = None) -> dict[str, Any]:
    """The content of the file. A base model that lies beside the reward is named without its path."""
    beside = base.resolve().parent in (output.resolve(), output.resolve().parent)
    by_lora = training.vision == "lora"
    return {
        "data_config": {
            # The published code deletes these two and fails where they are missing.
            "meta_data": "",
            "data_dir": "",
            "max_frame_pixels": 480 * 832,
            "num_frames": 5.0,
            "fps": None,
            "eval_dim": ["SA"],
            "prompt_template_type": "subject_alignment_special",
            "sample_type": "uniform",
            "use_tied_data": True,
        },
        "training_args": {
            "learning_rate": training.learning_rate,
            "per_device_train_batch_size": training.micro_batch or training.batch_size,
            "gradient_accumulation_steps": -(-training.batch_size // (training.micro_batch or training.batch_size)),
            "weight_decay": training.weight_decay,
            "max_grad_norm": training.max_grad_norm,
            "warmup_ratio": training.warmup,
            "max_steps": training.steps,
            "seed": training.seed,
            "bf16": training.mixed_precision,
            "load_from_pretrained": start.name if start else None,
        },
        "model_config": {
            "model_name_or_path": base.name if beside else str(base.resolve()),
            "output_dim": 1,
            "use_special_tokens": True,
            "freeze_vision_tower": by_lora,
            "freeze_llm": False,
            "tune_merger": True,
            "torch_dtype": str(training.storage).removeprefix("torch."),
            "reward_token": "special",
            "loss_type": "btt",
        },
        "peft_lora_config": {
            "lora_enable": True,
            "vision_lora": by_lora,
            "lora_r": training.rank,
            "lora_alpha": training.alpha,
            "lora_dropout": training.dropout,
            # Names with one of these carry no LoRA; a missing list makes the published code fail.
            "lora_namespan_exclude": ["lm_head", "rm_head", "embed_tokens", "merger" if by_lora else "visual"],
            "lora_task_type": "CAUSAL_LM",
            "use_rslora": False,
        },
    }
