"""The `dataset:` block of a study file."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    create_model,
    field_validator,
    model_validator,
)

from repalign.dataset.dataset import Dataset
from repalign.dataset.kinds import DISTORTIONS, GIVEN, IN_CELLS, KINDS, wrong_distortion
from repalign.errors import RepalignError, about
from repalign.tables import id_lines
from repalign.text import Progress, silent, told_of


class Block(BaseModel):
    """A mapping of a study file: no field but those that it has. Its schema says what docstrings say of each."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core)
        found = handler.resolve_ref_schema(schema)
        found["description"] = told_of(cls)[0]
        for name, said in (pair for c in cls.__mro__ for pair in told_of(c)[1].items()):
            if name in found.get("properties", {}):
                found["properties"][name].setdefault("description", said)
        return schema


class SampleConfig(Block):
    """A random sample of the rows.

    Parameters
    ----------
    n : Number of rows.
    seed : Of the sample.
    """

    n: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)


class ToyConfig(Block):
    """Scenes of the toy world.

    Parameters
    ----------
    n : Number of scenes.
    seed : Of the scenes.
    detail : Facts per caption, from 1 to 10.
    """

    n: int = Field(default=1024, ge=1)
    seed: int = Field(default=0, ge=0)
    detail: int = Field(default=10, ge=1, le=10)


class DistortionConfig(Block):
    """A distortion of the stimuli of one kind.

    Parameters
    ----------
    kind : Which distortion, such as noise or words.
    amount : From 0 (nothing) to 1.
    """

    of: ClassVar[str]  # the kind of the stimuli
    kind: str
    amount: float = Field(ge=0, le=1, strict=True, allow_inf_nan=False)

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if wrong := wrong_distortion(cls.of, kind):
            raise ValueError("; ".join(wrong))
        return kind


# Blocks with a field for each kind of stimuli, which may be left out.
_ONE_COLUMN, _SEVERAL = (str | None, None), (str | list[str] | None, None)
_Columns: Any = create_model("_Columns", __base__=Block, **{k: _SEVERAL if c.several else _ONE_COLUMN for k, c in IN_CELLS.items()})
_OF_KINDS = {kind: type(f"{kind.title()}DistortionConfig", (DistortionConfig,), {"of": kind}) for kind in DISTORTIONS}
_Distortions: Any = create_model("_Distortions", __base__=Block, **{kind: (of | None, None) for kind, of in _OF_KINDS.items()})


class DistortConfig(_Distortions):
    """Distorted stimuli (see `Dataset.distort`).

    Parameters
    ----------
    seed : Of the distortions.
    image : Of the images.
    text : Of the texts.
    """

    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _of_something(self) -> DistortConfig:
        if all(getattr(self, kind) is None for kind in DISTORTIONS):
            raise ValueError(f"say what is distorted: {' or '.join(DISTORTIONS)}, as {{kind: noise, amount: 0.5}}")
        return self


