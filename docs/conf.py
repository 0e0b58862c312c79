"""The documentation site: `make docs` writes it to build/docs. It opens from disk and loads nothing else."""

import importlib.metadata
import re

project = "rationalyst_jax"
version = release = importlib.metadata.version(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3  # links to headings are those that work on GitHub too

html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # a page from disk may not fetch other pages
html_static_path = ["_static"]
html_css_files = ["site.css"]

highlight_language = "sh"  # of blocks that name none
default_role = "code"  # docstrings have names between single backticks
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_ivar = True


def as_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Our docstrings as reStructuredText: an argument's line, `name: what it is`, begins a paragraph, and so
    its indented second line goes on in it. What is indented after a blank line is a formula."""
    if any(line.strip() in ("Args:", "Attributes:") for line in lines):
        return  # napoleon knows these
    text = []
    for line in lines:
        blank = not text or not text[-1].strip()
        named = re.match(r"(\w+(?:, \w+)*): ", line)
        if named and (blank or text[-1].endswith((".", ":", ")"))):
            text += ["", f"``{named[1]}``: {line[named.end() :]}"]
        elif line.startswith("    ") and not blank:
            text.append(line.strip())
        elif line.startswith("    "):
            text += ["::", "", line]
        else:
            text.append(line)
    lines[:] = text


def setup(app) -> None:
    app.connect("autodoc-process-docstring", as_rst, priority=100)  # before napoleon
