"""`python -m fewstep` is `fewstep`."""

from __future__ import annotations

from fewstep.cli.main import entry

if __name__ == "__main__":
    entry()
