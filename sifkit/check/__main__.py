"""Write docs/rules/ and docs/failures.md again from the rules: `python -m sifkit.check docs`."""

from __future__ import annotations

import sys
from pathlib import Path

from sifkit.check.failures import failures, page
from sifkit.check.pages import pages
from sifkit.check.rule import all_rules


def written(docs: Path) -> dict[Path, str]:
    """Every generated file by its place."""
    rules = all_rules()
    texts = {docs / "rules" / name: text for name, text in pages(rules).items()}
    return {**texts, docs / "failures.md": page(failures(), rules)}


def main(docs: Path) -> None:
    """Pages of rules that are gone go, too."""
    texts = written(docs)
    (docs / "rules").mkdir(parents=True, exist_ok=True)
    for old in (docs / "rules").glob("*.md"):
        if old not in texts:
            old.unlink()
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
