"""A folder is one run's: it goes on, is finished, or is refused to another."""

import dataclasses
import json
import multiprocessing

import pytest

from experiments import records, run_folder
from experiments.config import Config

RESULT = {"metrics": {"float_accuracy": 1.0}}


def config(folder, **changes):
    return Config(workdir=str(folder), **changes)


def finished(made):
    with run_folder.opened(made, resume=True) as folder:
        folder.finish({**run_folder.about(made), **RESULT})


def begin(made):
    """A run that was killed after its first checkpoint."""
    with run_folder.opened(made, resume=True) as folder:
        folder.checkpoints("teacher").mkdir()
        (folder.checkpoints("teacher") / "epoch-1.index").touch()


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_run_that_was_killed_goes_on(tmp_path):
    begin(config(tmp_path))
    (tmp_path / "float.keras").touch()
    (tmp_path / ".student.abc123.keras").touch()
    with run_folder.opened(config(tmp_path), resume=True) as folder:
        assert folder.result is None
        assert (folder.checkpoints("teacher") / "epoch-1.index").exists()
        assert names(tmp_path) == {"float.keras", "checkpoints"}


def test_a_run_that_is_finished_is_not_repeated_and_leaves_no_checkpoints(tmp_path):
    finished(config(tmp_path))
    assert names(tmp_path) == {"result.json"}
    (tmp_path / "checkpoints").mkdir()  # killed between the last two steps
    with run_folder.opened(config(tmp_path), resume=True) as folder:
        assert folder.result is not None and folder.result["metrics"] == RESULT["metrics"]
    assert names(tmp_path) == {"result.json"}


@pytest.mark.parametrize("done", [True, False])
def test_another_configuration_is_refused_and_the_difference_named(tmp_path, done):
    if done:
        finished(config(tmp_path))
    else:
        begin(config(tmp_path))
    other = config(tmp_path, epochs=3, methods=("none",))
    message = (
        r"holds a run of another configuration: methods=\['fpq'\] there, \['none'\] here;"
        " epochs=20 there, 3 here.*--noresume"
    )
    before = names(tmp_path)
    with pytest.raises(run_folder.OtherRunError, match=message):
        run_folder.opened(other, resume=True).__enter__()
    assert names(tmp_path) == before
    with run_folder.opened(other, resume=False) as folder:
        assert folder.result is None
    assert not (tmp_path / "result.json").exists()


def test_a_run_without_a_checkpoint_is_in_nobodys_way(tmp_path):
    with run_folder.opened(config(tmp_path), resume=True) as folder:
        folder.checkpoints("teacher")
    with run_folder.opened(config(tmp_path, epochs=3), resume=True) as folder:
        assert folder.result is None
    assert not names(tmp_path)


def test_folders_and_data_may_move(tmp_path):
    teacher = tmp_path / "t.keras"
    teacher.write_text("one")
    finished(config(tmp_path / "a", teacher=str(teacher), data_dir="here"))
    (tmp_path / "a").rename(tmp_path / "b")
    moved = str(teacher.rename(tmp_path / "u.keras"))
    other = config(tmp_path / "b", teacher=moved, data_dir="there")
    with run_folder.opened(other, resume=True) as folder:
        assert folder.result


def test_a_run_from_before_a_field_existed_has_its_default(tmp_path):
    finished(config(tmp_path))
    found = json.loads((tmp_path / "result.json").read_text())
    del found["config"]["precision"], found["teacher_sha256"]
    records.write_json(tmp_path / "result.json", found)
    with run_folder.opened(config(tmp_path), resume=True) as folder:
        assert folder.result
    other = config(tmp_path, precision="mixed_bfloat16")
    with pytest.raises(run_folder.OtherRunError, match="precision='float32' there"):
        run_folder.opened(other, resume=True).__enter__()


def test_a_teacher_that_has_changed_is_another_run(tmp_path):
    teacher = tmp_path / "t.keras"
    teacher.write_text("one")
    made = config(tmp_path / "run", teacher=str(teacher))
    finished(made)
    teacher.write_text("two")
    message = "another teacher than .*t.keras' there, or changed since"
    for other in (made, config(tmp_path / "run")):
        with pytest.raises(run_folder.OtherRunError, match=message):
            run_folder.opened(other, resume=True).__enter__()


def test_no_file_of_an_earlier_run_stays_beside_a_new_one(tmp_path):
    for name in (*run_folder.PRODUCTS, "notes.txt"):
        (tmp_path / name).touch()  # result.json is no whole one
    with run_folder.opened(config(tmp_path), resume=True):
        pass
    assert names(tmp_path) == {"float.keras", "notes.txt"}


def test_other_code_is_pointed_out(tmp_path, monkeypatch):
    finished(config(tmp_path))
    monkeypatch.setattr(records, "commit", lambda: "another")
    with pytest.warns(UserWarning, match="begun with other code: commit was .*, is another"):
        run_folder.opened(config(tmp_path), resume=True).__enter__()


def hold(made, ready, go):
    with run_folder.opened(made, resume=True):
        ready.set()
        go.wait(60)


def test_two_processes_are_not_at_one_run(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(config(tmp_path), ready, go))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(OSError, match="another process is at a run in this folder"):
        run_folder.opened(config(tmp_path), resume=True).__enter__()
    holder.kill()
    holder.join()
    with run_folder.opened(config(tmp_path), resume=True):
        pass
    assert not names(tmp_path)


def test_what_a_run_records_repeats_the_configuration(tmp_path):
    made = config(tmp_path, seed=3)
    about = run_folder.about(made)
    assert about["config"] == dataclasses.asdict(made) and about["versions"]["numpy"]
