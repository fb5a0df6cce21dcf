"""Results survive killed writers, and processes that write at the same time."""

import json
import multiprocessing
import os
import signal
import time
import warnings

import pytest

from experiments.results_file import ResultsFile


def results(path):
    return ResultsFile(path, lambda row: str(row["seed"]))


def test_rows_come_back_in_order_and_no_file_has_no_rows(tmp_path):
    file = results(tmp_path / "deep" / "rows.jsonl")
    assert file.rows() == []
    assert file.add({"seed": 3, "text": "ü"}) and file.add({"seed": 1})
    assert file.rows() == [{"seed": 3, "text": "ü"}, {"seed": 1}]
    assert file.keys() == {"3", "1"}


def test_a_key_is_written_once(tmp_path):
    file = results(tmp_path / "rows.jsonl")
    assert file.add({"seed": 0, "accuracy": 0.5})
    assert not file.add({"seed": 0, "accuracy": 0.6})
    assert file.rows() == [{"seed": 0, "accuracy": 0.5}]


@pytest.mark.parametrize("rest", ['{"seed": 1, "acc', '{"seed": 1}', "[1", "1"])
def test_a_line_that_was_cut_off_costs_its_own_row_only(tmp_path, rest):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"seed": 0}\n' + rest)
    file = results(path)
    whole = rest == '{"seed": 1}'
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert file.add({"seed": 2})
        found = file.rows()
    assert found == [{"seed": 0}, *([{"seed": 1}] if whole else []), {"seed": 2}]
    assert bool(caught) != whole
    if not whole:
        assert "line 2 is no whole row" in str(caught[0].message)
        assert path.read_text().splitlines()[1] == rest


def test_lines_of_one_key_count_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"seed": 0, "a": 1}\n{"seed": 0, "a": 2}\n')
    with pytest.warns(UserWarning, match="line 2 repeats the key"):
        assert results(path).rows() == [{"seed": 0, "a": 1}]


def add_many(path, start):
    file = results(path)
    for seed in range(start, start + 40):
        file.add({"seed": seed % 60, "filling": "x" * 5000})


def test_processes_that_write_at_the_same_time_lose_and_double_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    path = tmp_path / "rows.jsonl"
    writers = [context.Process(target=add_many, args=(path, 20 * n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = path.read_text().splitlines()
    assert sorted(json.loads(line)["seed"] for line in lines) == list(range(60))


def hold(path, ready):
    with results(path).claim("0") as mine:
        ready.put(mine)
        time.sleep(60)


def test_a_claim_ends_with_the_process_that_holds_it(tmp_path):
    context = multiprocessing.get_context("fork")
    path, ready = tmp_path / "rows.jsonl", context.Queue()
    holder = context.Process(target=hold, args=(path, ready))
    holder.start()
    assert ready.get(timeout=30)
    file = results(path)
    with file.claim("0") as mine, file.claim("1") as other:
        assert not mine and other
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with file.claim("0") as mine:
        assert mine
    assert [p.name for p in tmp_path.iterdir()] == [".rows.jsonl.lock"]
