"""The demo as a picture: what `estimate --flavor 4xLarge.2048GB` prints, as `docs/demo.svg` (`make demo-picture`).

The same bytes for the same answer: the search's own milliseconds are left out, and nothing is fetched to show it.
"""

import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

COMMAND = ("estimate", "--flavor", "4xLarge.2048GB")
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "demo.svg"
WIDTH = 138
FONT = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


def picture() -> str:
    """Return what the command prints as an SVG document."""
    where = Path(sys.executable).with_name(COMMAND[0])
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    printed = subprocess.run(  # noqa: S603 - the project's own command
        [where, *COMMAND[1:]], capture_output=True, text=True, env=environment, check=True
    ).stdout
    printed = re.sub(r", searched in \d+ ms", "", printed)
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "green"), " ".join(COMMAND)))
    console.print(Text.from_ansi(printed))
    svg = console.export_svg(title="estimate", unique_id="demo")
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
    return re.sub(r"font-family: ?Fira Code, monospace", f"font-family: {FONT}", svg)


if __name__ == "__main__":
    PICTURE.write_text(picture() + "\n", encoding="utf-8")
