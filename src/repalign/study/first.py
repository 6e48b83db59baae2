"""A first study file, for what a folder holds (`repalign init`). What is not certain stands in it as a comment, with the reason."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from repalign.comparison import DEFAULT_MEASURES
from repalign.dataset.images import Images
from repalign.dataset.texts import SUFFIX, TABLES
from repalign.errors import RepalignError
from repalign.features import Found, feature_files, file_rows, file_widths, id_tier, join
from repalign.files import write_file
from repalign.sources import ModelEntry, facts_of, parse_spec
from repalign.study.config import schema
from repalign.tables import FORMATS, iter_rows
from repalign.text import counted

LOOKED = 20  # rows of a table, and images of a folder, that are looked at
NARROW = 16  # numbers in a row: a table of texts with fewer holds scores beside them, and no features
SCHEMA = "study.schema.json"
OF_HUB = {"text": ("bloomz-560m", "bloomz-1b1"), "image": ("vit_small_patch14_dinov2.lvd142m", "vit_tiny_patch16_224.augreg_in21k")}
TOYS = {
    "dataset": {"toy": {"n": 512, "seed": 0}},
    "models": {"x": ["toy:language-conv8-next", "toy:language-bag"], "y": ["toy:vision-cnn3-supervised", "toy:vision-pixels"]},
}
WORDS = re.compile(r"\w\s+\w")
OTHERS = {"preset": "platonic-rep", "null": {"method": "permutation", "draws": 999}, "figures": [{"matrix": {}}]}
HEAD = """\
# yaml-language-server: $schema={schema}
# A study of what is in a folder, as `repalign init` found it. What is not certain stands as a comment, with the reason.
#   repalign run {file} --plan     what it needs and what is wrong with it; nothing is run
#   repalign run {file} --mock     all of it with tiny stand-ins, in a minute
#   repalign run {file}
# Paths start from this file's folder. {schema} has every field: editors complete and check them by it."""


@dataclass
class Here:
    """What a folder holds, with paths from `base`, the folder of the study file.

    `doubts` are, by field, what may be meant after all, each with the reason why it is not taken.
    """

    base: Path
    datasets: list[tuple[dict[str, Any], str]] = field(default_factory=list)  # each with what was found, in words
    models: list[tuple[str, str]] = field(default_factory=list)  # the spec of each, and what it reads
    arrays: list[tuple[str, Found]] = field(default_factory=list)
    captioned: set[str] = field(default_factory=set)  # folders of images
    doubts: dict[str, list[tuple[Any, str]]] = field(default_factory=lambda: {"dataset": [], "models": []})

    def at(self, path: Path) -> str:
        return Path(os.path.relpath(path.absolute(), self.base)).as_posix()

    def kinds(self, block: Mapping[str, Any]) -> tuple[str, ...]:
        """The kinds of stimuli of a dataset: images before texts."""
        held = {"image": "image" in block or "folder" in block, "text": "text" in block or block.get("folder") in self.captioned}
        return tuple(kind for kind, is_held in held.items() if is_held)

    @contextmanager
    def doubt(self, name: str, value: Any, why: str = "") -> Iterator[None]:
        """What cannot be used is left out with the error as the reason."""
        try:
            yield
        except RepalignError as error:
            self.doubts[name].append((value, why + str(error).splitlines()[0]))


def write_first(folder: Path, out: Path) -> tuple[str, ...]:
    """Write a study file for what a folder holds, and the schema beside it; a sentence on each field that was found.

    Raises RepalignError if there is no such folder, or if the file is there already.
    """
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing by that name"
        raise RepalignError(f"there is no folder {folder}", expected="a folder of features, tables, images or models", got=got)
    if out.exists():
        raise RepalignError(f"{out} is there already", expected="a new file", remedy="name another one with --out, or move it away")
    here = _look(folder, out.absolute().parent)
    fields, notes = _chosen(here)
    name = re.sub(r"[^\w.-]+", "-", folder.resolve().name).strip("-.")[:60]
    fields["name"] = name if name.casefold() not in ("", "store") else "first"
    lines = _lines({**fields, "measures": list(DEFAULT_MEASURES)}, notes, here.doubts)
    write_file(out.with_name(SCHEMA), json.dumps(schema(), indent=1) + "\n")
    write_file(out, "\n".join([HEAD.format(schema=SCHEMA, file=out.name), *lines]) + "\n")
    return tuple(f"{name}: {note}" for name, note in notes.items())


# --- what is there -------------------------------------------------------------------------------


