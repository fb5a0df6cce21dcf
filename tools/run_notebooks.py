"""Executes notebooks and stores their outputs, without what changes from run to run.

python -m tools.run_notebooks [notebooks/five_minutes.ipynb ...]     all, without a name

Needs the extra `notebooks` (`pip install -e .[notebooks]`).
"""

from collections.abc import Sequence
import pathlib
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent


def execute(path: pathlib.Path, folder: str | pathlib.Path, timeout: int = 1200) -> Any:
    """Runs all cells of a notebook in `folder`; an error in a cell is raised here."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=timeout, resources=resources).execute()
    return notebook


def tidy(notebook: Any) -> Any:
    """Takes times, log lines and the kernel's version out of an executed notebook."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        kept = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
        if cell.cell_type == "code":
            cell.outputs = kept
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main(names: Sequence[str]) -> None:
    """Executes and stores."""
    import nbformat

    for path in map(pathlib.Path, names or sorted((ROOT / "notebooks").glob("*.ipynb"))):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(tidy(execute(path, folder)), path)
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
