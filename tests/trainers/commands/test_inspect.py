"""The command that says what files are."""

from __future__ import annotations

from trainers.cli import main


def test_every_file_has_a_line_and_a_broken_one_does_not_end_the_list(repository, tmp_path, capsys):
    (tmp_path / "m.safetensors").write_bytes(b"no weights")
    good = repository / "tests" / "golden" / "vace" / "vace_tiny.safetensors"
    assert main(["inspect", str(tmp_path / "m.safetensors"), str(good)]) == 1
    shown = capsys.readouterr()
    assert shown.out == f"{good}: VACE of Wan 2.1, 0.2 million parameters, F32, original names\n"
    assert "m.safetensors" in shown.err
    assert main(["inspect", str(good)]) == 0
