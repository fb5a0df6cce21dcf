"""Writes the BUILD files: one per folder, a `py_library` per module and a `py_test` per test file,
deps from the imports.

python -m tools.build_files            writes them
python -m tools.build_files --check    exits with 1 and names those that are out of date
"""

import ast
from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = (
    "tf_fpq",
    "tflite_export",
    "experiments",
    "benchmarks",
    "examples",
    "tools",
    "tests",
)
RUNNER = pathlib.Path("tests/run_pytest.py")
TESTS = pathlib.Path("tests")
CONFTEST = "conftest.py"
# It tells pytest to leave out what is marked slow.
SETTINGS = "pyproject.toml"
# Files of a folder, for the tests that read files; those of the root are those of all folders.
FILES = "files"
FOLDER_FILES = f"""filegroup(
    name = "{FILES}",
    srcs = glob(
        ["**"],
        exclude = ["**/__pycache__/**"],
    ),
)"""

# A source of another language, and the dotted name of a module.
_SOURCE, _DOTTED = re.compile(r"\w+\.(cc|h)"), re.compile(r"\w+(\.\w+)+")

# The name on PyPI of what an import brings, where it is another one.
PIP_NAMES = {
    "PIL": "pillow",
    "absl": "absl-py",
    "ai_edge_litert": "ai-edge-litert",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
    "tensorflow_model_optimization": "tensorflow-model-optimization",
}

HEAD = "# Written by tools/build_files.py."
VISIBLE = 'package(default_visibility = ["//visibility:public"])'


@dataclasses.dataclass
class Module:
    """What one file imports.

    Attributes:
      deps: Our own files that it imports when it loads.
      late: Our own files that it imports later, in a function, or for type checking.
      pip: Packages from PyPI.
      data: Those of `late` that cannot be dependencies, because they depend on this file
        themselves; and files of its folder that it names, such as sources of another language.
      reads_files: It is of the tests, and asks where it lies, names a file or starts a Python of
        its own. Which files it reads then is not seen from its imports, so it may read all.
    """

    deps: set[pathlib.Path] = dataclasses.field(default_factory=set)
    late: set[pathlib.Path] = dataclasses.field(default_factory=set)
    pip: set[str] = dataclasses.field(default_factory=set)
    data: set[pathlib.Path] = dataclasses.field(default_factory=set)
    reads_files: bool = False


def build_files(root: pathlib.Path = ROOT) -> dict[pathlib.Path, str]:
    """The text of each BUILD file, by path."""
    files = [
        path.relative_to(root)
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    ]
    modules = {path: _module(root, path, set(files)) for path in files}
    _place_late_imports(modules)
    folders = sorted({path.parent for path in files})
    texts = {root / "BUILD": _root_text(folders)}
    for folder in folders:
        members = {path: module for path, module in modules.items() if path.parent == folder}
        texts[root / folder / "BUILD"] = _build_text(members)
    return texts


def out_of_date(root: pathlib.Path = ROOT) -> list[str]:
    """BUILD files that are missing or differ from what the sources ask for."""
    texts = build_files(root)
    return [
        str(path.relative_to(root))
        for path, text in texts.items()
        if not path.is_file() or path.read_text() != text
    ]


def _module(root: pathlib.Path, path: pathlib.Path, files: set[pathlib.Path]) -> Module:
    module = Module()
    tree = ast.parse((root / path).read_text(), str(path))
    for node in ast.walk(tree):
        for name in _imported_names(node):
            parts = name.split(".")
            if parts[0] not in PACKAGES:
                module.pip |= (
                    set()
                    if parts[0] in sys.stdlib_module_names
                    else {PIP_NAMES.get(parts[0], parts[0])}
                )
                continue
            target = _file_of(parts, files)
            # An __init__ imports the modules of its package, so they do not depend on it.
            if target != path and not (
                target.name == "__init__.py" and target.parent in path.parents
            ):
                (module.deps if node in tree.body else module.late).add(target)
    module.late -= module.deps
    named = {path.parent / text for text in map(_text, ast.walk(tree)) if _SOURCE.fullmatch(text)}
    module.data = {file for file in named if (root / file).is_file()}
    if TESTS in path.parents:
        # `python -m tf_fpq.check`: a program that a test runs by its name.
        programs = {_named_program(node, files) for node in ast.walk(tree)} - {None, path}
        module.late |= programs - module.deps
        module.reads_files = any(map(_asks_for_files, ast.walk(tree)))
    if path.name.startswith("test_"):
        module.deps |= {folder / CONFTEST for folder in path.parents} & files
    return module


def _text(node: ast.AST) -> str:
    """What this constant says, if it is a text."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _named_program(node: ast.AST, files: set[pathlib.Path]) -> pathlib.Path | None:
    """The module or the package's program that this constant is the dotted name of."""
    if not _DOTTED.fullmatch(text := _text(node)):
        return None
    stem = pathlib.Path(*text.split("."))
    candidates = {stem.with_suffix(".py"), stem / "__main__.py"} & files
    return candidates.pop() if candidates else None


