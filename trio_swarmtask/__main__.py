# `python -m trio_swarmtask`, the same as the command `swarmtask`.

from __future__ import annotations

import sys

from ._cli import main

if __name__ == "__main__":
    sys.exit(main())
