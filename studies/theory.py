"""The theory of the paper as experiments: tables (CSV) and figures (PNG) into a folder. Under a minute on one core.

python studies/theory.py --out theory
python studies/theory.py --out theory --only recovery --only existence
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from repalign.errors import RepalignError, did_you_mean
from repalign.theory.experiments import EXPERIMENTS
from repalign.theory.figures import draw


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = {f.__name__: f for f in EXPERIMENTS}
    parser.add_argument("--out", type=Path, default=Path("theory"), help="a folder, made if it is not there")
    parser.add_argument("--only", action="append", help=f"one of {', '.join(names)}; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    chosen = options.only or list(names)
    for name in chosen:
        if name not in names:
            raise RepalignError(f"no experiment is called {name!r}", got=name, remedy=did_you_mean(name, names))
    options.out.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        found = names[name](seed=options.seed)
        print(f"\n{found.claim}\n{found.table.to_string(index=False, float_format='{:.3g}'.format)}")
        table, figure = options.out / f"{name}.csv", options.out / f"theory_{name}.png"
        found.table.to_csv(f"{table}.part", index=False)
        Path(f"{table}.part").replace(table)
        draw(found).savefig(f"{figure}.part", format="png", dpi=110)
        Path(f"{figure}.part").replace(figure)
        print(f"wrote {table} and {figure}")


if __name__ == "__main__":
    try:
        main()
    except (RepalignError, OSError) as error:
        sys.exit(f"error: {error}")
