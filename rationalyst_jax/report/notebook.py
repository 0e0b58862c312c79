"""A page under the cell of a notebook."""

import base64
from dataclasses import dataclass
from pathlib import Path
from string import Template

# The page gets an address of its own (a blob), because it says in its address where the reader is.
_FRAME = Template("""\
<iframe id="$name" title="$name" style="width: 100%; height: ${height}px; border: 1px solid #8888"></iframe>
<script>
{
  const bytes = Uint8Array.from(atob("$page"), (letter) => letter.charCodeAt(0));
  document.getElementById("$name").src = URL.createObjectURL(new Blob([bytes], { type: "text/html" }));
}
</script>
""")


@dataclass(frozen=True)
class PageFrame:
    """Shows a page that `report`, `demo` or `benchmark` wrote, where a notebook shows the value of a cell.

    height: of the frame, pixels. The page is copied into the notebook: it stays there when the run is gone.
    """

    page: Path
    height: int = 720

    def _repr_html_(self) -> str:
        """What a notebook shows. Raises FileNotFoundError where the page is missing."""
        page = self.page.read_bytes()
        name = f"page-{self.page.stem}-{len(page)}"
        return _FRAME.substitute(name=name, height=self.height, page=base64.b64encode(page).decode())
