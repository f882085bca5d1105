"""Disturb commands at random moments, run them again to their end, and compare what they made.

    make soak                        # or: python -m soak [--minutes 30] [--seed 0] [--jobs 2]
    python -m soak --page            # write the counts of the last results into docs/reliability.md
    python -m soak --only 17         # round 17 of a seed again; its folder is kept

A round runs one command in a new folder, disturbs it once or several times, runs the same command
to its end, and compares the folder with that of an undisturbed run.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

from soak.rounds import DISTURBANCES, Reference, Round

DOCS = Path(__file__).parents[1] / "docs"
RESULTS, PAGE = DOCS / "results" / "soak.json", DOCS / "reliability.md"
MARKS = ("<!-- counts of `make soak` -->", "<!-- end of the counts -->")


def main() -> None:
    """Run the soak test; the exit code is 1 where a round has found a fault."""
    parser = argparse.ArgumentParser(
        prog="python -m soak", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("SOAK_MINUTES", 30)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", type=int, help="run this round of the seed alone")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file of the counts")
    parser.add_argument("--keep", type=Path, default=Path("soak-failures"))
    parser.add_argument("--page", action="store_true", help=f"write the counts into {PAGE.name}")
    given = parser.parse_args()
    if given.page:
        write_page(PAGE, json.loads(given.out.read_text()))
        return
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found = soak(given, Path(folder))
    if given.only is None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"counts: {given.out}")
    print("\n".join(markdown(found)))
    sys.exit(1 if found["failures"] else 0)


def soak(given: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Return the counts of all rounds, and what each failed one has found."""
    print("making what the commands start from, and what they end with undisturbed")
    reference = Reference.made(home)
    began, lanes = time.monotonic(), []
    for lane in range(given.jobs if given.only is None else 1):
        child = os.fork()
        if child == 0:
            _lane(given, home, reference, lane, began)
        lanes.append(child)
    broken = [child for child in lanes if os.waitpid(child, 0)[1]]
    if broken:
        raise SystemExit(f"soak: {len(broken)} of {len(lanes)} jobs ended in an error of their own")
    rows = [json.loads(line) for path in sorted(home.glob("lane-*")) for line in _lines(path)]
    return {
        "seed": given.seed,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "jobs": given.jobs,
        "commit": _commit(),
        "python": platform.python_version(),
        "rows": counted(rows),
        "failures": [row for row in rows if row["faults"]],
    }


def _lines(path: Path) -> Iterator[str]:
    yield from path.read_text().splitlines()


def _lane(
    given: argparse.Namespace, home: Path, reference: Reference, lane: int, began: float
) -> None:
    """Run rounds lane, lane + jobs, ... in this process until the time is over."""
    code = 1
    try:
        number = lane if given.only is None else given.only
        with (home / f"lane-{lane}").open("w") as out:
            while number == given.only or time.monotonic() - began < 60 * given.minutes:
                row = _round(given, home, reference, number)
                out.write(json.dumps(row) + "\n")
                out.flush()
                if given.only is not None:
                    break
                number += given.jobs
        code = 0
    except BaseException:  # noqa: BLE001  a job must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _round(
    given: argparse.Namespace, home: Path, reference: Reference, number: int
) -> dict[str, Any]:
    folder = home / f"round-{number}"
    made = Round(number, random.Random(f"{given.seed}/{number}"), folder, reference)
    row = made.run()
    print(f"round {number}: {row['command']}, {row['disturbance']}: {'; '.join(row['told'])}")
    if row["faults"] or given.only is not None:
        kept = given.keep / f"seed-{given.seed}-round-{number}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept, symlinks=True)
        (kept / "round.json").write_text(json.dumps(row, indent=1))
        again = f"python -m soak --seed {given.seed} --only {number}"
        print(f"  FAULT {'; '.join(row['faults'])}\n  kept in {kept}; again: {again}")
    shutil.rmtree(folder)
    sys.stdout.flush()
    return row


def counted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the counts of each command and disturbance."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = collections.defaultdict(list)
    for row in rows:
        groups[row["command"], row["disturbance"]].append(row)
    return [
        {
            "command": command,
            "disturbance": disturbance,
            "rounds": len(group),
            "disturbed": sum(row["disturbed"] for row in group),
            "differences": sum(bool(row["faults"]) for row in group),
        }
        for (command, disturbance), group in sorted(groups.items())
    ]


def markdown(found: dict[str, Any]) -> list[str]:
    """Return the counts as a table of Markdown: a row for each command, a column for each kind."""
    cells = {(r["command"], r["disturbance"]): r["disturbed"] for r in found["rows"]}
    commands = sorted({command for command, _ in cells})
    lines = [
        f"| command | {' | '.join(DISTURBANCES)} | rounds | different ends |",
        "| --- |" + " ---: |" * (len(DISTURBANCES) + 2),
    ]
    for command in commands:
        own = [r for r in found["rows"] if r["command"] == command]
        numbers = [cells.get((command, d), 0) for d in DISTURBANCES]
        numbers += [sum(r["rounds"] for r in own), sum(r["differences"] for r in own)]
        lines.append(f"| {command} | {' | '.join(map(str, numbers))} |")
    total = [sum(r["rounds"] for r in found["rows"]), sum(r["differences"] for r in found["rows"])]
    sums = [sum(n for (_, d), n in cells.items() if d == kind) for kind in DISTURBANCES]
    lines.append(f"| all | {' | '.join(map(str, [*sums, *total]))} |")
    where = f"{found['jobs']} at a time, seed {found['seed']}, commit {found['commit']}"
    return [*lines, "", f"{found['minutes']:g} minutes, {where}."]


def write_page(page: Path, found: dict[str, Any]) -> None:
    """Put the counts between the marks of the page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise SystemExit(f"soak: {page} must have the lines {MARKS[0]} and {MARKS[1]}")
    table = "\n".join(markdown(found))
    page.write_text(f"{before}{MARKS[0]}\n\n{table}\n\n{MARKS[1]}{after}", encoding="utf-8")


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=DOCS, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


if __name__ == "__main__":
    main()
