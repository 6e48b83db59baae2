"""Damage to the files of stores and results, at random from a seed, and what comes of it.

    python tests/corruption.py 2000 [seed]

A case damages one file, or exchanges two, of a small whole run: features, tiles, tables, figures, bits per byte. Then
1. everything is read: each read gives what was written, or is refused with a RepalignError;
2. `repalign.comparison.check.check` names the file;
3. the same run again ends with the bytes of the first. Where the run alone does not mend a file (a part that no tile
   asks for, a file of another extraction), what `check` names is deleted, as it says, and the run done once more.
"""

from __future__ import annotations

import logging
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from repalign import null as nulls
from repalign.comparison import compare
from repalign.comparison.alignment import Alignment, csv_text
from repalign.comparison.check import check
from repalign.competence import bits_per_byte
from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.files import FILES, file_sha256, seal_json, write_file
from repalign.sources import ModelEntry, extract
from repalign.store import MARKER, FeatureStore
from repalign.store.store import MARKER_TEXT
from repalign.study.alignment import write_combined

N = 24
CORPUS = ["A dog runs.", "Snow falls on the old house.", "A boat on the lake at night."]


@dataclass(frozen=True)
class Inputs:
    """What runs start from: a folder for arrays, and a causal language model in a folder."""

    arrays: Path
    model: Path


