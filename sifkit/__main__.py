"""`python -m sifkit`."""

import sys

from sifkit.cli import main

sys.exit(main())