class DatasetConfig(_Columns):
    """The stimuli: exactly one source (hub, table, folder, arrays or toy), its options, and which rows are taken.

    Parameters
    ----------
    hub : A data set of the hub, org/name, or a local copy of one.
    table : A table with a row for each stimulus: CSV, TSV, JSONL or Parquet.
    folder : A folder of images, with captions beside them.
    arrays : Arrays (.npy) by modality, with `row_ids`.
    toy : Scenes of the toy world.
    image : The column of images, or of their paths.
    text : The column of captions, or several such columns.
    files : Columns of paths that a function of yours reads, by the modality: {audio: clip}.
    values : Columns of anything else that a function of yours reads, by the modality: {molecule: smiles}.
    revision : Of a data set on the hub: a branch, tag or commit.
    split : Of a data set on the hub.
    config : Of a data set on the hub.
    data_files : Of a data set on the hub: the files to read.
    id : The column that names the stimuli.
    root : The folder from which paths of images and files start; that of the table by default.
    row_ids : Ids of the rows of `arrays`: a list, or a file with an id on each line.
    on_missing : error, or drop: leave out stimuli without a caption or with an image or file that cannot be read.
    name : What the data set is called.
    ids : Take these stimuli only: a list, or a file with an id on each line.
    sample : Take a random sample of the rows.
    distort : Distort what was taken.
    """

    hub: str | None = None
    table: str | None = None
    folder: str | None = None
    arrays: dict[str, str] | None = None
    toy: ToyConfig | None = None

    revision: str | None = None
    split: str | None = None
    config: str | None = None
    data_files: str | list[str] | None = None
    id: str | None = None
    files: dict[str, str] | None = None
    values: dict[str, str] | None = None
    root: str | None = None
    row_ids: str | list[str | int] | None = None
    on_missing: str | None = None
    name: str | None = None

    ids: str | list[str | int] | None = None
    sample: SampleConfig | None = None
    distort: DistortConfig | None = None

    _kind: str = PrivateAttr()

    @property
    def kind(self) -> str:
        """The source that is named: "hub", "table", "folder", "arrays" or "toy"."""
        return self._kind

    @property
    def columns(self) -> dict[str, list[str]]:
        """The columns that are named, by the kind of their stimuli."""
        named = {kind: getattr(self, kind) for kind in IN_CELLS}
        named |= {kind.kind: [*(getattr(self, option) or {}).values()] for option, kind in GIVEN.items()}
        return {kind: [said] if isinstance(said, str) else said for kind, said in named.items() if said}

    @field_validator("toy", mode="before")
    @classmethod
    def _bare_toy(cls, value: Any) -> Any:
        return {} if value is None else value  # `toy:` without options

    @model_validator(mode="after")
    def _one_source_and_its_options(self) -> DatasetConfig:
        named = [s for s in SOURCES if getattr(self, s) is not None]
        if len(named) != 1:
            raise ValueError(f"exactly one of {', '.join(SOURCES)} must be given, not {' and '.join(named) or 'none'}")
        for field in sorted(self.model_fields_set - {*SOURCES, "ids", "sample", "distort"}):
            if field not in SOURCES[named[0]]:
                possible = ", ".join(sorted(SOURCES[named[0]])) or "no options"
                raise ValueError(f"{field!r} is no option of {named[0]!r}, which takes {possible}")
        if named[0] == "arrays" and self.row_ids is None:
            raise ValueError("'arrays' needs 'row_ids': a list, or the path of a file with one id per line")
        self._kind = named[0]
        return self

    def open(self, base: Path, progress: Progress = silent) -> Dataset:
        """The dataset. Relative paths start from `base`, the folder of the study file.

        An error is `about` the field of this block that it comes of.
        """
        with about(self._kind):
            dataset = self._source(base, progress)
        if self.ids is not None:
            with about("ids"):
                dataset = dataset.subset(_read_ids(self.ids, base))
        if self.sample is not None:
            with about("sample"):
                dataset = dataset.sample(self.sample.n, self.sample.seed)
        for modality in KINDS:
            how = getattr(self.distort, modality, None)
            if how is not None:
                with about("distort"):
                    dataset = dataset.distort(modality, how.kind, how.amount, self.distort.seed)
        return dataset

    def _source(self, base: Path, progress: Progress) -> Dataset:
        """All rows of the source."""
        kind = self._kind
        options = {f: getattr(self, f) for f in self.model_fields_set if f in SOURCES[kind]}
        if self.toy is not None:
            return Dataset.toy(**self.toy.model_dump())
        if self.arrays is not None:
            with about("row_ids"):
                ids = _read_ids(options.pop("row_ids"), base)
            arrays = {m: _read_array(base / Path(p).expanduser()) for m, p in self.arrays.items()}
            return Dataset.from_arrays(arrays, ids, **options)
        if "root" in options:
            options["root"] = base / Path(options["root"]).expanduser()
        place = base / Path(getattr(self, kind)).expanduser()
        place = self.hub if kind == "hub" and not place.exists() else place
        return getattr(Dataset, f"from_{kind}")(place, progress=progress, **options)


# The options of a source are the keyword arguments of its constructor.
SOURCES = {
    name: frozenset(
        p.name for p in inspect.signature(getattr(Dataset, f"from_{name}")).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "progress"
    )
    for name in ("hub", "table", "folder", "arrays")
}  # fmt: skip
SOURCES |= {name: SOURCES[name] | IN_CELLS.keys() for name in ("hub", "table")} | {"arrays": SOURCES["arrays"] | {"row_ids"}}
SOURCES["toy"] = frozenset()


def _read_ids(ids: str | list[str | int], base: Path) -> list[str | int]:
    """Ids from a list, a .json list, or a file with one id per line; nulls in them are the dataset's to refuse."""
    if isinstance(ids, list):
        return list(ids)
    path = base / Path(ids).expanduser()
    try:
        content = path.read_bytes().decode("utf-8-sig")  # as it is: only a line feed ends a line
        if path.suffix.lower() != ".json":
            return [line.strip() for line in id_lines(content, path.name)]
        listed = json.loads(content)
        if not isinstance(listed, list):
            raise TypeError(f"a JSON {type(listed).__name__}")
        return listed
    except (OSError, ValueError, TypeError) as error:
        raise RepalignError(
            f"the ids in {path.name} cannot be read",
            expected="a file with one id per line, or a .json file with a list", got=error,
            remedy="check the path; it starts from the study file's folder",
        ) from error


def _read_array(path: Path) -> Any:
    """One .npy array; pickled objects are refused."""
    import numpy as np

    try:
        if path.suffix.lower() != ".npy":
            raise ValueError(f"the file ends in {path.suffix or 'nothing'!r}")
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RepalignError(f"the array {path.name} cannot be read", expected="a .npy file", got=error) from error
