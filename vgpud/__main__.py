"""`python -m vgpud` is `vgpud`."""

from __future__ import annotations

import sys

from vgpud.cli.main import main

sys.exit(main())
