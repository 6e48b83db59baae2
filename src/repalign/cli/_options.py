"""Options that several commands share, and what their words mean: those of the reader, and those of a comparison.

A class of options is a parameter of a command like any other; `app` makes an option of each of its fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repalign.errors import RepalignError, choose

if TYPE_CHECKING:
    from repalign.comparison.alignment import Alignment
    from repalign.features import Joined
    from repalign.null import Groups, Null
    from repalign.representation import Representation

FeatureFile = Annotated[Path, typer.Argument(help="Features of one model (.npy .npz .safetensors .parquet .csv .h5 .mat ...).")]
OtherFile = Annotated[Path, typer.Argument(help="Features of the other.")]
MeasureNames = Annotated[list[str] | None, typer.Option(
    "--measure", "-m", help="A measure, for instance 'MutualKNN(k=10)', a family ('kernel') or 'all'; may be repeated.",
)]  # fmt: skip
GroupsFile = Annotated[Path | None, typer.Option(
    help="A table (.csv .tsv .jsonl .parquet) with the columns id and group, for instance captions.csv: stimuli that belong "
    "together. Files without ids have the ids 0, 1, 2, ...",
)]  # fmt: skip
IntervalMethod = Annotated[str | None, typer.Option(
    metavar="METHOD", help="The 95 % interval over stimuli: auto (the right method for the measure), jackknife or subsample.",
)]  # fmt: skip
OneDataset = Annotated[str | None, typer.Option(help="Fingerprint (or its start) of the dataset, if the store has several.")]
LocalModels = Annotated[list[Path] | None, typer.Option(
    "--local", metavar="FOLDER", help="A folder with models of the hub: one that it holds as FOLDER/org/name is read from there in "
    "the place of hf:org/name (or st:, timm:), for instance --local models; may be repeated.",
)]  # fmt: skip
AsJson = Annotated[bool, typer.Option("--json", help="Print the rows of the result as JSON.")]

_UNITS = {"": 1, "b": 1} | {f"{u}b": 1000**i for i, u in enumerate("kmgt", 1)}
_UNITS |= {f"{u}ib": 1024**i for i, u in enumerate("kmgt", 1)}


def size_in_bytes(text: str) -> int:
    """The number of bytes that "4GiB", "500 MB" or "1000000" says: GB are powers of 1000, GiB of 1024."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].lower() not in _UNITS or float(found[1]) == 0:
        raise RepalignError(
            f"--memory {text!r} is not a size",
            expected="a number above 0 and a unit: kB, MB, GB, TB, KiB, MiB, GiB or TiB", got=text,
            remedy="for instance --memory 4GiB",
        )  # fmt: skip
    return int(float(found[1]) * _UNITS[found[2].lower()])


