"""Fill docs/results/gpu.md and a section of docs/results/cifar10.md from results of run.sh.

    python benchmarks/gpu/page.py docs/results/gpu/*.json

Of several files the last one that has a step counts, and every file with a leg is a leg.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs" / "results"
READING = HERE / "reading.md"  # what a person read off the tables
BEGIN, END = "<!-- from the legs: begin -->", "<!-- from the legs: end -->"
Row = dict[str, Any]
MIB = 2**20

INTRO = """# One GPU, for a few minutes

Everything here comes from one command, which runs in steps and records each as it ends:

```
bash benchmarks/gpu/run.sh --out FOLDER --data cifar10.npz --minutes 12
python benchmarks/gpu/page.py FOLDER/results.json
```

How to prepare it is in `benchmarks/gpu/README.md`. The network is that of the recipe
`cifar10-h100`: 9.9 million parameters at 32×32. Training is in bf16 by autocast, sampling with
weights in bf16. Rates count matrix products and convolutions, two operations per multiplication and
addition.
"""
UNMEASURED = "**Unmeasured.** No GPU could be had yet; the script is tried on a CPU by the tests.\n"


def load(paths: Sequence[Path]) -> list[Row]:
    """Return the results of run.sh, in the order of the files."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def step(runs: Sequence[Row], name: str) -> Row | None:
    """Return the last recorded step of that name."""
    found = [run["steps"][name] for run in runs if name in run["steps"]]
    return found[-1] if found else None


def results(runs: Sequence[Row], name: str) -> Row:
    """Return the results of the last recorded step of that name, by part."""
    found = step(runs, name)
    return {} if found is None else found["results"]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table whose first column is text."""
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    lines += [f"| {' | '.join(shown(v) for v in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    """Return a number with three significant digits, or with separators where it is large."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def where(run: Row) -> str:
    """Return device, versions, commit and command of a run, for the end of a section."""
    about: Row = next((s["environment"] for s in run["steps"].values() if "environment" in s), {})
    names = ("device", "torch", "diffusers", "python", "cores")
    told = ", ".join(f"{n} {about[n]}" for n in names if about.get(n) is not None)
    return f"{told}; commit {run['commit'][:12]}; {run['seconds']:.0f} s in all: `{run['command']}`"


def of_sanity(runs: Sequence[Row]) -> str:
    found = results(runs, "sanity")
    return table(
        ["tests marked `gpu`", "passed", "failed", "skipped"],
        [["", *(found.get(k, 0) for k in ("passed", "failed", "skipped"))]],
    )


def of_training(runs: Sequence[Row]) -> str:
    found = results(runs, "train")
    keys = ("batch", "ms", "images_per_second", "TFLOP/s", "of the peak", "first_update_seconds")
    names = [
        n
        for n in ("eager", "eager, cudnn.benchmark", "eager, channels_last", "compiled")
        if n in found
    ]
    rows = [[n, *(found[n].get(k) for k in keys)] for n in names]
    head = ["update of the teacher", "batch", "ms", "images/s", "TFLOP/s", "of the peak",
            "first update, s"]  # fmt: skip
    text = table(head, rows)
    facts = []
    if "peak" in found:
        peak = found["peak"]
        facts.append([f"product of two {peak['dtype']} matrices of {peak['side']}, TFLOP/s",
                      peak["TFLOP/s"]])  # fmt: skip
        facts.append(["copy in memory, read and written, TB/s", peak["copy TB/s"]])
    if "flops" in found:
        facts.append(["parameters", found["flops"]["parameters"]])
        facts.append(["GFLOP of an update per image", found["flops"]["update per image"] / 1e9])
    if "parts" in found:
        facts.append(["a bare update, ms", found["parts"]["ms"]])
        facts.append(["`fewstep.train` / bare update", found["parts"].get("fewstep.train / parts")])
    if "waits" in found:
        facts.append(["times the host waits for the device per update",
                      found["waits"]["waits per update"]])  # fmt: skip
        facts.append(["kernel launches per update", found["waits"]["kernel launches per update"]])
    return text + "\n" + table(["", "measured"], facts)


def of_sweep(runs: Sequence[Row]) -> str:
    found = results(runs, "sweep")
    rows = [
        [name, row["batch"], row["ms"], row["images_per_second"], row.get("of the peak")]
        for name, row in found.items()
        if "ms" in row
    ]
    return table(["eager update", "batch", "ms", "images/s", "of the peak"], rows)


