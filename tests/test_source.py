"""Tests about the source itself, read with `ast` and never imported. Each failure says what to do
instead."""

import ast
from collections.abc import Iterator
import pathlib

import pytest

from tools import build_files

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What each package may import of the others; imports run downwards.
MAY_IMPORT = {
    "tf_fpq": {"tf_fpq"},
    "tflite_export": {"tf_fpq", "tflite_export"},
    "experiments": {"tf_fpq", "tflite_export", "experiments"},
    "benchmarks": {"tf_fpq", "tflite_export", "experiments", "benchmarks"},
    "examples": {"tf_fpq", "tflite_export", "examples"},
}
KERAS = {"keras", "tf_keras", "tensorflow_model_optimization", "tf_fpq.keras_compat"}
# The rooms in order: a module imports from its own room and from those above it in this list. A
# name that ends in a dot is a folder, another one a module.
ROOMS = (
    "tf_fpq.programs",
    "tf_fpq.autograph",
    "tf_fpq.keras_compat",
    "tf_fpq.distributed",
    "tf_fpq.graph",
    "tf_fpq.native.",
    "tf_fpq.quantizers.",
    "tf_fpq.roles",
    "tf_fpq.conversion.",
    "tf_fpq.student_layers.",
    "tf_fpq.placement.",
    "tf_fpq.calibration.",
    "tf_fpq.tfmot_scheme",
    "tf_fpq.methods.",
    "tf_fpq.training.",
    "tf_fpq.callbacks",
    "tf_fpq.sharpness.",
    "tf_fpq.quantize",
    "tf_fpq.summary",
    "tf_fpq.sensitivity",
    "tf_fpq.bit_allocation",
    "tf_fpq.check",
    "tf_fpq.",
    "tflite_export.deployed",
    "tflite_export.errors",
    "tflite_export.text_tables",
    "tflite_export.model_inputs",
    "tflite_export.image_batches",
    "tflite_export.command_line",
    "tflite_export.flatbuffer.",
    "tflite_export.kernels.",
    "tflite_export.lowering.",
    "tflite_export.targets",
    "tflite_export.twin.",
    "tflite_export.exported_model",
    "tflite_export.runtimes.",
    "tflite_export.verification.",
    "tflite_export.",
)
MAX_MODULES = 14
# Formulas that a front end for another Keras shall be able to use.
FREE_OF = {
    "tf_fpq/quantizers/spec.py": KERAS | {"tensorflow"},
    "tf_fpq/quantizers/numerics.py": KERAS,
}
MAX_LINES = 400
# Where the private name that they import is gone, they go on without it.
DOES_WITHOUT = {ROOT / "tf_fpq/autograph.py"}


def sources(*packages: str) -> list[pathlib.Path]:
    return [
        path
        for package in packages or MAY_IMPORT
        for path in sorted((ROOT / package).rglob("*.py"))
    ]


