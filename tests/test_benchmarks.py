"""The comparison with the peers runs without any, and writes where it is told. Speed is no test's business."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers.py"


def test_the_comparison_writes_its_table(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- speed:begin -->\nold\n<!-- speed:end -->\nafter\n", encoding="utf-8")
    arguments = ["stream", "--peers=", "--cells=gru", "--points", "1,1,3,5", "--rounds=1", "--seconds=0"]
    subprocess.run([sys.executable, str(PEERS), *arguments, "--readme", str(page)], check=True)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- speed:begin -->\n\nMeasured on ")
    assert text.endswith(" |\n\n<!-- speed:end -->\nafter\n")
    assert "| `gru` | 1 | 3 | 5 |" in text
    assert "\nold\n" not in text
