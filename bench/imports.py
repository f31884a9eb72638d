"""Cold imports of an image against the same files packed with gzip, as Apptainer packs when it is told nothing.

    python -m bench.imports IMAGE.sif

For a machine where the hand-written definition cannot be built, such as a GPU node without network. It only prints.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bench import page
from bench.builds import cold_imports, imports_table, may_drop_caches, unpack
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
    unpack(image, unpacked, apptainer)
    apptainer.runner.run(Command(("mksquashfs", str(unpacked), str(repacked), "-noappend", "-no-progress", "-quiet")))
    cold = cold_imports(repacked, image, unpacked, apptainer)
    sizes = " and ".join(f"{path.stat().st_size / 1e9:.2f} GB" for path in (repacked, image))
    return [f"- Sizes: {sizes}", *imports_table(cold)]


if __name__ == "__main__":
    sys.exit(main())
