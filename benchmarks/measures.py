"""What every measure costs: one layer prepared and one pair compared, at three n, and its growth.

Processor time in one thread, which neighbours on the machine disturb least.

Measures that have an outside implementation (`outside.py`) are timed beside it, one pair from nothing, both in float64. The
tables go to a page of the docs, between its marks.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/measures.py --sizes 256 1024 4096 --page docs/measures.md
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from outside import OUTSIDE

from repalign.errors import RepalignError
from repalign.measures import MEASURES, Measure

START, END = "<!-- costs: made by benchmarks/measures.py -->", "<!-- end of costs -->"


def pair(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    z = torch.randn(n, 16, generator=generator)
    x, y = (z @ torch.randn(16, d, generator=generator) + torch.randn(n, d, generator=generator) for _ in range(2))
    return x, y


def seconds(task: Callable[[], object], most: float = 2.0) -> float:
    """The shortest of up to three runs, fewer where one takes long."""
    best, spent = math.inf, 0.0
    for _ in range(3):
        start = time.process_time()
        task()
        took = time.process_time() - start
        best, spent = min(best, took), spent + took
        if spent > most:
            break
    return best


def costs(measure: Measure, sizes: list[int], d: int, limit: float) -> dict[str, object]:
    """Seconds of `prepare` and `compare` at every n, until one takes longer than `limit`."""
    row: dict[str, object] = {"measure": type(measure).__name__, "family": type(measure).family, "cost": measure.cost}
    for n in sizes:
        x, y = pair(n, d)
        try:
            measure.check(n)
            start = time.process_time()
            a, b = measure.prepare(x), measure.prepare(y)
            prepared = time.process_time()
            measure.compare(a, b)
            first = time.process_time() - start
            row[f"layer {n}"], row[f"pair {n}"] = (prepared - start) / 2, start + first - prepared
            if first < limit:
                row[f"layer {n}"] = seconds(lambda x=x: measure.prepare(x))
                row[f"pair {n}"] = seconds(lambda a=a, b=b: measure.compare(a, b))
        except RepalignError as error:
            row[f"why {n}"] = str(error).splitlines()[0]
            continue
        if first > limit:
            break
    return row


def beside(cls: type[Measure], n: int, d: int) -> list[dict[str, object]]:
    """Seconds of one pair from nothing: ours, and each outside implementation, in float64."""
    x, y = (a.double() for a in pair(n, d))
    rows = []
    for theirs in OUTSIDE.get(cls.__name__, ()):
        try:
            theirs(x.numpy()[:32], y.numpy()[:32])
        except Exception as error:  # whatever a library that does not load here says
            print(f"{theirs.__name__}: left out, {error}")
            continue
        ours = seconds(lambda: cls()(x, y))
        other = seconds(lambda f=theirs: f(x.numpy(), y.numpy()))
        rows.append({"measure": cls.__name__, "outside": theirs.__name__, "ours": ours, "theirs": other})
        print(f"{cls.__name__}: {short(ours)}, {theirs.__name__} {short(other)}: {other / ours:.2f} times ours", flush=True)
    return rows


def beside_table(rows: list[dict[str, object]]) -> str:
    lines = ["| measure | outside implementation | ours | theirs | theirs / ours |", "| --- | --- | ---: | ---: | ---: |"]
    lines += [
        f"| {r['measure']} | `{r['outside']}` | {short(r['ours'])} | {short(r['theirs'])} | {r['theirs'] / r['ours']:.1f} |"  # type: ignore[operator]
        for r in rows
    ]
    return "\n".join(lines)


def short(value: object) -> str:
    if not isinstance(value, float) or math.isnan(value):
        return ""
    return f"{1e6 * value:.0f} µs" if value < 1e-3 else f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def table(rows: list[dict[str, object]], sizes: list[int]) -> str:
    """Markdown, a family after the other."""
    head = "| measure | grows as | " + " | ".join(f"layer, {n:,} | pair, {n:,}" for n in sizes) + " |"
    lines = [head, "| --- | --- | " + " | ".join(["---: | ---:"] * len(sizes)) + " |"]
    for row in rows:
        cells = [short(row.get(f"{what} {n}")) for n in sizes for what in ("layer", "pair")]
        lines.append(f"| {row['measure']} | {row['cost']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def into(page: Path, text: str) -> None:
    """Put the table between the marks of a page."""
    whole = page.read_text("utf-8")
    before, after = whole[: whole.index(START) + len(START)], whole[whole.index(END) :]
    page.write_text(f"{before}\n{text}\n{after}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[256, 1024, 4096])
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--limit", type=float, default=8.0, help="seconds after which larger n are not tried")
    parser.add_argument("--only", nargs="*", help="names of measures")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, others = [], []
    for cls in MEASURES:
        if args.only and cls.__name__ not in args.only:
            continue
        others += beside(cls, 1024, args.d)
        rows.append(costs(cls(), args.sizes, args.d, args.limit))
        print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    if args.csv:
        pd.DataFrame(rows).to_csv(args.csv, index=False, float_format="%.4g")
    if args.page:
        into(args.page, f"{table(rows, args.sizes)}\n\n{beside_table(others)}")


if __name__ == "__main__":
    main()
