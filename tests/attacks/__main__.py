"""Carry out all attacks, or those whose name contains a word, and print a table.

python -m tests.attacks [--seconds S] [--json] [WORD...]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from tests.attacks.attacks import ATTACKS
from tests.attacks.stand import Row, Stand


def main(arguments: Sequence[str]) -> int:
    """Print the table; return 1 if the daemon has failed under an attack."""
    parser = argparse.ArgumentParser(prog="tests.attacks")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each attack, default 3")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.add_argument("words", nargs="*", metavar="WORD", help="part of an attack's name")
    args = parser.parse_args(arguments)
    chosen = [a for a in ATTACKS if not args.words or any(w in a.name for w in args.words)]
    failed = False
    if not args.json:
        print(
            f"{'attack':<44}{'loop ms':>10}{'cpu ms':>10}{'median ms':>11}{'worst ms':>10}"
            f"{'over MiB':>10}  longest callback, fault"
        )
    with Stand() as stand:
        for attack in chosen:
            row = stand.measure(attack, args.seconds)
            failed = failed or bool(row.fault)
            print(json.dumps(asdict(row)) if args.json else line(row), flush=True)
    return int(failed)


def line(row: Row) -> str:
    """Return a row of the table."""
    return (
        f"{row.name:<44}{row.stop_ms:>10.2f}{row.work_ms:>10.2f}{row.median_ms:>11.2f}"
        f"{row.worst_ms:>10.1f}{row.over_mib:>10.0f}  {row.where}  {row.fault}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
