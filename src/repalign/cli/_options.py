"""Options that several commands share, and what their words mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repalign.errors import RepalignError, did_you_mean

if TYPE_CHECKING:
    from repalign.features import Joined, Reading
    from repalign.layers import Given
    from repalign.null import Groups, Null

FeatureFile = Annotated[
    Path, typer.Argument(help="Features of one model (.npy .npz .safetensors .parquet .pt).", show_default=False)
]
MeasureNames = Annotated[
    list[str] | None,
    typer.Option(
        "--measure", "-m", help="A measure, for instance 'MutualKNN(k=10)', a family ('kernel') or 'all'; may be repeated."
    ),
]
IdName = Annotated[
    list[str] | None,
    typer.Option(
        "--id",
        help="The column or array that names the rows, for instance --id image_id; once for all files, or once for each in turn.",
    ),
]
ByRows = Annotated[bool, typer.Option("--rows", help="Pair row i with row i, whatever ids the files have.")]
FeaturePatterns = Annotated[
    list[str] | None,
    typer.Option(
        "--features",
        help="The columns that are the features, by a pattern such as 'emb_*' or several 'a*,b*'; once, or once for each file "
        "('' says nothing of a file).",
    ),
]
VectorName = Annotated[
    list[str] | None,
    typer.Option("--vector", help="The list column or array that holds the features; once, or once for each file."),
]
AxesWord = Annotated[
    list[str] | None,
    typer.Option(
        "--axes", help="Of three dimensions: nld for (n, layers, d), lnd for (layers, n, d); once, or once for each file."
    ),
]
GivenRDM = Annotated[
    bool, typer.Option("--rdm", help="All files hold dissimilarities as such: (n, n), or (m, n, n) for m layers.")
]
GivenKernel = Annotated[bool, typer.Option("--kernel", help="All files hold kernels (Gram matrices) as such, in these shapes.")]
KindWords = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        help="What a file holds where they differ: rdm, kernel or features, once for each file in turn, for instance "
        "--kind rdm --kind features.",
    ),
]
Limit = Annotated[
    float | None,
    typer.Option(help="Seconds that a measure of a family or of 'all' may take, for instance 120; 30 without."),
]
NullName = Annotated[
    str | None,
    typer.Option(
        "--null",
        help="What chance is: auto (the default), permutation, cyclic or aristotelian (as published), "
        "for instance --null cyclic.",
    ),
]
Draws = Annotated[
    int | None,
    typer.Option(help="Number of random permutations, for instance 999; alone it means --null permutation."),
]
Relabellings = Annotated[
    int | None,
    typer.Option(help="Exact draws of the cyclic null: this many times n or more, for instance 4."),
]
GroupsFile = Annotated[
    Path | None,
    typer.Option(
        "--groups",
        help="A table (.csv .tsv .jsonl .parquet) with the columns id and group, for instance captions.csv: stimuli that belong "
        "together. Files without ids have the ids 0, 1, 2, ...",
    ),
]
Shuffle = Annotated[
    str | None,
    typer.Option(
        help="With --groups, what changes places: stimuli within their group (the default), or whole groups, "
        "for instance --shuffle whole for several captions of one image."
    ),
]
SearchWords = Annotated[
    str | None,
    typer.Option(
        "--search",
        help="How pairs of layers are searched, for instance 'studentised top-5', 'raw' or 'matching'; "
        "by default the studentised maximum.",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(help="Memory for prepared layers, for instance 4GiB or 500MB; a quarter of the machine's without."),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of whatever is drawn, for instance 7; 0 without (aristotelian: the published one)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the rows of the result as JSON.")]

_UNITS = {"": 1, "b": 1} | {f"{u}b": 1000**i for i, u in enumerate("kmgt", 1)}
_UNITS |= {f"{u}ib": 1024**i for i, u in enumerate("kmgt", 1)}


def size_in_bytes(text: str | None) -> int | None:
    """The number of bytes that "4GiB", "500 MB" or "1000000" says: GB are powers of 1000, GiB of 1024."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].lower() not in _UNITS or float(found[1]) == 0:
        raise RepalignError(
            f"--memory {text!r} is not a size",
            expected="a number above 0 and a unit: kB, MB, GB, TB, KiB, MiB, GiB or TiB",
            got=text,
            remedy="for instance --memory 4GiB",
        )
    return int(float(found[1]) * _UNITS[found[2].lower()])


