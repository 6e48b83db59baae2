"""The colour experiment of the paper (figure 8, appendix D), with the numbers and controls that it does not print.

    python studies/colour.py photos/ --model hf:FacebookAI/roberta-large --out runs/colour

`photos` is a folder of images, or a table (CSV, JSONL, Parquet) with the columns `id` and `image`. Every choice of
`repalign.colour.ColourOptions` can be set: --set n_fits=100 --set radius=8.
"""

from __future__ import annotations

import argparse
import ast
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from repalign.colour import WORDS, ColourOptions, run_colour, single_words
from repalign.dataset import Dataset
from repalign.errors import RepalignError, did_you_mean


def parse_options(settings: list[str]) -> ColourOptions:
    """Options from words like "radius=8"; "inf" and "none" are read as such where they stand for a number."""
    known = {f.name: f.default for f in fields(ColourOptions)}
    chosen: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in known:
            raise RepalignError(f"no colour option {name!r}", got=setting, remedy=did_you_mean(name, known))
        chosen[name] = text if isinstance(known[name], str) else _value(text, setting)
    return ColourOptions(**chosen)


def _value(text: str, setting: str) -> Any:
    if text in ("inf", "none", "None"):
        return float("inf") if text == "inf" else None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise RepalignError("a colour option that cannot be read", expected="name=value", got=setting) from error


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path, help="a folder of images, or a table with the columns id and image")
    parser.add_argument("--model", action="append", default=[], help="a text model; may be given several times")
    parser.add_argument("--words", choices=("20", "all"), default="20", help="colour words: twenty, or all single words")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="NAME=VALUE", help="an option")
    parser.add_argument("--out", type=Path, default=Path("colour"), help="the folder to write into")
    given = parser.parse_args(arguments)
    try:
        options = parse_options(given.settings)
        photos = given.photos
        data = Dataset.from_folder(photos) if photos.is_dir() else Dataset.from_table(photos, id="id", image="image")
        words = WORDS if given.words == "20" else single_words()
        result = run_colour(data, given.model, options, given.out, words=words, progress=_tell)
    except RepalignError as error:
        sys.exit(f"error: {error}")
    from repalign.colour import draw

    for name, figure in (("layouts", draw.draw_layouts), ("controls", draw.draw_controls), ("words", draw.draw_words)):
        figure(result).savefig(given.out / f"{name}.png", dpi=100)
    print(result.scores.drop(columns=["threshold", "null", "n_draws", "seed"]).round(4).to_string(index=False))
    print(f"wrote {given.out}")


def _tell(task: str, done: int, total: int, note: str | None = None) -> None:
    if note or done == total:
        print(f"{task}: {done} of {total}" + (f" ({note})" if note else ""), file=sys.stderr)


if __name__ == "__main__":
    main()