def _look(folder: Path, base: Path) -> Here:
    here = Here(base)
    there = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "runs")  # which studies write
    folders = [p for p in there if p.is_dir()]
    for path in (p for p in there if p.is_file() and p.suffix.lower() in FORMATS):
        with here.doubt("dataset", {"table": here.at(path)}):
            _look_for_table(here, path, [folder, *folders])
    for path in feature_files(folder):
        _look_for_features(here, path)
    for path in (folder, *folders):
        _look_for_images(here, path, path.iterdir() if path == folder else path.rglob("*"))
    for path in folders:
        _look_for_model(here, path)
        for inner in sorted(p for p in path.iterdir() if p.is_dir()):  # models/NAME
            _look_for_model(here, inner)
    here.datasets.sort(key=lambda one: -len(here.kinds(one[0])))  # tables stay before folders
    return here


def _look_for_table(here: Here, path: Path, roots: Sequence[Path]) -> None:
    """A table is a dataset if, by its first rows, it has a column of paths of images or one of texts."""
    header, *rows = islice(iter_rows(path), LOOKED + 1)
    columns = {name: [_text(row.get(name)) for row in rows] for name in dict.fromkeys(c for row in (header, *rows) for c in row)}
    shown = {(name, root): sum(_is_image(root, text) for text in texts) for name, texts in columns.items() for root in roots}
    (image, root), count = max(shown.items(), key=lambda one: one[1], default=(("", roots[0]), 0))
    told = {n: sum(map(len, texts)) for n, texts in columns.items() if n != image or not count}
    texts = [n for n in sorted(told, key=lambda n: -told[n]) if 2 * sum(bool(WORDS.search(t)) for t in columns[n]) > len(rows)]
    if not count and not texts:
        return
    ids = sorted((n for n in told if id_tier(n) is not None and n not in texts), key=lambda n: id_tier(n) or 0)
    block: dict[str, Any] = {"table": here.at(path), "id": next(iter(ids), None)}
    block |= ({"image": image} if count else {}) | ({"root": here.at(root)} if count and root != path.parent else {})
    block |= ({"text": texts[0]} if texts else {}) | ({"on_missing": "drop"} if 0 < count < len(rows) else {})
    notes = ["; its rows are numbered, as no column is called id"] * (not ids)
    notes += [f"; {name} may be meant as {what} too" for what, found in (("id", ids), ("text", texts)) for name in found[1:]]
    notes += [f"; {len(rows) - count} of its first {len(rows)} rows have no image: such are dropped"] * (0 < count < len(rows))
    here.datasets.append((block, f"the table {path.name}{''.join(notes)}"))


def _text(cell: Any) -> str:
    """The text of a cell, or the first of a list of captions; "" if it holds none."""
    first = cell[0] if isinstance(cell, list) and cell else cell
    return first if isinstance(first, str) else ""


def _is_image(folder: Path, text: str) -> bool:
    return text.lower().endswith(Images.suffixes) and "\0" not in text and (folder / text).is_file()


def _look_for_features(here: Here, path: Path) -> None:
    """A file of features; one that is a table of stimuli too is what it holds more of."""
    spec, table = f"array:{here.at(path)}", next((one for one in here.datasets if one[0].get("table") == here.at(path)), None)
    with here.doubt("models", spec):
        found, width = file_rows(path), sum(file_widths(path).values())
        if table is None or width >= NARROW:
            here.arrays.append((spec, found))
        else:
            here.doubts["models"].append((spec, f"it is taken for a table of stimuli, with {counted(width, 'number')} in a row"))
        if table is not None and width >= NARROW:
            here.datasets.remove(table)
            here.doubts["dataset"].append((table[0], f"it is taken for features, with {width} numbers in a row"))


def _look_for_images(here: Here, folder: Path, files: Iterable[Path]) -> None:
    """A folder of images, with captions beside them if there are any."""
    images = list(islice((p for p in files if p.suffix.lower() in Images.suffixes), LOOKED))
    block: dict[str, Any] = {"folder": here.at(folder)}
    if images and here.base.resolve().is_relative_to(folder.resolve()):
        why = "what a run draws beside this file would be among its images: write the study elsewhere, with --out"
        here.doubts["dataset"].append((block, why))
    elif images:
        noted = sum(p.with_suffix(SUFFIX).is_file() for p in images)
        here.captioned |= {block["folder"]} if noted or any((folder / name).is_file() for name in TABLES) else set()
        some = 0 < noted < len(images)
        block |= {"on_missing": "drop"} if some else {}
        here.datasets.append((block, f"the folder {folder.name} of images{'; those without a caption are dropped' * some}"))


def _look_for_model(here: Here, folder: Path) -> None:
    config, place = folder / "config.json", here.at(folder)
    is_sentence = (folder / "modules.json").is_file()
    if not is_sentence and not (config.is_file() and any(folder.glob("*.safetensors"))):
        return
    of_timm = config.is_file() and '"architecture"' in config.read_text("utf-8", errors="replace")
    spec = f"{'st' if is_sentence else 'timm' if of_timm else 'hf'}:{place if place.startswith('../') else f'./{place}'}"
    with here.doubt("models", spec):
        found = parse_spec(spec).resolve(here.base)
        entry = ModelEntry(str(found))
        found.source.check(found, entry)
        here.models.append((spec, facts_of([entry], patience=0)[0].kind or str(found.source.modality(found, entry))))


