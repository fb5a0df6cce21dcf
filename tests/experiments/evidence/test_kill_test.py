"""Killed runs end as the one that nobody killed; kills are of all kinds and strike living runs."""

import collections
import itertools
import os
import random
import time

import pytest

from experiments.evidence import kill_test


@pytest.mark.slow
def test_three_kills(tmp_path):
    lines = []
    assert kill_test.run_kills(3, 1, tmp_path, lines.append) >= 1
    assert "3 kills" in lines[-2] and "all are the uninterrupted one" in lines[-2]


def test_every_dozen_kills_has_all_kinds():
    kinds = collections.Counter(itertools.islice(kill_test._kinds(random.Random(7)), 24))
    assert kinds == {"time": 8, "file": 6, "checkpoint": 4, "export": 4, "line": 2}


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Processes that end as planned: each item is an exit code and whether the run is finished."""
    plan, seen = [], []

    def process(run, data_dir, kill, measured=None):
        code, finished = plan.pop(0)
        (run / "cell").mkdir(parents=True, exist_ok=True)
        if finished:
            (run / "cell" / "result.json").write_text("{}")
        (tmp_path / "log.txt").write_text("== float teacher\n== export\nTraceback")
        seen.append(kill)
        return code

    monkeypatch.setattr(kill_test, "_process", process)
    return plan, seen


def ended(folder, planned):
    reference = kill_test.Reference(folder / "reference", {"time": 100.0})
    return list(kill_test._ended(folder, "", reference, random.Random(0), planned))


def test_a_run_that_lacks_only_its_line_is_killed_no_more(tmp_path, started):
    plan, seen = started
    plan += [(-9, False), (-9, True), (0, True)]
    planned = collections.deque(["time", "line", "file"])
    assert [kill.kind for kill in ended(tmp_path, planned)] == ["time", "line"]
    assert seen[-1] is None and list(planned) == ["file"]
    assert seen[0].when > 1 > seen[1].when  # seconds, and a share
    assert kill_test._place(tmp_path) == "export"


def test_a_kill_that_comes_too_late_stays_planned(tmp_path, started):
    started[0].append((0, True))
    planned = collections.deque(["time"])
    assert ended(tmp_path, planned) == [] and list(planned) == ["time"]


def test_only_a_checkpoint_of_this_process_is_one_that_is_being_written(tmp_path, monkeypatch):
    """A process before it was killed in the second epoch's; this one is to die in its second."""
    folder = tmp_path / "cell" / "checkpoints" / "teacher"

    def write(epoch, age):
        (folder / f"epoch-{epoch}_temp").mkdir(parents=True, exist_ok=True)
        os.utime(folder / f"epoch-{epoch}_temp", times=(time.time() - age,) * 2)

    def sleep(_):
        written.append(len(written) + 2)
        write(written[-1], age=-1)

    def die():
        raise KeyboardInterrupt

    written = []
    write(2, age=60)
    monkeypatch.setattr(kill_test.time, "sleep", sleep)
    monkeypatch.setattr(kill_test, "_die", die)
    with pytest.raises(KeyboardInterrupt):
        kill_test._watch_checkpoints(tmp_path, 1)
    assert written == [2, 3]


@pytest.mark.parametrize("code", [1, -11])
def test_a_process_that_dies_by_itself_is_reported(tmp_path, started, code):
    started[0].append((code, False))
    with pytest.raises(kill_test.same_run.DifferenceError, match=f"exit code {code}: .*"):
        ended(tmp_path, collections.deque(["time"]))
