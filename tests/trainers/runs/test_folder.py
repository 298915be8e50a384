"""A run's folder."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from trainers.config import make_config
from trainers.errors import UserError
from trainers.pictures.clips import read_clip
from trainers.processes import start_token
from trainers.prompts import PromptItem
from trainers.runs import metrics as metrics_of_a_run
from trainers.runs.folder import RUN_ID, RunFolder
from trainers.runs.history import curves
from trainers.runs.metrics import EVALUATION


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path, make_config("tiny"))


@pytest.mark.parametrize("name", [None, "My Run #2", "../../etc", "ünï"])
def test_ids_are_ours_and_plain(tmp_path, name):
    run = RunFolder.create(tmp_path, make_config("tiny"), name)
    assert RUN_ID.fullmatch(run.id) and run.path.parent == tmp_path


def test_two_runs_of_one_second_differ(tmp_path):
    assert len({RunFolder.create(tmp_path, make_config("tiny")).id for _ in range(5)}) == 5


def test_the_config_is_frozen_as_it_was(run):
    assert run.config() == make_config("tiny")


def test_a_name_that_no_folder_can_have_is_no_run():
    with pytest.raises(UserError, match="is not a run"):
        RunFolder("a\0b")


def test_a_folder_without_a_config_is_no_run(tmp_path):
    with pytest.raises(UserError, match="not a run"):
        RunFolder(tmp_path)


def test_a_new_run_is_queued(run):
    assert run.status().state == "queued" and run.status().iterations == run.config().iterations


def test_fields_of_the_status_are_laid_over(run):
    run.set_status(message="hello")
    run.set_status(iteration=3)
    assert (run.status().message, run.status().iteration, run.status().state) == ("hello", 3, "queued")


def test_who_runs_signs_with_its_process(run):
    run.set_status(state="running")
    assert run.status().pid == os.getpid() and run.status().pid_started == start_token(os.getpid())


def test_a_run_asked_to_stop_is_stopping_until_it_has(run):
    run.set_status(state="running")
    run.request("stop")
    assert run.status().state == "stopping"
    assert run.take("stop")
    assert run.status().state == "running"


@pytest.mark.parametrize("text", ['{"state": "run', "", "[]", "null", '{"pid": 3}', '{"state": ["running"]}', "\udcff"])
def test_a_damaged_status_is_a_damaged_run(run, text):
    (run.path / "status.json").write_text(text, errors="surrogateescape")
    assert run.status().state == "damaged" and "status.json cannot be read" in run.status().last_error


@pytest.mark.parametrize(
    "field",
    [
        '"pid": "7"',
        '"pid": 1e30',
        '"pid": -1',
        '"pid_started": []',
        '"eta_seconds": "x"',
        '"gpus": {}',
        '"iteration": -3',
    ],
)
def test_a_field_of_another_type_is_a_damaged_status_that_names_it(run, field):
    (run.path / "status.json").write_text(f'{{"state": "running", {field}}}')
    status = run.status()
    assert status.state == "damaged" and field.split('"')[1] in status.last_error


def test_a_status_of_a_later_version_is_read(run):
    (run.path / "status.json").write_text('{"state": "running", "iteration": 3, "colour": "blue"}')
    assert (run.status().state, run.status().iteration) == ("running", 3)


def test_a_damaged_status_can_be_written_again(run):
    (run.path / "status.json").write_text("{")
    run.set_status(state="stopped", iteration=2)
    assert (run.status().state, run.status().iteration) == ("stopped", 2)


def test_a_run_that_is_moved_while_its_status_is_written_says_so(run, monkeypatch):
    def moved(*_, **__):
        run.path.rename(run.path.with_name("moved"))
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("trainers.runs.folder.write_atomic", moved)
    with pytest.raises(UserError, match="was deleted or moved; the run ends"):
        run.set_status(state="running")


def test_nothing_is_written_into_a_deleted_run(run):
    shutil.rmtree(run.path)
    for write in (
        lambda: run.set_status(message="x"),
        lambda: run.append_metrics({"iteration": 1}),
        lambda: run.write_clips(0, [], [], fps=10),
    ):
        with pytest.raises(UserError, match="was deleted"):
            write()
    assert not run.path.exists()


def test_a_long_name_is_cut(tmp_path):
    run = RunFolder.create(tmp_path, make_config("tiny"), "x" * 300)
    assert len(run.id) < 90 and RUN_ID.fullmatch(run.id)


def test_metrics_read_back_in_order(run):
    for iteration in range(3):
        run.append_metrics({"kind": "train", "iteration": iteration, "reward": 0.1 * iteration})
    assert [row["iteration"] for row in run.read_metrics()] == [0, 1, 2]


def test_a_torn_line_costs_only_itself(run):
    run.append_metrics({"iteration": 0})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 1, "rew')
    assert [row["iteration"] for row in run.read_metrics()] == [0]
    run.append_metrics({"iteration": 2})
    assert [row["iteration"] for row in run.read_metrics()] == [0, 2]


@pytest.mark.parametrize("line", ["[]", "3", "{}", '{"iteration": "1"}', '{"iteration": null}', "\0" * 4096])
def test_a_line_that_is_no_row_is_left_out(run, line):
    run.append_metrics({"iteration": 0})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    run.append_metrics({"iteration": 2})
    assert [row["iteration"] for row in run.read_metrics()] == [0, 2]


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(run):
    for iteration in range(5):
        run.append_metrics({"iteration": iteration})
    run.truncate_metrics(2)
    assert [row["iteration"] for row in run.read_metrics()] == [0, 1, 2]


def test_metrics_are_json_for_everyone(run):
    run.append_metrics({"iteration": 0, "a": float("nan"), "b": [float("inf"), 1.0]})

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads((run.path / "metrics.jsonl").read_text(), parse_constant=refuse) == {
        "iteration": 0,
        "a": None,
        "b": [None, 1.0],
    }


def test_a_measurement_comes_back_as_what_it_was(run):
    @dataclass
    class Scores:
        ids: list
        rewards: list

    run.write_measurement(0, {"ids": ["a"], "rewards": [0.1]})
    assert run.read_measurement(0, Scores) == Scores(["a"], [0.1])
    assert run.read_measurement(1, Scores) is None


def test_a_request_is_taken_once(run):
    run.request("save")
    assert run.take("save") and not run.take("save")


def test_only_known_requests_are_made(run):
    with pytest.raises(ValueError, match="unknown"):
        run.request("../../x")


def test_old_requests_can_be_forgotten(run):
    run.request("stop")
    run.prepare()
    assert not run.take("stop")


def test_clips_keep_every_pixel_and_a_harmless_name(run):
    videos = np.random.default_rng(0).integers(0, 255, (2, 5, 16, 24, 3), np.uint8)
    items = [PromptItem("../ü b", "x", ()), PromptItem("two", "y", ())]
    paths = run.write_clips(7, items, videos, fps=10)
    assert [p.name for p in paths] == ["00-b.webp", "01-two.webp"]
    assert all(p.parent == run.samples_folder / "000007" for p in paths)
    assert np.array_equal(read_clip(paths[1])[0], videos[1])


def test_a_full_disk_is_named_when_clips_are_written(run, monkeypatch):
    def fail(self, file, **_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(UserError, match="the disk is full"):
        run.write_clips(0, [PromptItem("one", "x", ())], np.zeros((1, 5, 16, 24, 3), np.uint8), fps=10)


def test_a_full_disk_is_named_when_metrics_are_written(run):
    """/dev/full is the system's own full disk."""
    (run.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="the disk is full"):
        run.append_metrics({"iteration": 0})