def run(folder: Path, inputs: Inputs, seed: int = 0) -> None:
    """All that a study writes, in small; another seed is of other data."""
    x = np.random.default_rng(seed).standard_normal((N, 4)).astype("float32")
    dataset = Dataset.from_arrays({"thing": x}, ids=[f"s{i}" for i in range(N)])
    entries = []
    for i, name in enumerate(("a", "b")):
        path = inputs.arrays / f"{name}-{seed}.npy"
        if not path.is_file():
            np.save(path, x @ np.random.default_rng(10 + i).standard_normal((4, 5)).astype("float32"))
        entries.append(ModelEntry(f"array:{path}", name=name, modality="thing", ids="rows", scores={"top1": 0.5 + i}))
    found = extract(dataset, entries, str(folder / "store"), rows_per_part=N // 2)
    results = folder / "small/results"
    null = nulls.Permutations(9, seed=seed)
    alignment = compare(found[:1], found[1:], ["CKA()", "MutualKNN(k=3)"], null, results=results, split_half=2)
    write_combined(alignment.table, results / "variants.parquet", [results])
    write_file(folder / "small/figures/01.csv", csv_text(alignment.table))
    digests = {"01.csv": file_sha256(folder / "small/figures/01.csv")}
    write_file(folder / "small/figures/files.json", seal_json({FILES: digests}))
    state = folder / "small/competence/tiny.json"
    bits_per_byte(f"hf:{inputs.model}", CORPUS[: 2 + seed % 2], state=state, batch_size=2)


def reads(folder: Path, inputs: Inputs) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Everything that a user reads, each by itself."""
    results = folder / "small/results"
    yield "alignment", lambda: _of_alignment(Alignment.load(results))
    yield "bits", lambda: _bits(folder, inputs)
    for i in (0, 1):
        yield f"model {i}", lambda i=i: _of_model(FeatureStore(folder / "store").representations()[i])


def _bits(folder: Path, inputs: Inputs) -> float:
    """A copy, so that what is measured again does not mend the file before it is checked."""
    state = folder.parent / "bits.json"
    shutil.copy(folder / "small/competence/tiny.json", state)
    return bits_per_byte(f"hf:{inputs.model}", CORPUS[:2], state=state, batch_size=2).bits_per_byte


def _of_alignment(found: Alignment) -> Any:
    draws = None if found.draws is None else [list(d) for d in found.draws["draws"]]
    return found.table.to_csv(), found.run, draws


def _of_model(r: Any) -> Any:
    layers = {name: r.load(name).numpy().tobytes() for name in r.layers}
    return r.name, r.ids, r.record.to_dict(), dict(r.facts), layers


def content(folder: Path, inputs: Inputs) -> dict[str, Any]:
    return {name: read() for name, read in reads(folder, inputs)}


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


# --- damage --------------------------------------------------------------------------------------


def flip(data: bytes, rng: random.Random) -> bytes:
    out, at = bytearray(data), rng.randrange(len(data))
    out[at] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def zero(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice([1, 8, 64, 4096]))
    return data[:start] + bytes(stop - start) + data[stop:]


def append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice([1, 8, 500]))


def exchange_within(data: bytes, rng: random.Random) -> bytes:
    length = rng.choice([1, 4, 16, 64])
    if len(data) < 2 * length:
        return data[::-1]
    i = rng.randrange(len(data) - 2 * length + 1)
    j = rng.randrange(i + length, len(data) - length + 1)
    return data[:i] + data[j : j + length] + data[i + length : j] + data[i : i + length] + data[j + length :]


DAMAGE = (flip, cut, zero, append, exchange_within)


def damage(folder: Path, other: Path, rng: random.Random) -> tuple[str, list[Path]]:
    """One case: its name, and the files that are not what they were."""
    kind = rng.choice(["change", "change", "change", "exchange", "of another run", "torn"])
    path = rng.choice(files(folder))
    alike = [p for p in files(folder) if p != path and p.suffix == path.suffix]
    if kind == "exchange" and alike:
        with_ = rng.choice(alike)
        one, two = path.read_bytes(), with_.read_bytes()
        path.write_bytes(two)
        with_.write_bytes(one)
        return kind, [path, with_] if one != two else []
    if kind in ("of another run", "torn"):
        group = [p for p in files(other) if p.relative_to(other).parts[0] == path.relative_to(folder).parts[0]]
        one = rng.choice([p for p in group if p.suffix == path.suffix] or group)
        names = ("results.parquet", "draws.parquet", "run.json")
        if kind == "torn":  # a rerun with other data, stopped between two of the three renames
            done = names[: rng.choice((1, 2))]
            for name in done:
                shutil.copy(other / "small/results" / name, folder / "small/results" / name)
            return kind, [folder / "small/results" / name for name in done]
        before = path.read_bytes()
        shutil.copy(one, path)
        return kind, [path] if path.read_bytes() != before else []
    before, how = path.read_bytes(), rng.choice(DAMAGE)
    path.write_bytes(how(before, rng))
    return how.__name__, [path] if path.read_bytes() != before else []


# --- the campaign --------------------------------------------------------------------------------


@dataclass
class Found:
    """What a campaign came to. `silent`, `died`, `unseen` and `not_mended` are to be empty."""

    cases: Counter[str] = field(default_factory=Counter)
    silent: list[str] = field(default_factory=list)  # another content without a word
    died: list[str] = field(default_factory=list)  # an error that is no RepalignError
    unseen: list[str] = field(default_factory=list)  # by check
    not_mended: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)  # by the run, with the remedy that was taken
    by_hand: Counter[str] = field(default_factory=Counter)  # mended once what check names was deleted

    @property
    def is_bad(self) -> bool:
        return bool(self.silent or self.died or self.unseen or self.not_mended)

    def told(self) -> str:
        bad = ", ".join(f"{len(getattr(self, k))} {k}" for k in ("silent", "died", "unseen", "not_mended"))
        return f"{self.cases.total()} damaged, {bad}, {self.by_hand.total()} mended by hand, {self.refused.total()} refused"


def campaign(n: int, folder: Path, model: Path, seed: int = 0, say: Callable[[str], None] = lambda _: None) -> Found:
    """`n` cases in a folder; `model` is a causal language model in a folder."""
    rng, found, inputs = random.Random(seed), Found(), Inputs(folder, model)
    whole, other, work = folder / "whole", folder / "other", folder / "work"
    run(whole, inputs)
    run(other, inputs, seed=1)
    wanted, first = content(whole, inputs), {p.relative_to(whole): p.read_bytes() for p in files(whole)}
    for done in range(n):
        _restore(work, first)
        kind, changed = damage(work, other, rng)
        if changed:
            found.cases[kind] += 1
            name = f"case {done}, {kind}, {', '.join(str(p.relative_to(work)) for p in changed)}"
            _one(work, inputs, name, wanted, first, found)
        if done % 100 == 99:
            say(f"{done + 1} cases: {found.told()}")
    return found


def _restore(work: Path, first: dict[Path, bytes]) -> None:
    for path in files(work):
        if path.relative_to(work) not in first:
            path.unlink()
    for name, data in first.items():
        if not (work / name).is_file() or (work / name).read_bytes() != data:
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes(data)


def _one(work: Path, inputs: Inputs, name: str, wanted: dict[str, Any], first: dict[Path, bytes], found: Found) -> None:
    for what, read in reads(work, inputs):
        try:
            if read() != wanted[what]:
                found.silent.append(f"{name}: {what}")
        except RepalignError:
            continue
        except Exception as error:
            found.died.append(f"{name}: {what}: {type(error).__name__}: {error}")
    # A whole file of another run that stands alone is known by the run only, which refuses it.
    if not check(work) and "of another run, small/competence" not in name:
        found.unseen.append(name)
    _run_again(work, inputs, name, found)
    if left := check(work):
        found.by_hand[Path(left[0].path).name] += 1
        for path in (Path(problem.path) for problem in left):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        _run_again(work, inputs, name, found)
    now = {p.relative_to(work): p.read_bytes() for p in files(work)}
    # What a finished result no longer asks for may be gone.
    now |= {name: data for name, data in first.items() if name not in now and {"tiles", "findings", "ceilings"} & set(name.parts)}
    if now != first:
        differing = [str(n) for n in {*now, *first} if now.get(n) != first.get(n)]
        found.not_mended.append(f"{name}: {differing}; {[str(p) for p in check(work)][:1]}")


def _run_again(work: Path, inputs: Inputs, name: str, found: Found) -> None:
    try:
        run(work, inputs)
    except RepalignError as error:  # told with a remedy: delete the file that is named first, or write the line of a marker
        named = Path(str(error).split(" is ")[0])
        found.refused[named.name] += 1
        if named.is_file():
            named.write_text(MARKER_TEXT) if named.name == MARKER else named.unlink()
            _run_again(work, inputs, name, found)
    except Exception as error:
        found.died.append(f"{name}: the run: {type(error).__name__}: {error}")


if __name__ == "__main__":
    import tempfile

    import tiny_models

    logging.disable(logging.CRITICAL)
    amount, number = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as place:
        tiny = tiny_models.gpt2(Path(place) / "model")
        all_found = campaign(amount, Path(place), tiny, number, print)
    for kind_, lines in vars(all_found).items():
        print(f"{kind_}:", *([dict(lines)] if isinstance(lines, Counter) else lines), sep="\n  ")
    print(all_found.told())
    sys.exit(all_found.is_bad)
