"""Feeds the command line and the loading functions broken input, and says what came of it.

Each case must end within a minute, in a gigabyte of memory, with a known exit code and, if that is
2 or 3, with an error of one line. The cases, which a test samples as well, are in
tests/end_to_end/hostile.py.

    scripts/benchmark hostile --cases 10000 --seed 0
    scripts/benchmark hostile --seed 0 --only 4711      # one case again
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "end_to_end"))
import hostile


def main() -> int:
    """Runs the cases and prints a Markdown table; returns 1 if any is bad."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000, help="default: 10000")
    parser.add_argument("--first", type=int, default=0, help="number of the first case; default: 0")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases, in place of --cases")
    parser.add_argument("--kind", choices=hostile.KINDS, default="", help="breaks this input alone")
    parser.add_argument("--seeds", type=Path, help="folder that keeps the valid files between runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        seeds = options.seeds.absolute() if options.seeds else Path(scratch) / "seeds"
        if not (seeds / "run" / "manifest.json").exists():
            hostile.make_seeds(seeds)
        numbers = options.only or range(options.first, options.first + options.cases)
        return report(options, numbers, seeds)


def report(options, numbers, seeds) -> int:
    found, start, shown = [], time.perf_counter(), set()
    results = hostile.results(options.seed, numbers, seeds, options.kind)
    while result := next_of(results):
        found.append(result)
        if options.only:
            print(f"{result.kind}: {result.told}\n{result.outcome}\n{result.text}")
        elif result.outcome in hostile.BAD and (result.kind, result.outcome) not in shown:
            shown.add((result.kind, result.outcome))
            kind = f" --kind {result.kind!r}" if options.kind else ""
            print(
                f"{result.outcome}, repeated by --seed {options.seed}{kind} --only {result.number}:"
                f"\n  {result.kind}: {result.told[:300]}\n  {last_lines(result.text)}",
                file=sys.stderr,
                flush=True,
            )
    print(hostile.table(found))
    print(f"\n{len(found):,} cases in {time.perf_counter() - start:,.0f} s")
    return int(any(result.outcome in hostile.BAD for result in found))


def next_of(results) -> hostile.Result | None:
    """Returns the next result; none at the end, or when Ctrl-C asks for the table."""
    try:
        return next(results, None)
    except KeyboardInterrupt:
        return None


def last_lines(text: str) -> str:
    return "\n  ".join(text.strip().splitlines()[-3:])[-600:]


if __name__ == "__main__":
    sys.exit(main())