def test_the_log_s_tail_is_its_last_lines(run):
    assert run.log_tail() == ""
    for number in range(5000):
        run.log_file.open("a").write(f"line {number}\n")
    assert run.log_tail(3).splitlines() == ["line 4997", "line 4998", "line 4999"]


def test_a_file_in_the_place_of_a_part_is_named(run):
    (run.path / "samples").rmdir()
    (run.path / "samples").write_text("")
    with pytest.raises(UserError, match="samples is not a folder; move it away"):
        run.prepare()


def test_a_file_in_the_place_of_the_encodings_is_named(run):
    run.encodings_folder.write_text("")
    with pytest.raises(UserError, match="encodings is not a folder; move it away"):
        run.prepare()


@pytest.mark.pipes
@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_a_pipe_in_the_place_of_a_file_that_a_run_writes_is_named(run, name):
    os.mkfifo(run.path / name)
    with pytest.raises(UserError, match=f"{name} is not a file; remove it"):
        run.prepare()
    run.log("not waited for")


@pytest.mark.pipes
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(run):
    for name in ("status.json", "metrics.jsonl", "log.txt"):
        (run.path / name).unlink(missing_ok=True)
        os.mkfifo(run.path / name)
    assert run.status().state == "damaged" and "not a regular file" in run.status().last_error
    assert run.read_metrics() == [] and run.log_tail() == ""


STATUS_NUMBERS = [
    '"eta_seconds":1e999',
    '"eta_seconds":NaN',
    '"updated":-1e999',
    '"phase_done":NaN',
    '"phase_done":1e308',
    '"iteration":-5',
    '"iterations":' + "9" * 400,
    '"gpus":[-1]',
]


@pytest.mark.parametrize("line", STATUS_NUMBERS)
def test_a_status_with_a_number_that_is_none_is_damaged(run, line):
    (run.path / "status.json").write_text('{"state":"running","host":"other",' + line + "}")
    assert run.status().state == "damaged"


@pytest.mark.parametrize(
    "metric", ['"count":' + "9" * 400, '"margin":1e308', '"win":-0.1', '"win_high":1.5', '"tie":1e308', '"loss":true']
)
def test_a_metric_that_nothing_measures_is_left_out(run, metric):
    (run.path / "metrics.jsonl").write_text('{"kind":"train","iteration":1,' + metric + "}\n")
    assert run.read_metrics() == [{"kind": "train", "iteration": 1}]


