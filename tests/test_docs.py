"""The docs are true: code blocks run, links lead somewhere, programs and flags exist.

README.md, docs/bring-your-model.md and docs/extending.md have test files of their own.
"""

import ast
import functools
import pathlib
import re
import shutil
import types

import pytest

from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export import console
from tools import docs_links

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ELSEWHERE = ("bring-your-model.md", "extending.md")  # run by tests of their own
# Those with several trainings; the others share the session of the first page.
SLOW = (
    *("save-and-resume.md", "two-views.md", "sharpness.md"),
    *("tensorboard.md", "troubleshooting.md", "mixed-widths.md"),
)
FIRST = "getting-started.md"


def blocks(path: pathlib.Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def run(path: pathlib.Path, names: dict) -> None:
    """Executes a page's code in order, with one epoch where a reader has several."""
    for number, block in enumerate(blocks(path), 1):
        code = re.sub(r"epochs=\d\d+", "epochs=1", block)
        exec(compile(code, f"{path.name}, block {number}", "exec"), names)


PAGES = [path for path in sorted(DOCS.rglob("*.md")) if blocks(path) and path.name not in ELSEWHERE]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The names of the first page, and the folder with the files that it wrote."""
    folder = tmp_path_factory.mktemp("docs")
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # After one epoch there are near ties, so the classes need not agree; the codes must.
        lenient = functools.partial(tflite_export.verify, min_top1_agreement=0)
        patch.setattr(tflite_export, "verify", lenient)
        run(DOCS / FIRST, names)
    return names, folder


def test_the_first_page_writes_what_it_says(session):
    names, folder = session
    written = {"float.keras", "qat.keras", "student.keras", "model.tflite", "report.html"}
    assert {path.name for path in folder.iterdir()} == written
    assert names["report"].passed


@pytest.mark.filterwarnings("ignore:The moving statistics")  # one epoch does not settle them
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(path, id=path.name, marks=[pytest.mark.slow] if path.name in SLOW else [])
        for path in PAGES
        if path.name != FIRST
    ],
)
def test_code_runs_as_it_stands(page, session, tmp_path, monkeypatch):
    names, folder = session
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    student = keras.models.load_model("student.keras", compile=False)  # pages may change theirs
    run(page, {**names, "student": student})


def test_every_page_of_the_site_is_in_its_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    missing = [
        str(path.relative_to(DOCS))
        for path in DOCS.rglob("*.md")
        if f"- {path.relative_to(DOCS)}\n" not in menu
    ]
    assert not missing, f"Add them to `nav` in mkdocs.yml: {missing}"


def markdown_files() -> list[pathlib.Path]:
    hidden = (".venv", ".git", ".bazel", "runs", "build", "site", ".pytest_cache")
    return [
        path
        for path in sorted(ROOT.rglob("*.md"))
        if not set(path.relative_to(ROOT).parts) & set(hidden)
    ]


def anchors(path: pathlib.Path) -> set[str]:
    """Anchors of a file's headings, as code hosts and mkdocs make them."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    plain = [
        re.sub(r"[^\w\s-]", "", re.sub(r"\]\(.*?\)", "]", h)).strip().lower() for h in headings
    ]
    return {re.sub(r"[\s]+", "-", heading) for heading in plain}


def test_relative_links_resolve():
    broken = []
    for path in markdown_files():
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            found = path.parent / target if target else path
            if not found.exists() or (anchor and anchor not in anchors(found)):
                broken.append(f"{path.relative_to(ROOT)}: {target}#{anchor}")
    assert not broken, f"These lead nowhere: {broken}"


def test_links_out_of_the_docs_are_kept_readable_on_the_site():
    text = "[rows](../experiments/results/fuzz.jsonl) [targets](targets.md) [api](../docs/a.md)"
    assert docs_links.rewrite(text, "exactness.md", None) == (
        "rows (`experiments/results/fuzz.jsonl`) [targets](targets.md) [api](../docs/a.md)"
    )
    assert docs_links.rewrite(text, "exactness.md", "https://host/us/").startswith(
        "[rows](https://host/us/blob/main/experiments/results/fuzz.jsonl) "
    )
    assert docs_links.rewrite("[x](../y.md)", "api/z.md", None) == "[x](../y.md)"


def flags_of(module: str) -> set[str]:
    """Names of the flags that a program defines, read from its source."""
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    defined = {
        node.args[0].value
        for node in calls
        if getattr(node.func, "attr", "").startswith("DEFINE_")
        and isinstance(node.args[0], ast.Constant)
    }
    return defined | {"help"}


def test_commands_and_their_flags_exist():
    wrong = []
    for path in markdown_files():
        for command, rest in re.findall(r"tf-fpq (\w+)([^`\n]*)", path.read_text()):
            if command not in console.COMMANDS:
                wrong.append(f"{path.name}: tf-fpq {command}")
                continue
            known = flags_of(console.COMMANDS[command][0])
            asked = re.findall(r"--(?:no)?(\w+)", rest.split("#")[0])
            wrong += [f"{path.name}: tf-fpq {command} --{f}" for f in asked if f not in known]
    assert not wrong, f"No such command or flag: {wrong}"


def test_programs_that_are_named_exist():
    wrong = []
    for path in markdown_files():
        for module in re.findall(r"python -m ([\w.]+)", path.read_text()):
            file = ROOT / module.rstrip(".").replace(".", "/")
            ours = (ROOT / module.split(".")[0]).is_dir()
            if ours and not (file.with_suffix(".py").is_file() or (file / "__main__.py").is_file()):
                wrong.append(f"{path.name}: {module}")
    assert not wrong, f"No such program: {wrong}"


def test_every_public_name_has_a_place_in_the_reference():
    import tf_fpq

    pages = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    modules = {"callbacks", "quantizers", "sharpness"}  # with a page of their own
    ours = [f"::: tf_fpq.{n}" for n in tf_fpq.__all__ if n not in modules]
    theirs = [f"heading: tflite_export.{n}" for n in tflite_export.__all__]
    missing = [line for line in (*ours, *theirs) if f"{line}\n" not in pages]
    assert not missing, f"Add them to a page in docs/api: {missing}"


def public_names(module: types.ModuleType) -> list[str]:
    """Classes and functions in `__all__`, or without it those that the module defines."""
    listed = getattr(module, "__all__", None)
    return [
        name
        for name in listed or vars(module)
        if not name.startswith("_")
        and callable(getattr(module, name))
        and (listed or getattr(module, name).__module__ == module.__name__)
    ]


def test_every_public_name_has_an_example():
    import tf_fpq

    without = []
    modules = (tf_fpq, tf_fpq.callbacks, tf_fpq.quantizers, tf_fpq.sharpness, tflite_export)
    for module in modules:
        for name in public_names(module):
            text = (getattr(module, name).__doc__ or "").partition("Args:\n")[0]
            if not re.search(r"^ {8}.*\b(tf_fpq|tflite_export)\.\w", text, re.M):
                without.append(f"{module.__name__}.{name}")
    assert not without, f"Show in the docstring how to use these: {without}"
