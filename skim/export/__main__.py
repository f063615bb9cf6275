"""The command ``python -m skim.export``: ``evaluate.py what=export``."""

from __future__ import annotations

import sys

from skim.evaluate import start

if __name__ == "__main__":
    sys.argv.insert(1, "what=export")
    start()