def _asks_for_files(node: ast.AST) -> bool:
    """Whether this is `__file__`, `sys.executable` or the path of one of our files."""
    if isinstance(node, ast.Constant):
        return str(node.value).startswith(tuple(f"{package}/" for package in PACKAGES))
    name = getattr(node, "id", None) or getattr(node, "attr", None)
    return name in ("__file__", "executable")


def _imported_names(node: ast.AST) -> list[str]:
    """Dotted names: modules, and `package.name` for `from package import name`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def _file_of(parts: list[str], files: set[pathlib.Path]) -> pathlib.Path:
    """The file behind a dotted name, which may end in something defined there."""
    for end in range(len(parts), 0, -1):
        stem = pathlib.Path(*parts[:end])
        for candidate in (stem.with_suffix(".py"), stem / "__init__.py"):
            if candidate in files:
                return candidate
    raise ValueError(f"Nothing in this repository is called {'.'.join(parts)}; correct the import.")


def _place_late_imports(modules: Mapping[pathlib.Path, Module]) -> None:
    """A late import becomes a dependency too, unless that would close a circle, which Bazel
    refuses: then it is data.
    """
    for path, module in modules.items():
        for target in sorted(module.late):
            (module.data if _reaches(modules, target, path) else module.deps).add(target)


def _reaches(
    modules: Mapping[pathlib.Path, Module], start: pathlib.Path, goal: pathlib.Path
) -> bool:
    seen, waiting = set(), [start]
    while waiting:
        path = waiting.pop()
        if path == goal:
            return True
        if path not in seen:
            seen.add(path)
            waiting += modules[path].deps
    return False


def _root_text(folders: Sequence[pathlib.Path]) -> str:
    globs = [f'        "{pattern}",' for pattern in ("*", "docs/**", "notebooks/**")]
    labels = [f'        "//{folder}:{FILES}",' for folder in folders]
    srcs = ["    srcs = glob([", *globs, "    ]) + [", *labels, "    ],"]
    files = ["filegroup(", f'    name = "{FILES}",', *srcs, ")"]
    return _paragraphs(HEAD, VISIBLE, f'exports_files(["{SETTINGS}"])', "\n".join(files))


def _build_text(members: Mapping[pathlib.Path, Module]) -> str:
    rules = [_rule(path, module) for path, module in members.items()]
    kinds = sorted({rule.partition("(")[0] for rule in rules})
    loads = [f'load("@rules_python//python:{kind}.bzl", "{kind}")' for kind in kinds]
    exported = [f'exports_files(["{RUNNER.name}"])'] if RUNNER in members else []
    return _paragraphs(HEAD, "\n".join(loads), VISIBLE, *exported, FOLDER_FILES, *rules)


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(texts) + "\n"


def _rule(path: pathlib.Path, module: Module) -> str:
    kind, srcs, pip, args, main_file = "py_library", [path.name], module.pip, [], []
    data = [_file_label(target, path) for target in sorted(module.data)]
    data += [f"//:{FILES}"] if module.reads_files else []
    if path.name.startswith("test_"):
        runner = f"//{RUNNER.parent}:{RUNNER.name}"
        kind, srcs, pip = "py_test", [path.name, runner], pip | {"pytest"}
        args, main_file = [f'    args = ["{path}"],'], [f'    main = "{runner}",']
        data = [f"//:{SETTINGS}", *data]
    # In the order of buildifier: a package's own target before its others, and before its folders.
    deps = sorted(map(_label, module.deps), key=lambda label: label.split(":"))
    attributes = [
        *_list("srcs", [f'"{source}",' for source in srcs]),
        *args,
        *_list("data", [f'"{label}",' for label in sorted(data)]),
        *main_file,
        *_list("deps", [*(f'"{label}",' for label in deps), *(f"# pip: {n}" for n in sorted(pip))]),
    ]
    lines = [f"{kind}(", f'    name = "{_target(path)}",', *attributes, ")"]
    return "\n".join(lines)


def _list(attribute: str, values: Sequence[str]) -> list[str]:
    """Lines of an attribute that is a list, as buildifier breaks them; none if it is empty."""
    if len(values) == 1 and not values[0].startswith("#"):
        return [f"    {attribute} = [{values[0].rstrip(',')}],"]
    return [f"    {attribute} = [", *(f"        {v}" for v in values), "    ],"] if values else []


def _label(path: pathlib.Path) -> str:
    """The label as buildifier writes it: a package's own name is left out behind the colon."""
    return (
        f"//{path.parent}"
        if _target(path) == path.parent.name
        else f"//{path.parent}:{_target(path)}"
    )


def _file_label(target: pathlib.Path, path: pathlib.Path) -> str:
    if target.parent != path.parent:
        raise ValueError(
            f"{path} and {target} import each other across folders; let one of them go without the"
            " other."
        )
    return target.name


def _target(path: pathlib.Path) -> str:
    return path.parent.name if path.name == "__init__.py" else path.stem


def main(arguments: list[str]) -> int:
    """Writes or checks the BUILD files and returns the exit status."""
    if arguments == ["--check"]:
        stale = out_of_date()
        if stale:
            print(f"Out of date: {', '.join(stale)}. Run `make format`.")
        return 1 if stale else 0
    if arguments:
        print(__doc__)
        return 2
    for path, text in build_files().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
