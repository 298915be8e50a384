"""Progress on a terminal and in a file."""

from __future__ import annotations

import errno
import io
import os
import pty
import re
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest

from trainers.commands.progress import Bar, Lines, counted, open_display
from trainers.config import make_config
from trainers.runs.folder import RunFolder
from trainers.runs.progress import Progress, ProgressReport, duration

REPORT = ProgressReport(1, 8, "rollouts", 0.1875, 65.0, {"reward_mean": 1.25})


def test_a_result_goes_to_standard_output_beside_the_progress(capsys):
    for show in (Bar(), Lines()):
        with closing(show):
            show(REPORT)
            show.line("step 2: 75.0%")
    assert len(re.findall(r"^(\d\d:\d\d:\d\d )?step 2: 75.0%$", capsys.readouterr().out, re.MULTILINE)) == 2


@pytest.mark.parametrize("notes, times", [(True, 1), (False, 0)])
def test_a_message_is_printed_once_when_it_comes_unless_the_file_has_it(capsys, notes, times):
    with closing(Lines(notes=notes)) as show:
        for message in ("", "checkpoint 2 is damaged", "checkpoint 2 is damaged"):
            show(replace(REPORT, metrics={}, message=message))
    assert capsys.readouterr().out.count("note: checkpoint 2 is damaged") == times


def test_the_first_step_of_a_phase_compiles(tmp_path):
    run, seen = RunFolder.create(tmp_path, make_config("tiny")), []
    progress = Progress(run, 2, lambda report: seen.append(report.phase))
    progress.compiling = {"evaluation", "rollouts"}
    for phase, within in (("evaluation", 0), ("rollouts", 0), ("rollouts", 0.5), ("evaluation", 0), ("rollouts", 0)):
        progress.update(0, phase, within)
    assert seen == ["evaluation, compiling", "rollouts, compiling", "rollouts", "evaluation", "rollouts"]
    assert run.status().phase == "rollouts"


def test_a_terminal_shows_a_bar_with_the_time_left(monkeypatch):
    screen, terminal = pty.openpty()
    text = b""

    def read() -> None:
        nonlocal text
        while b"left" not in text:
            text += os.read(screen, 65536)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with open(terminal, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        with closing(open_display()) as bar:
            bar(REPORT)
        reader.join(10)
    os.close(screen)
    assert isinstance(bar, Bar)
    assert re.search(r"19%\|.+\| 2/8 rollouts, reward 1.250, 1 min 5 s left", text.decode())


def test_a_file_gets_a_line_for_every_iteration_at_once(capsys):
    with closing(open_display()) as lines:
        lines(ProgressReport(0, 8, "rollouts", 0.1, None))
        lines(REPORT)
    assert isinstance(lines, Lines)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(" iteration 1/8, reward 1.2500, 1 min 5 s left")


def test_a_file_gets_a_line_for_every_quiet_time_though_nothing_is_reported(capsys):
    with closing(Lines(quiet_seconds=0.1)) as lines:
        lines(ProgressReport(0, 8, "rollouts", 0.1, 65.0))
        time.sleep(0.55)
    printed = capsys.readouterr().out.splitlines()
    assert 2 <= len(printed) <= 5
    assert all(line.endswith(" iteration 0/8, rollouts, 1 min 5 s left") for line in printed)
    time.sleep(0.2)
    assert not capsys.readouterr().out, "closed lines go on printing"


class Closed(io.StringIO):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("display", [Bar, Lines])
def test_a_display_that_nobody_sees_any_more_does_not_end_a_run(monkeypatch, display):
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", Closed())
        patch.setattr("sys.stderr", Closed())
        with closing(display()) as show:
            show(replace(REPORT, message="checkpoint 2 is damaged"))
            with pytest.raises(OSError):  # a command whose results nobody reads may end
                show.line("step 2: 75.0%")


def test_steps_are_shown_as_they_are_done(capsys):
    with closing(Lines(quiet_seconds=0.05)) as lines:
        step = counted("evaluation", 4, lines)
        for _ in range(3):
            step()
        time.sleep(0.2)
    assert capsys.readouterr().out.splitlines()[-1].endswith(" evaluation 50%")


@pytest.mark.parametrize("seconds, text", [(0, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7620, "2 h 7 min")])
def test_durations_are_written_for_people(seconds, text):
    assert duration(seconds) == text