@pytest.mark.parametrize("iteration", ["-5", "9" * 400, "true", "1.0"])
def test_a_row_of_no_iteration_is_left_out(run, iteration):
    (run.path / "metrics.jsonl").write_text('{"kind":"train","iteration":' + iteration + ',"win":0.5}\n')
    assert run.read_metrics() == []


def test_names_that_are_not_utf_8_can_be_logged_and_reported(run):
    name = os.fsdecode(b"caf\xe9.csv")
    run.log(name)
    run.set_status(state="failed", last_error=name)
    assert run.status().state == "failed" and run.status().last_error == "caf\\udce9.csv"
    assert "caf\\udce9.csv" in run.log_tail()


def test_a_checkpoint_is_named_by_plain_digits(run):
    (run.checkpoints_folder / "4²").mkdir(parents=True)
    (run.checkpoints_folder / "4²" / "progress.json").write_text("{}")
    assert run.checkpoints() == []


# --- title, and a part of the metrics --------------------------------------------------------------------------------


def test_a_run_is_renamed_and_keeps_its_id(run):
    before = run.id, run.status()
    run.rename("  Zwei Leute, schnell ")
    assert run.title == "Zwei Leute, schnell" and (run.id, run.status()) == before
    run.rename("")
    assert run.title == "" and not (run.path / "title.txt").exists()


@pytest.mark.parametrize("title", ["x" * 101, "two\nlines", "\x1b[31mred", "a\u202eb"])
def test_a_title_that_cannot_be_shown_is_refused(run, title):
    with pytest.raises(UserError, match="cannot be used"):
        run.rename(title)
    assert run.title == ""


def metrics(run: RunFolder, iterations: int, every: int = 3) -> list[dict]:
    for iteration in range(1, iterations + 1):
        run.append_metrics({"kind": "train", "iteration": iteration})
        if iteration % every == 0:
            run.append_metrics({"kind": "evaluation", "iteration": iteration, **dict.fromkeys(EVALUATION, 0.5)})
    return run.read_metrics()


@pytest.mark.parametrize("since", [-1, 0, 1, 2, 3, 11, 12, 99])
def test_rows_since_an_iteration_are_those_after_it(run, since):
    rows = metrics(run, 12)
    assert run.metrics().since(since, 100) == [row for row in rows if row["iteration"] > since]


def test_a_long_part_ends_with_a_whole_iteration_and_continues_behind_it(run):
    got, since = [], -1
    rows = metrics(run, 12)
    while part := run.metrics().since(since, 3):
        assert 3 <= len(part) <= 4
        got, since = got + part, part[-1]["iteration"]
    assert got == rows


@pytest.mark.parametrize("since", range(9))
def test_torn_lines_hide_no_row_from_the_search(run, since):
    lines = ["{torn"]
    for iteration in range(1, 9):
        lines += [f'{{"kind": "train", "iteration": {iteration}}}', "", "{torn", "[]"]
    (run.path / "metrics.jsonl").write_text("\n".join(lines))
    found = [row["iteration"] for row in run.metrics().since(since, 100)]
    assert found == [row["iteration"] for row in run.read_metrics() if row["iteration"] > since]


def test_the_last_evaluation_is_the_last_complete_one(run):
    assert run.last_evaluation() is None
    metrics(run, 7)
    run.append_metrics({"kind": "evaluation", "iteration": 9})
    assert run.last_evaluation() == run.evaluations()[-1] and run.last_evaluation()["iteration"] == 6


@pytest.mark.parametrize(
    "read", [lambda metrics: metrics.since(5_000, 500), lambda metrics: metrics.thinned(400)], ids=["since", "thinned"]
)
def test_of_a_long_history_only_the_rows_that_are_asked_for_are_parsed(run, monkeypatch, read):
    lines = (json.dumps({"kind": "train", "iteration": i}) for i in range(100_000))
    (run.path / "metrics.jsonl").write_text("\n".join(lines))
    parsed, loads = [], json.loads
    monkeypatch.setattr(metrics_of_a_run.json, "loads", lambda text: parsed.append(text) or loads(text))
    read(run.metrics())
    assert 0 < len(parsed) < 600


def test_curves_are_made_again_only_when_there_are_more_metrics(run, monkeypatch):
    metrics(run, 12)
    loads, parsed = json.loads, []
    monkeypatch.setattr(metrics_of_a_run.json, "loads", lambda text: parsed.append(text) or loads(text))
    first = curves(run, 5)
    made = len(parsed)
    assert curves(run, 5) == first and len(parsed) == made > 0
    run.append_metrics({"kind": "train", "iteration": 13})
    assert json.loads(curves(run, 5))[-1] == {"kind": "train", "iteration": 13}
