"""Write docs/rules/ again from the rules: `python -m sifkit.check DIRECTORY`."""

from __future__ import annotations

import sys
from pathlib import Path

from sifkit.check.pages import pages
from sifkit.check.rule import all_rules


def main(directory: Path) -> None:
    """Pages of rules that are gone go, too."""
    directory.mkdir(parents=True, exist_ok=True)
    wanted = pages(all_rules())
    for old in directory.glob("*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
