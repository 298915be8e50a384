"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainers.errors import UserError
from trainers.files import _aside, atomic_file, atomic_folder, place_atomic, sweep, write_atomic

WRITER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from trainers.files import atomic_folder, write_atomic
{body}
"""


def child(repository: Path, body: str, *arguments: str | Path) -> subprocess.Popen:
    program = WRITER.format(body=body)
    return subprocess.Popen(
        [sys.executable, "-c", program, str(repository), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def killed_while_writing(repository: Path, folder: Path) -> None:
    """SIGKILL a process that has written half of `folder`."""
    process = child(
        repository,
        """
with atomic_folder(Path(sys.argv[2])) as aside:
    (aside / "a").write_text("new")
    print("half", flush=True)
    time.sleep(60)
""",
        folder,
    )
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()


def contents(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir()}


@pytest.mark.parametrize("linked", [True, False], ids=["same disk", "other disk"])
def test_a_file_is_placed_elsewhere_as_often_as_asked(tmp_path, monkeypatch, linked):
    def refuse(*_):
        raise OSError("Invalid cross-device link")

    if not linked:
        monkeypatch.setattr("os.link", refuse)
    (tmp_path / "lora").write_text("new")
    target = tmp_path / "far" / "away" / "lora"
    place_atomic(tmp_path / "lora", target)
    target.with_name("old").write_text("old")
    for name in ("lora", "old"):
        place_atomic(tmp_path / "lora", target.with_name(name))
    assert {p.name: p.read_text() for p in target.parent.iterdir()} == {"lora": "new", "old": "new"}
    assert target.samefile(tmp_path / "lora") == linked


def test_a_file_that_cannot_be_placed_leaves_what_was_there(tmp_path):
    (tmp_path / "old").write_text("old")
    with pytest.raises(OSError):
        place_atomic(tmp_path / "missing", tmp_path / "old")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"old": "old"}


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_who_may_read_follows_from_the_umask_whatever_wrote_the_file(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "alone") as aside:
            _write_for_owner_only(aside)
        with atomic_folder(tmp_path / "folder") as aside:
            _write_for_owner_only(aside / "inside")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("alone", "folder/inside")] == [0o640, 0o640]


def _write_for_owner_only(path: Path) -> None:
    """As safetensors does: a new file, which replaces one that is there."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def test_a_folder_appears_whole(tmp_path):
    (tmp_path / "x").mkdir()
    with atomic_folder(tmp_path / "x" / "one") as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "a").write_text("1")
        assert not (tmp_path / "x" / "one").exists()
    assert (tmp_path / "x" / "one" / "sub" / "a").read_text() == "1"
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["one"]