# --- what is taken of it -------------------------------------------------------------------------


def _chosen(here: Here) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields of the study, and what was found for each: models that read stimuli, or files of features, or the toy world."""
    arrays, doubts = _joined(here), here.doubts
    if here.datasets and (here.models or len(arrays) < 2):
        (block, told), *others = here.datasets
        kinds = here.kinds(block)
        doubts["dataset"] += [(other, f"a study has one dataset, and this is another: {said}") for other, said in others]
        doubts["models"] += [(spec, f"it reads {k}, and the stimuli are {kinds[0]}") for spec, k in here.models if k not in kinds]
        why = "it holds features: say of which stimuli, and `ids: rows` if it has no ids and its rows are in their order"
        doubts["models"] += [({"spec": spec, "modality": kinds[0]}, why) for spec in arrays]
        models = {kind: [spec for spec, reads in here.models if reads == kind] for kind in kinds}
        hub = {kind: OF_HUB[kind][: max(0, 3 - len(kinds) - len(its))] for kind, its in models.items()}
        lacking = f"; to have enough, of the hub {' and '.join(sum(hub.values(), ()))}: `repalign models` lists others"
        ours = counted(len(here.models), "model") if here.models else "no model"
        notes = {"dataset": told, "models": f"{ours} in the folder{lacking * any(hub.values())}"}
        sides = [[*its, *hub[kind]] for kind, its in models.items()]
        return {"dataset": block, "models": {"x": sides[1], "y": sides[0]} if len(sides) > 1 else sides[0]}, notes
    doubts["models"] += [(spec, f"it reads {kind}, and needs a dataset") for spec, kind in here.models]
    if len(arrays) > 1:
        why = "with a dataset, models could read its stimuli, and the files would be joined to it"
        doubts["dataset"] += [(block, f"{why}: {told}") for block, told in here.datasets]
        stems = Counter(Path(spec).stem for spec in arrays)
        named = [spec if stems[Path(spec).stem] == 1 else {"spec": spec, "name": re.split("[:/]", spec)[-1]} for spec in arrays]
        return {"models": named}, {"models": f"{len(arrays)} files of features, compared with each other"}
    doubts["models"] += [(spec, "a file alone has nothing to be compared with") for spec in arrays]
    return dict(TOYS), {"dataset": "nothing that can be compared, so this is the toy world"}


def _joined(here: Here) -> list[str]:
    """The files of features whose rows can be paired, the most frequent number of rows first; others are doubts."""
    counts, kept = Counter(found.n for _, found in here.arrays), {}
    for spec, found in sorted(here.arrays, key=lambda one: -counts[one[1].n]):
        with here.doubt("models", spec, "its rows cannot be paired with those of the others: "):
            join([*kept.values(), found])
            kept[spec] = found
    return list(kept)


# --- the file ------------------------------------------------------------------------------------


def _lines(fields: Mapping[str, Any], notes: Mapping[str, str], doubts: Mapping[str, list[tuple[Any, str]]]) -> Iterator[str]:
    """Every field with what the schema says of it, what was found, and what was not taken."""
    whole = schema()
    about, of_dataset = whole["properties"], whole["$defs"]["DatasetConfig"]["properties"]
    for name in ("name", "dataset", "models", "measures"):
        value: Any = fields.get(name)
        doubted = doubts.get(name, [])
        if value is None and not doubted:
            continue
        yield from ("", *_comment(about[name]["description"]))
        yield from _comment(f"Found: {notes[name]}.") if name in notes else ()
        if value is None:
            pass
        elif name == "dataset":
            yield "dataset:"
            yield from (f"  {key}: {_yaml(one)}  # {of_dataset[key]['description']}" for key, one in value.items())
        elif name == "models":
            yield "models:"
            for side, its in value.items() if isinstance(value, Mapping) else [("", value)]:
                yield from [f"  {side}:"] * bool(side)
                yield from (f"  {'  ' * bool(side)}- {_yaml(one)}" for one in its)
        else:
            yield f"{name}: {_yaml(value)}"
        for one, why in doubted:
            yield from _comment(f"Left out, because {why}:")
            yield f"#   - {_yaml(one)}" if name == "models" else f"# {name}: {_yaml(one)}"
    for name, value in OTHERS.items():
        yield from ("", *_comment(about[name]["description"]), f"# {name}: {_yaml(value)}")


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="# ", break_long_words=False)


def _yaml(value: Any) -> str:
    """A value in one line of YAML; a text in quotation marks where it could be read as something else."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_yaml(one)}' for key, one in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_yaml, value))}]"
    is_plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w./-]*", value) and yaml.safe_load(value) == value
    return value if is_plain else json.dumps(value, ensure_ascii=False)