def imports(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, `package.name` for `from package
    import name`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{where(path, node.lineno)}: write the whole module name instead of a relative"
                " import."
            )
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def where(path: pathlib.Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def starts_with(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def test_there_are_sources():
    assert all(sources(package) for package in MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_downwards(package):
    others = set(build_files.PACKAGES) - MAY_IMPORT[package]
    wrong = [
        f"{where(path, line)}: {name}"
        for path in sources(package)
        for line, name in imports(path)
        if starts_with(name, others)
    ]
    assert not wrong, (
        f"{package} may import {', '.join(sorted(MAY_IMPORT[package]))} only. Move what is shared"
        f" down, or pass it in as an argument: {wrong}"
    )


def name_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix("__init__")  # a folder's own name ends in a dot


def room(name: str) -> int:
    """Place in `ROOMS` of a module or of something in it: that of the longest name that fits."""
    fits = [entry for entry in ROOMS if name == entry or f"{name}.".startswith(entry)]
    assert fits, f"{name} is in no room: add it to ROOMS, above all that import it."
    return ROOMS.index(max(fits, key=len))


def own_imports(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Line and name of the modules of our two packages that a file imports, also late."""
    for line, name in imports(path):
        if name.split(".")[0] in ("tf_fpq", "tflite_export"):
            file = build_files._file_of(name.split("."), SOURCES)
            yield line, name_of(ROOT / file)


SOURCES = {path.relative_to(ROOT) for path in sources("tf_fpq", "tflite_export")}


@pytest.mark.parametrize("package", ["tf_fpq", "tflite_export"])
def test_rooms_import_downwards(package):
    wrong = [
        f"{where(path, line)}: {name}"
        for path in sources(package)
        for line, name in own_imports(path)
        if room(name) > room(name_of(path))
    ]
    assert not wrong, f"These import from a room below their own in ROOMS: {wrong}"


@pytest.mark.parametrize("package", ["tf_fpq", "tflite_export"])
def test_no_modules_import_each_other_in_a_circle(package):
    left = {name_of(path): {n for _, n in own_imports(path)} for path in sources(package)}
    left = {name: needed - {name} for name, needed in left.items()}
    while free := [name for name, needed in left.items() if not needed & set(left)]:
        for name in free:
            del left[name]
    assert not left, f"A circle, late imports included, runs through some of these: {sorted(left)}"


def test_no_folder_is_crowded():
    folders = [
        path.parent for path in sources("tf_fpq", "tflite_export") if path.stem != "__init__"
    ]
    crowded = {
        str(f.relative_to(ROOT)): n for f in folders if (n := folders.count(f)) > MAX_MODULES
    }
    assert not crowded, f"Split along what they are about, at most {MAX_MODULES} each: {crowded}"


@pytest.mark.parametrize(("file", "forbidden"), FREE_OF.items())
def test_formulas_do_not_import_keras(file, forbidden):
    wrong = [
        f"{where(ROOT / file, line)}: {name}"
        for line, name in imports(ROOT / file)
        if starts_with(name, forbidden)
    ]
    assert not wrong, (
        f"{file} holds formulas for any front end; keep what needs Keras in the layer that calls"
        f" them: {wrong}"
    )


def test_no_private_tensorflow_or_keras():
    private = {
        "tensorflow.python",
        "tf_keras.src",
        "keras.src",
        "tensorflow_model_optimization.python",
    }
    wrong = [
        f"{where(path, line)}: {name}"
        for path in sources()
        for line, name in imports(path)
        if starts_with(name, private) and path not in DOES_WITHOUT
    ]
    assert not wrong, f"Use the public names, private ones move without notice: {wrong}"


def test_keras_comes_from_keras_compat():
    named = [
        f"{where(path, line)}: {name}"
        for path in sources()
        for line, name in imports(path)
        if starts_with(name, {"tf_keras", "tensorflow.keras"})
        and path != ROOT / "tf_fpq/keras_compat.py"
    ]
    used = [
        f"{where(path, node.lineno)}: {node.value.id}.keras"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr == "keras"
        and isinstance(node.value, ast.Name)
        and node.value.id in ("tf", "tensorflow")
    ]  # fmt: skip
    assert not named + used, (
        "Write `from tf_fpq.keras_compat import keras`; tf.keras may be Keras 2 or 3:"
        f" {named + used}"
    )


def public_nodes(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.stmt]]:
    """Public functions, classes and their public methods."""
    for node in body:
        if isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        ) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public_nodes(node.body, f"{node.name}.")


def public_api() -> Iterator[tuple[str, ast.stmt]]:
    for path in sources():
        for name, node in public_nodes(ast.parse(path.read_text()).body):
            yield f"{where(path, node.lineno)} {name}", node


def test_public_api_is_documented():
    bare = [name for name, node in public_api() if not ast.get_docstring(node)]
    modules = [
        where(path, 1)
        for path in sources()
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not bare + modules, (
        f"Write a docstring that says what it does, or prefix the name with _: {bare + modules}"
    )


def test_public_api_is_typed():
    untyped = []
    for name, node in public_api():
        if isinstance(node, ast.ClassDef):
            continue
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        arguments += [extra for extra in (node.args.vararg, node.args.kwarg) if extra]
        missing = [
            arg.arg for arg in arguments if not arg.annotation and arg.arg not in ("self", "cls")
        ]
        missing += [] if node.returns else ["return"]
        if missing:
            untyped.append(f"{name} ({', '.join(missing)})")
    assert not untyped, f"Annotate these arguments and results: {untyped}"


def test_modules_are_short():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()
    }
    long = {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
    assert not long, (
        f"Split these along what they are about; no module has more than {MAX_LINES} lines: {long}"
    )


def test_build_files_are_complete():
    stale = build_files.out_of_date()
    assert not stale, f"Run `make format`, which writes the BUILD files from the imports: {stale}"


def test_every_source_file_is_in_its_build_file():
    missing = [
        str(path.relative_to(ROOT))
        for path in sources(*build_files.PACKAGES)
        if not (path.parent / "BUILD").is_file()
        or f'"{path.name}"' not in (path.parent / "BUILD").read_text()
    ]
    assert not missing, f"Run `make format`; these are in no BUILD file: {missing}"