def of_sampling(runs: Sequence[Row]) -> str:
    found = results(runs, "sampling")
    rows = []
    for name, row in found.items():
        bare = found.get(f"{name.partition(':')[0]}: bare forwards", {}).get("ms")
        ratio = row["ms"] / bare if bare else None
        rows.append([name, row["ms"], row["ms per image"], ratio, row.get("TFLOP/s")])
    return table(["", "ms", "ms per image", "/ bare forwards", "TFLOP/s"], rows)


def of_memory(runs: Sequence[Row]) -> str:
    rows = [
        [name, row["foreseen"] / MIB, row["peak"] / MIB, row["foreseen / peak"]]
        for name, row in results(runs, "memory").items()
    ]
    return table(["", "foreseen, MiB", "peak, MiB", "foreseen / peak"], rows)


SECTIONS: dict[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
    "sanity": ("Tests that need a GPU", of_sanity),
    "train": ("An update against its parts and against the device", of_training),
    "sweep": ("Batch sizes and stages", of_sweep),
    "sampling": ("Sampling: 4 steps of a student, and the teacher", of_sampling),
    "memory": ("Memory foreseen and measured", of_memory),
}


def gpu_page(runs: Sequence[Row]) -> str:
    """Return docs/results/gpu.md."""
    parts = [INTRO]
    if runs:
        parts.append(READING.read_text(encoding="utf-8"))
    for name, (title, section) in SECTIONS.items():
        text = section(runs) if step(runs, name) is not None else UNMEASURED
        parts.append(f"## {title}\n\n{text}")
    failed = failures(runs)
    if failed:
        parts.append("## What failed or was left out\n\n" + table(["part", "why"], failed))
    if runs:
        parts.append("## Where\n\n" + "\n".join(f"- {where(run)}" for run in runs) + "\n")
    return "\n".join(parts)


def failures(runs: Sequence[Row]) -> list[list[str]]:
    """Return the parts without a result, and why."""
    rows = []
    for name in (*SECTIONS, "leg"):
        found = step(runs, name) or {}
        for part, why in {**found.get("errors", {}), **found.get("skipped", {})}.items():
            rows.append([f"{name}: {part}", " ".join(str(why).split())[:160].replace("|", "/")])
    return rows


def legs_section(runs: Sequence[Row]) -> str:
    """Return what the legs of `cifar10-h100` came to, for docs/results/cifar10.md."""
    legs = [run for run in runs if "teacher" in run["steps"].get("leg", {}).get("results", {})]
    if not legs:
        return UNMEASURED
    return "\n".join(leg_text(k, run) for k, run in enumerate(legs, 1))


def leg_text(number: int, run: Row) -> str:
    """Return the tables of one leg."""
    found = run["steps"]["leg"]["results"]
    trained = [
        [name, row["updates"], row["batch"], row["images"], row["seconds"],
         row["images_per_second"], "yes" if row["compiled"] else "no",
         row["losses"][-1][1] if row["losses"] else None]
        for name, row in found.items() if "losses" in row
    ]  # fmt: skip
    head = ["model", "updates", "batch", "images", "seconds", "images/s", "compiled", "last loss"]
    parts = [f"### Leg {number}\n", where(run) + ".\n", table(head, trained)]
    cells = [row for name, row in found.items() if name.startswith("figures of ")]
    if cells and "held-out images" in found:
        real = {"model": "held-out images", "images_per_second": None}
        cells.append({**found["held-out images"], **real})
    if cells:
        keys = ["model", "steps", "evaluations", "w"]
        keys += [k for k in cells[0] if k.startswith(("fd", "kd", "fid", "kid"))]
        keys += ["precision", "recall", "accuracy", "variance", "rms_to_teacher",
                 "images_per_second"]  # fmt: skip
        parts.append(
            f"{cells[0]['samples']:,} samples per row; the paired distance (`rms_to_teacher`) is "
            "to the teacher's own many steps.\n"
        )
        parts.append(table(keys, [[row.get(k) for k in keys] for row in cells]))
    about = found.get("features")
    if about is not None:
        parts.append(
            f"The classifier is right on {about['accuracy']:.1%} of the held-out images.\n"
        )
    return "\n".join(parts)


def fill(page: str, section: str) -> str:
    """Return the page with the section between its markers. Exits where there are none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the page must have the lines {BEGIN} and {END}; add them.")
    return f"{before}{BEGIN}\n\n{section}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path, help="results.json of run.sh")
    parser.add_argument("--docs", type=Path, default=DOCS)
    given = parser.parse_args()
    runs = load(given.results)
    (given.docs / "gpu.md").write_text(gpu_page(runs), encoding="utf-8")
    page = given.docs / "cifar10.md"
    text = fill(page.read_text(encoding="utf-8"), legs_section(runs))
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
