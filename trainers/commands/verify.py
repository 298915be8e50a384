"""`verify`: recompute golden cases of the reference implementations."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..errors import UserError
from ..parity.cases import case_kind, find_cases, verify_case
from ..parity.checks import checks_table


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", nargs="+", type=Path, help="the folder of a golden case, or one that holds several")


def main(options: Namespace) -> int:
    """Print every quantity's worst error per case; 0 when all are within tolerance, else 1."""
    good = True
    for path in options.path:
        try:
            cases = find_cases(path)
        except UserError as error:
            cases, good = [], False
            print(f"NOT VERIFIED  {error}")
        if len(cases) > 1 and not any(case_kind(case) for case in cases):
            cases, good = [], False
            print(f"NOT VERIFIED  no folder below {path} is a golden case")
        for case in cases:
            print(f"\n{case}  ({case_kind(case) or 'unknown'})")
            try:
                results = verify_case(case)
            except UserError as error:
                good = False
                print(f"NOT VERIFIED  {error}")
                continue
            good &= bool(results) and all(r.ok for r in results)
            print(checks_table(results))
    print("\nall within tolerance" if good else "\nNOT everything is within tolerance")
    return 0 if good else 1
