"""One page that a browser opens from disk: a script, its style, and data, in one file that asks nobody for
anything.

The data is gzipped JSON in parts, which the browser unpacks when they are looked at. A
Content-Security-Policy allows this script and this style by their hashes and nothing else, no network, and no
text that becomes HTML: what models write is hostile.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from rich.table import Table
from rich.text import Text

from rationalyst_jax.files.whole import whole

_PAGE = Path(__file__).with_name("page")
MAIN = "main"  # the part that a page begins with


def packed(value: Any) -> str:
    """A JSON value as a page holds it: gzipped, in base64."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def write_page(title: str, parts: Mapping[str, str], out: Path) -> int:
    """Writes a page of packed parts, by their names, one of them MAIN; gives its size in bytes."""
    script = (_PAGE / "page.js").read_text(encoding="utf-8")
    style = (_PAGE / "page.css").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    held = (
        f'<script type="text/plain" id="part-{escape(name)}">{text}</script>' for name, text in parts.items()
    )
    page = Template((_PAGE / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title), policy=policy, style=style, script=script, parts="\n".join(held)
    )
    data = page.encode()
    with whole(out) as unfinished:
        unfinished.write_bytes(data)
    return len(data)


def table_data(table: Table) -> dict[str, Any]:
    """A table for a terminal as a JSON value, so that the page has the same words and figures: `title`,
    `caption`, `columns` (`name`, and whether they stand `right`) and `rows` of texts."""
    columns = [
        {"name": _plain(column.header), "right": column.justify == "right"} for column in table.columns
    ]
    cells = ([_plain(cell) for cell in column.cells] for column in table.columns)
    return {
        "title": _plain(table.title),
        "caption": _plain(table.caption),
        "columns": columns,
        "rows": [list(row) for row in zip(*cells, strict=True)],
    }


def _plain(markup: Any) -> str:
    return Text.from_markup(markup or "").plain


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
