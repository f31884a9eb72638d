"""Cold imports of an image against the same files packed with gzip, as Apptainer packs when it is told nothing.

The gzip side goes without what sifkit alone writes into an image, the names that packages are imported by.

    python -m bench.imports IMAGE.sif

For a machine where the hand-written definition cannot be built, such as a GPU node without network. It only prints.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bench import page
from bench.builds import cold_imports, imports_table, may_drop_caches, require_reachable, unpack
from bench.scratch import scratch
from sifkit.apptainer import Apptainer
from sifkit.errors import SifkitError, UsageError
from sifkit.run import Command, Runner


def main() -> int:
    """Measure one image."""
    try:
        if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
            raise UsageError("name one image that is there", "python -m bench.imports images/NAME.sif")
        with scratch() as work:
            sys.stdout.write("\n".join(measured(Path(sys.argv[1]), work)) + "\n")
    except SifkitError as error:
        return page.say(error)
    return 0


def measured(image: Path, work: Path) -> list[str]:
    """Lines of text. Raises `UsageError` where caches cannot be dropped."""
    if not may_drop_caches():
        raise UsageError("the page cache cannot be dropped here", "run this as root")
    apptainer, unpacked, repacked = Apptainer.find(Runner(os.environ)), work / "unpacked", work / "gzip.sqfs"
    require_reachable(unpacked)
    ours = work / image.name  # the image itself may lie where its owner alone may look
    apptainer.runner.run(Command(("cp", "--reflink=auto", str(image), str(ours))))
    unpack(image, unpacked, apptainer)
    without = [str(path.relative_to(unpacked)) for path in names_written_by_sifkit(unpacked)]
    leave_out = ("-e", *without) if without else ()
    packing = ("mksquashfs", str(unpacked), str(repacked), "-noappend", "-no-progress", "-quiet", *leave_out)
    apptainer.runner.run(Command(packing))
    cold = cold_imports(repacked, ours, unpacked, apptainer)
    sizes = " and ".join(f"{path.stat().st_size / 1e9:.2f} GB" for path in (repacked, image))
    return [f"- Sizes: {sizes}", *imports_table(cold)]


def names_written_by_sifkit(tree: Path) -> list[Path]:
    """Each top_level.txt whose row stands last in its RECORD, where sifkit appends it (`sifkit.importnames`)."""
    named = (
        record.with_name("top_level.txt") for record in tree.rglob("*.dist-info/RECORD") if _names_are_last(record)
    )
    return sorted(path for path in named if path.exists())


def _names_are_last(record: Path) -> bool:
    row = record.read_text(encoding="utf-8").rstrip().rpartition("\n")[2]
    return row.startswith(f"{record.parent.name}/top_level.txt,")


if __name__ == "__main__":
    sys.exit(main())
