"""The golden case: what PEFT wrote, what ComfyUI reads, and the velocities of both."""

from pathlib import Path

from trainers.lora.formats import LoRA, read_lora, write_native
from trainers.parity.lora import verify_case

GOLDEN = Path(__file__).parents[2] / "golden" / "lora"


def test_the_golden_case_is_reproduced():
    results = verify_case(GOLDEN)
    assert sum(r.name.startswith("velocity") for r in results) == 11
    assert [r for r in results if not r.ok] == []


def test_our_native_file_is_the_golden_one_to_the_byte(tmp_path):
    lora = read_lora(GOLDEN / "peft")
    write_native(LoRA(lora.modules, lora.alpha), tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (GOLDEN / "comfy_native.safetensors").read_bytes()