def groups_of(path: Path | None, shuffle: str | None, ids: Sequence[str]) -> Groups | None:
    """The groups of a file, for stimuli of these ids."""
    from repalign.null import Groups

    if path is None and shuffle is not None:
        raise RepalignError(
            "--shuffle says what changes places among groups", expected="--groups FILE with it", got="no --groups"
        )
    return None if path is None else Groups.from_file(path, ids, shuffle or "within")


def chosen_null(
    name: str | None, draws: int | None, relabellings: int | None, groups: Groups | None, seed: int | None
) -> Null:
    """The null that the options describe; an option that it would not use is refused."""
    from repalign.null import NULLS, make_null

    method = name or ("auto" if draws is None else "permutation")
    if method not in NULLS:
        raise RepalignError(f"unknown --null {method!r}", got=method, remedy=did_you_mean(method, NULLS))
    given = {"n_draws": draws, "relabellings": relabellings, "groups": groups, "seed": seed}
    given = {field: value for field, value in given.items() if value is not None}
    for field in given:
        if field not in NULLS[method].__dataclass_fields__:  # type: ignore[attr-defined]
            option = {"n_draws": "draws"}.get(field, field)
            others = [m for m, cls in NULLS.items() if field in cls.__dataclass_fields__]  # type: ignore[attr-defined]
            raise RepalignError(
                f"--null {method} has no --{option}", got=given[field], remedy=f"say --null {' or '.join(others)}"
            )
    if method == "auto" and groups is not None and relabellings is not None:
        raise RepalignError(
            "--relabellings and --groups do not go together", remedy="say --draws N for more draws with groups"
        )
    return make_null(method, **given)


def readings(
    n_files: int,
    ids: list[str] | None,
    rows: bool,
    features: list[str] | None,
    vector: list[str] | None,
    axes: list[str] | None,
    kind: list[str] | None = None,
) -> list[Reading]:
    """What the options say of each of some files."""
    from repalign.features import Reading

    given = {"id": ids, "features": features, "vector": vector, "axes": axes, "kind": kind}
    for name, values in given.items():
        if values and len(values) not in (1, n_files):
            raise RepalignError(
                f"--{name} is said {len(values)} times",
                expected=f"once for all files, or {n_files} times, for each in turn",
                got=", ".join(map(repr, values)),
            )
    said = {name: (values * n_files)[:n_files] if values else [None] * n_files for name, values in given.items()}
    return [Reading(rows=rows, **{name: values[i] or None for name, values in said.items()}) for i in range(n_files)]


def kinds_said(rdm: bool, kernel: bool, kind: list[str] | None) -> list[str] | None:
    """What --rdm, --kernel or --kind says that the files hold."""
    given = {"--rdm": ["rdm"] if rdm else None, "--kernel": ["kernel"] if kernel else None, "--kind": kind or None}
    said = {option: words for option, words in given.items() if words}
    if len(said) > 1:
        raise RepalignError(
            f"{' and '.join(said)} both say what the files hold",
            expected="one of them",
            got=", ".join(said),
            remedy="for files that hold different things say --kind once for each, for instance --kind rdm --kind kernel",
        )
    return next(iter(said.values()), None)


def read_files(paths: Sequence[Path], said: Sequence[Reading]) -> Joined:
    """Files of features with paired rows, by the one rule for all forms."""
    from repalign.features import join, read_file

    return join([read_file(path, reading) for path, reading in zip(paths, said, strict=True)])


def ids_or_rows(ids: Sequence[str] | None, n: int) -> Sequence[str]:
    """The ids of joined files, or the numbers of their rows."""
    return tuple(map(str, range(n))) if ids is None else ids


def one_layer(layers: Mapping[str, Given], path: Path, name: str | None) -> Any:
    """The layer of that name, or the only one of the file."""
    if name is None and len(layers) == 1:
        return next(iter(layers.values()))
    if name is None:
        raise RepalignError(
            f"{path}: which layer?",
            expected="--layers with one name for every file",
            got=f"{len(layers)} layers: {', '.join(list(layers)[:8])}{' ...' if len(layers) > 8 else ''}",
        )
    if name not in layers:
        raise RepalignError(f"{path}: no layer {name!r}", got=name, remedy=did_you_mean(name, layers))
    return layers[name]
