"""Builds each notebook beside its source: `python notebooks/build.py` writes NAME.ipynb from NAME.py.

The source is Python with cells ("percent format"), which can be read, compared and changed like other code.
Notebooks have no outputs. Equal sources give equal bytes.
"""

from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parent
SOURCES = [source for source in sorted(FOLDER.glob("*.py")) if source != Path(__file__)]


def built(source: Path) -> str:
    """The notebook of a source, as JSON."""
    notebook = jupytext.read(source)
    del notebook.metadata["jupytext"]
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # else drawn by lot
    return nbformat.writes(notebook) + "\n"


if __name__ == "__main__":
    for source in SOURCES:
        source.with_suffix(".ipynb").write_text(built(source), encoding="utf-8")
        print(source.with_suffix(".ipynb"))
