"""`make bench`: what the system costs, part by part, in one table and as JSON.

`python -m tests.bench PART...` measures only some parts.
"""

import argparse
import sys
from pathlib import Path

from tests.bench import admissions, api_server, holders, protocol, scrapes, waiting
from tests.bench.report import Report
from tests.e2e.binaries import MissingError

PARTS = {
    "protocol": protocol.measure,
    "admissions": admissions.measure,
    "api-server": api_server.measure,
    "holders": holders.measure,
    "scrapes": scrapes.measure,
    "waiting": waiting.measure,
}
SEED = 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"what to measure: {', '.join(PARTS)}; default: all")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where to write the figures")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--brief", action="store_true", help="only see that everything works: the figures say nothing")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    report = Report(arguments.seed, is_brief=arguments.brief)
    report.print_head()
    for part in arguments.parts or PARTS:
        try:
            PARTS[part](report)
        except MissingError as error:
            report.note(f"{part}: not measured: {error}")
    report.write(arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
