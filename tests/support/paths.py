"""Where the files lie that tests read."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
MEASURED = ROOT / "reports" / "measured"
TABLES = MEASURED / "runs"
TIMINGS = MEASURED / "timings"
