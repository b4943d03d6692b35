"""Puts papers' claims to the test: each folder of experiments/ is one.

A full run writes results.json, figure.png and README.md of the claim. With --quick it asks only whether what the last
full run found still holds, with fewer seeds or steps, and writes nothing; the exit code is 1 if something does not.
"""

import argparse
import time

from jaxpref.errors import UserError

SUMMARY = "run a paper's claim and see it hold or fail"
CONFIG = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("claim", nargs="*", help="folders of experiments/")
    parser.add_argument("--all", action="store_true", help="all claims")
    parser.add_argument("--quick", action="store_true", help="check directions only; writes nothing")
    parser.add_argument("--list", action="store_true", help="claims with their verdicts and what they take")
    parser.add_argument("--table", action="store_true", help="write the pages of experiments/ from the results")


def run(options: argparse.Namespace) -> int:
    """Runs the claims; 1 where --quick contradicts what is recorded."""
    from jaxpref.analysis import tables
    from jaxpref.lab import folders, pages

    folder = folders.root()
    if options.list:
        tables.show_table(pages.listing(folders.entries(folder)))
        return 0
    if options.table:
        folders.write_pages(folder)
        print(f"The pages in {folder} are written.")
        return 0
    if bool(options.claim) == options.all:
        raise UserError("name the claims to run, or give --all (and not both); `jaxpref reproduce --list` shows them.")
    contradicted = [
        name for name in options.claim or folders.names(folder) if not _reproduce(folder, name, options.quick)
    ]
    if contradicted:
        print(f"Not what the last full run found: {', '.join(contradicted)}.")
    return 1 if contradicted else 0


def _reproduce(folder, name: str, quick: bool) -> bool:
    """Runs one claim and prints what it found; False where a quick run contradicts the recorded results."""
    from jaxpref.analysis import tables
    from jaxpref.lab import Absent, claims, folders, pages

    module, before, begin = folders.load(folder, name), folders.stored(folder, name), time.monotonic()
    print(f"{name}: {module.CLAIM.statement}")
    try:
        outcome = module.run(quick)
    except Absent as absent:
        print(f"  skipped: {absent}\n")
        return True
    results = claims.summary(outcome) if quick else folders.write(folder, name, module.CLAIM, outcome)
    tables.show_table(pages.measurements(results))
    tables.show_table(pages.checks(results["checks"]))
    if results["beyond"]:
        print("Asked beyond the claim:")
        tables.show_table(pages.checks(results["beyond"]))
    print(f"{name}: {results['verdict']}, {results['seeds']} seeds, {time.monotonic() - begin:.0f} s\n")
    if not quick:
        return True
    recorded = {check["statement"]: check["holds"] for check in _all_checks(before)} if before else {}
    return all(check["holds"] or not recorded.get(check["statement"], True) for check in _all_checks(results))


def _all_checks(results) -> list:
    return results["checks"] + results["beyond"]