def age_in_seconds(text: str) -> float:
    """The seconds that "30d", "12h" or "8w" says."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([hdw])\s*", text.lower())
    if not found:
        raise RepalignError(
            f"--older-than {text!r} is not an age", expected="a number and h, d or w: hours, days, weeks", got=text,
            remedy="for instance --older-than 30d",
        )  # fmt: skip
    return float(found[1]) * {"h": 3600, "d": 86_400, "w": 604_800}[found[2]]


OlderThan = Annotated[float | None, typer.Option(parser=age_in_seconds, metavar="AGE")]


def share_of(text: str) -> Any:
    """The share that "3/8" or "join" says."""
    from repalign.workers import Share

    return Share.parse(text)


Part = Annotated[Any, typer.Option(
    "--part", parser=share_of, metavar="I/N", help="Do one of N parts of the work and wait for nothing, for instance 3/8, as each "
    "task of an array job does. What is missing then is told. join puts the parts together, and does no part itself.",
)]  # fmt: skip


@dataclass(frozen=True)
class Workers:
    """Who does the work in place of this process.

    Parameters
    ----------
    jobs : Work with this many processes, which share the memory and the threads of this machine, for instance 4.
    dask : Work on a Dask cluster: the address of its scheduler, local (with --jobs processes of this machine), or slurm, pbs or
        lsf, which submit the jobs that the block `cluster` of the study describes.
    """

    jobs: int | None = None
    dask: str | None = None

    def count(self, cluster: Any = None) -> int:
        """How many there will be; 1 where only a scheduler knows it."""
        return self.jobs or (cluster.workers if self.dask is not None and cluster is not None else 1)

    @contextmanager
    def executor(self, cluster: Any = None) -> Iterator[Any]:
        """The executor, as long as it is needed; None is this process. `cluster` is the block of a study."""
        from repalign import workers

        if self.dask is not None:
            if self.jobs is not None and self.dask != "local":
                raise RepalignError(f"--jobs is of this machine, and --dask {self.dask} is not", remedy="leave out one of them")
            with workers.dask(self.dask, None if cluster is None else cluster.model_dump(), self.jobs) as executor:
                yield executor
        elif self.jobs is not None:
            with workers.processes(self.jobs) as executor:
                yield executor
        else:
            yield None


@dataclass(frozen=True)
class Reader:
    """What is said of the files that a command reads: once for all of them, or once for each in turn.

    Parameters
    ----------
    id : The column or array that names the rows, for instance --id image_id; once for all files, or once for each in
        turn.
    rows : Pair row i with row i, whatever ids the files have.
    features : The columns that are the features, by a pattern such as 'emb_*' or several 'a*,b*'; once, or once for each
        file ('' says nothing of a file).
    vector : The list column or array that holds the features; once, or once for each file.
    axes : Of three dimensions: nld for (n, layers, d) or lnd for (layers, n, d); once, or once for each file.
    rdm : All files hold dissimilarities as such: (n, n), or (m, n, n) for m layers.
    kernel : All files hold kernels (Gram matrices) as such, in these shapes.
    kind : What each file holds, if they differ: rdm, kernel or features, once for each in turn, for instance --kind rdm
        --kind features.
    """

    id: list[str] | None = None
    rows: bool = False
    features: list[str] | None = None
    vector: list[str] | None = None
    axes: list[str] | None = None
    rdm: bool = False
    kernel: bool = False
    kind: list[str] | None = None

    def read(self, *paths: Path) -> Joined:
        """Files of features with paired rows, by the one rule for all forms."""
        from repalign.features import Reading, join, read_file

        said = {"id": self.id, "features": self.features, "vector": self.vector, "axes": self.axes, "kind": self._kinds()}
        for name, values in said.items():
            if values and len(values) not in (1, len(paths)):
                raise RepalignError(
                    f"--{name} is said {len(values)} times", got=", ".join(map(repr, values)),
                    expected=f"once for all files, or {len(paths)} times, for each in turn",
                )  # fmt: skip
        each = {name: values * (len(paths) // len(values)) for name, values in said.items() if values}
        words: list[dict[str, Any]] = [{name: values[i] or None for name, values in each.items()} for i in range(len(paths))]
        readings = [Reading(rows=self.rows, **said) for said in words]  # all of them are checked before a file is read
        return join([read_file(path, reading) for path, reading in zip(paths, readings, strict=True)])

    def read_layers(self, paths: Sequence[Path], names: Sequence[str] | None) -> tuple[list[Any], Joined]:
        """A layer of each file, by name or the only one, and all that was read."""
        joined, picked = self.read(*paths), []
        for path, layers, name in zip(paths, joined.layers, names or [None] * len(paths), strict=True):
            if name is None and len(layers) > 1:
                raise RepalignError(
                    f"{path}: which layer?", expected="--layers with one name for every file",
                    got=f"{len(layers)} layers: {', '.join(list(layers)[:8])}{' ...' if len(layers) > 8 else ''}",
                )  # fmt: skip
            name = next(iter(layers)) if name is None else choose("layer", name, layers, f"{path}: no layer {name!r}")
            picked.append(layers[name])
        return picked, joined

    def refuse(self, of: str) -> None:
        """Refuse whatever is said, where there is none of these."""
        said = [f"--{f.name}" for f in fields(self) if getattr(self, f.name)]
        if said:
            raise RepalignError(f"{' and '.join(said)} is said of {of}, and there are none", remedy="leave it out")

    def _kinds(self) -> list[str] | None:
        given = {"--rdm": ["rdm"] * self.rdm, "--kernel": ["kernel"] * self.kernel, "--kind": self.kind}
        said = {option: words for option, words in given.items() if words}
        if len(said) > 1:
            raise RepalignError(
                f"{' and '.join(said)} both say what the files hold", expected="one of them", got=", ".join(said),
                remedy="for files that hold different things say --kind once for each, for instance --kind rdm --kind kernel",
            )  # fmt: skip
        return next(iter(said.values()), None)


@dataclass(frozen=True)
class Comparing:
    """What chance is, how layers are searched, and what a comparison may take.

    Parameters
    ----------
    null : What chance is: auto (the default), permutation, cyclic or aristotelian (as published), for instance
        --null cyclic.
    draws : Number of random permutations, for instance 999; alone it means --null permutation.
    relabellings : Exact draws of the cyclic null: this many times n or more, for instance 4.
    shuffle : With --groups, what changes places: stimuli within their group (the default), or whole groups, for instance
        --shuffle whole for several captions of one image.
    search : How pairs of layers are searched, for instance 'studentised top-5', 'raw' or 'matching'; by default the
        studentised maximum.
    memory : Memory for prepared layers, for instance 4GiB or 500MB; a quarter of the machine's by default.
    limit : Seconds that a measure may take, for instance 120. What would take longer is shuffled 19 times only, or left out.
        By default 30 for measures of a family or of 'all', and none for those that are named; 0 is no limit.
    device : Where to compare: cpu (the default), cuda, cuda:1 and so on, or auto, a CUDA GPU where there is one.
    seed : Seed of the draws, for instance 7; 0 by default (aristotelian: the published one).
    """

    null: str | None = None
    draws: int | None = None
    relabellings: int | None = None
    groups: GroupsFile = None
    shuffle: str | None = None
    search: str | None = None
    memory: Annotated[int | None, typer.Option(parser=size_in_bytes, metavar="SIZE")] = None
    limit: float | None = None
    device: str = "cpu"
    seed: int | None = None

    def grouped(self, ids: Sequence[str]) -> Groups | None:
        """The groups of the file, for stimuli of these ids."""
        from repalign.null import Groups

        if self.groups is None and self.shuffle is not None:
            problem = "--shuffle says what changes places among groups"
            raise RepalignError(problem, expected="--groups FILE with it", got="no --groups")
        return None if self.groups is None else Groups.from_file(self.groups, ids, self.shuffle or "within")

    def chance(self, groups: Groups | None) -> Null:
        """The null that the options describe; an option that it would not use is refused."""
        from repalign.null import NULLS, make_null

        method = choose("--null", self.null or ("auto" if self.draws is None else "permutation"), NULLS)
        given = {"n_draws": self.draws, "relabellings": self.relabellings, "groups": groups, "seed": self.seed}
        given = {field: value for field, value in given.items() if value is not None}
        takes = {name: {f.name for f in fields(null)} for name, null in NULLS.items()}  # type: ignore[arg-type]
        for field in (field for field in given if field not in takes[method]):
            others = [name for name in NULLS if field in takes[name]]
            problem = f"--null {method} has no --{field.removeprefix('n_')}"
            raise RepalignError(problem, got=given[field], remedy=f"say --null {' or '.join(others)}")
        if method == "auto" and groups is not None and self.relabellings is not None:
            problem = "--relabellings and --groups do not go together"
            raise RepalignError(problem, remedy="say --draws N for more draws with groups")
        return make_null(method, **given)

    def compare(
        self, x: Sequence[Representation], y: Sequence[Representation] | None, measures: list[str] | None, groups: Groups | None,
        **more: Any,
    ) -> Alignment:  # fmt: skip
        """Compare as the options say; `more` goes to `repalign.comparison.compare`."""
        from repalign.comparison import compare

        return compare(x, y, measures or None, self.chance(groups), **self.how, **more)

    @property
    def how(self) -> dict[str, Any]:
        return {"search": self.search, "memory": self.memory, "limit": self.limit, "device": self.device}