def test_a_folder_is_replaced_whole(tmp_path):
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "one") as aside:
            (aside / text).write_text(text)
    assert contents(tmp_path / "one") == {"new": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path):
    with atomic_folder(tmp_path / "one") as aside:
        (aside / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "one") as aside:
        (aside / "a").write_text("new")
        raise ZeroDivisionError
    assert contents(tmp_path / "one") == {"a": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_killed_writer_leaves_the_old_folder_and_is_cleaned_up_by_the_next(repository, tmp_path):
    with atomic_folder(tmp_path / "one") as aside:
        (aside / "a").write_text("old")
    killed_while_writing(repository, tmp_path / "one")
    assert contents(tmp_path / "one") == {"a": "old"}
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_folder(tmp_path / "two") as aside:
        (aside / "a").write_text("2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_a_living_writer_is_left_alone(repository, tmp_path):
    process = child(
        repository,
        """
with atomic_folder(Path(sys.argv[2])) as aside:
    (aside / "a").write_text("slow")
    print("half", flush=True)
    time.sleep(1)
""",
        tmp_path / "one",
    )
    assert process.stdout.readline() == "half\n"
    with atomic_folder(tmp_path / "two") as aside:
        (aside / "a").write_text("fast")
    assert process.wait() == 0
    assert contents(tmp_path / "one") == {"a": "slow"}


def leftover(folder: Path, kind: str, pid: int | None = None, token: str | None = None) -> Path:
    """What a writer with this pid and start would leave of `folder / one`."""
    name = _aside(folder / "one", kind).name
    parts = name.rsplit("-", 4)
    parts[2], parts[3] = str(pid or os.getpid()), token or parts[3]
    path = folder / "-".join(parts)
    path.mkdir()
    return path


def test_a_folder_that_died_between_its_two_renames_is_put_back(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (leftover(tmp_path, "replaced", gone.pid) / "a").write_text("old")
    sweep(tmp_path)
    assert contents(tmp_path / "one") == {"a": "old"}


def test_a_leftover_whose_number_belongs_to_another_process_is_swept(tmp_path):
    """A restarted container gives out the same process numbers again."""
    path = leftover(tmp_path, "partial", token="0" * 8)
    sweep(tmp_path)
    assert not path.exists()


def test_what_another_machine_is_writing_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.files.host", lambda: "elsewhere")
    path = leftover(tmp_path, "partial")
    monkeypatch.undo()
    sweep(tmp_path)
    assert path.exists()
    os.utime(path, (time.time() - 2 * 86400,) * 2)
    sweep(tmp_path)
    assert not path.exists()


def test_threads_write_the_same_file_without_losing_or_tearing_it(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, "0" * 5000, sync=False)
    torn = []

    def write(digit: str) -> None:
        for _ in range(200):
            write_atomic(path, digit * 5000, sync=False)
            text = path.read_text()
            if len(text) != 5000 or len(set(text)) != 1:
                torn.append(text)

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(write, digit) for digit in "123"]:
            done.result()
    assert not torn and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_threads_write_the_same_folder_and_one_of_them_is_there_whole(tmp_path):
    def write(digit: str) -> None:
        for _ in range(40):
            with atomic_folder(tmp_path / "one") as aside:
                for name in "ab":
                    (aside / name).write_text(digit)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write, digit) for digit in "1234"]:
            done.result()
    assert contents(tmp_path / "one") in [dict.fromkeys("ab", digit) for digit in "1234"]
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize("make", [lambda p: p.write_text("x"), lambda p: p.symlink_to("nowhere")], ids=["file", "link"])
def test_what_is_no_folder_is_replaced_by_one(tmp_path, make):
    make(tmp_path / "one")
    with atomic_folder(tmp_path / "one") as aside:
        (aside / "a").write_text("new")
    assert contents(tmp_path / "one") == {"a": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8 here")
def test_a_name_that_is_not_utf_8_is_written(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9")
    write_atomic(path, "x")
    assert os.listdir(os.fsencode(tmp_path)) == [b"caf\xe9"]


def test_other_hidden_files_are_left_alone(tmp_path):
    (tmp_path / ".partial-notes").write_text("mine")
    sweep(tmp_path)
    assert (tmp_path / ".partial-notes").exists()


def test_a_full_disk_is_said_and_loses_nothing(tmp_path):
    """/dev/full is the system's own full disk."""
    with atomic_folder(tmp_path / "one") as aside:
        (aside / "a").write_text("old")
    with (
        pytest.raises(UserError, match="disk is full.*Nothing that was saved before is lost"),
        atomic_folder(tmp_path / "one") as aside,
    ):
        (aside / "a").symlink_to("/dev/full")
        (aside / "a").write_text("new")
    assert contents(tmp_path / "one") == {"a": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_tensors_on_a_full_disk_are_said_and_lose_nothing(repository, tmp_path):
    """safetensors reports the system's refusal in its own words; a limit on file sizes stands for the disk's end."""
    process = child(
        repository,
        """
import resource, torch
from safetensors.torch import save_file
from trainers.errors import UserError
with atomic_folder(Path(sys.argv[2])) as aside:
    (aside / "a").write_text("old")
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    with atomic_folder(Path(sys.argv[2])) as aside:
        save_file({"x": torch.zeros(100_000)}, aside / "x.safetensors")
except UserError as error:
    print(error)
""",
        tmp_path / "one",
    )
    told, _ = process.communicate()
    assert "the disk is full" in told
    assert contents(tmp_path / "one") == {"a": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_file_on_a_full_disk_keeps_its_old_content(repository, tmp_path):
    process = child(
        repository,
        """
import resource
from trainers.errors import UserError
path = Path(sys.argv[2])
write_atomic(path, "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    write_atomic(path, "n" * 1000)
except UserError as error:
    print(error)
""",
        tmp_path / "file",
    )
    told, _ = process.communicate()
    assert "the disk is full" in told
    assert contents(tmp_path) == {"file": "old"}


def test_readers_never_see_half_a_file(repository, tmp_path):
    path = tmp_path / "file"
    write_atomic(path, "0" * 200_000)
    process = child(
        repository,
        """
for digit in "123456789" * 4:
    write_atomic(Path(sys.argv[2]), digit * 200_000, sync=False)
""",
        path,
    )
    while process.poll() is None:
        text = path.read_text()
        assert len(text) == 200_000 and len(set(text)) == 1
    assert process.returncode == 0


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "none" / "file", "x")
