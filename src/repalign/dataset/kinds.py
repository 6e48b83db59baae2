"""The kinds of stimuli there are, their distortions, and how raw rows become columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from repalign.dataset.columns import Arrays, Cells, Column, Distortion
from repalign.dataset.given import GivenFiles, Values
from repalign.dataset.images import Images
from repalign.dataset.texts import Texts, Vocabulary
from repalign.errors import Mistakes, RepalignError, choose, did_you_mean
from repalign.tables import bad_text
from repalign.text import Progress

# One row for each kind of stimuli. Files, folders, the hub, study files and mock runs take it from here.
KINDS: Mapping[str, type[Column]] = {kind.kind: kind for kind in (Texts, Images, Arrays)}
# Those of which a dataset has one column, which the kind gives its name, and those whose columns the user names, by the option.
IN_CELLS: Mapping[str, type[Cells]] = {name: kind for name, kind in KINDS.items() if issubclass(kind, Cells)}
GIVEN: Mapping[str, type[Cells]] = {kind.plural: kind for kind in (GivenFiles, Values)}
KINDS = {**KINDS, **{kind.kind: kind for kind in GIVEN.values()}}
CELLS: Mapping[str, type[Cells]] = {name: kind for name, kind in KINDS.items() if issubclass(kind, Cells)}
DISTORTIONS: Mapping[str, tuple[str, ...]] = {n: tuple(k.distortions) for n, k in sorted(KINDS.items()) if k.distortions}


# --- distortions ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Distorted(Column):
    """A column with a distortion of every row; the digest of a row follows from what it was and what is done to it."""

    base: Column
    distortion: Distortion
    modality: str
    ids: tuple[str, ...]
    vocabulary: Vocabulary | None = None  # of captions

    @property
    def kind(self) -> str:  # type: ignore[override]
        return self.base.kind

    @cached_property
    def digests(self) -> tuple[str, ...]:  # type: ignore[override]
        how = [self.distortion.kind, self.distortion.amount, self.distortion.seed]
        if self.distortion.kind == "words":  # which takes others from elsewhere
            assert self.vocabulary is not None
            how.append(self.vocabulary.digest)
        given = (json.dumps(["repalign-distort-1", d, *how], separators=(",", ":")) for d in self.base.digests)
        return tuple(hashlib.sha256(g.encode()).hexdigest() for g in given)

    def read(self, row: int) -> Any:
        return KINDS[self.kind].distort(self.base.read(row), self.distortion, self.vocabulary, self.ids[row], self.modality)

    def take(self, rows: Sequence[int]) -> Distorted:
        return replace(self, base=self.base.take(rows), ids=tuple(self.ids[r] for r in rows))


def wrong_distortion(kind: str, distortion: Any) -> tuple[str, str] | None:
    """The problem with a name of a distortion, and the remedy; None if it is a distortion of this kind of stimuli."""
    known = KINDS[kind].distortions
    if distortion in known:
        return None
    whose = next((f" but of {other.plural}" for other in KINDS.values() if distortion in other.distortions), "")
    return f"{distortion!r} is no distortion of {KINDS[kind].plural}{whose}", did_you_mean(str(distortion), known)


def distorted(column: Column, how: Distortion, modality: str, ids: tuple[str, ...], where: str) -> Column:
    """A column with a distortion, itself if the amount is 0; `where` names it in the error for one that it cannot have."""
    if column.kind not in DISTORTIONS:
        raise RepalignError(
            f"{where} cannot be distorted", expected=f"stimuli of kind {' or '.join(DISTORTIONS)}",
            got=f"kind {column.kind}", remedy="change the stimuli before the dataset is made of them",
        )
    if wrong := wrong_distortion(column.kind, how.kind):
        expected = ", ".join(DISTORTIONS[column.kind])
        raise RepalignError(f"{where}: {wrong[0]}", expected=expected, got=repr(how.kind), remedy=wrong[1])
    if isinstance(how.amount, bool) or not isinstance(how.amount, int | float) or not 0 <= how.amount <= 1:
        problem = f"{where}: the amount of {how.kind} is out of range"
        raise RepalignError(problem, expected="a number from 0 (nothing) to 1", got=repr(how.amount))
    if isinstance(how.seed, bool) or not isinstance(how.seed, int) or how.seed < 0:
        raise RepalignError(f"{where}: the seed is none", expected="a whole number, at least 0", got=repr(how.seed))
    if how.amount == 0:
        return column
    if isinstance(column, Distorted):
        raise RepalignError(
            f"{where} is distorted already", expected="stimuli as they were", got=column.distortion,
            remedy="distort the dataset that this one was made from",
        )
    return Distorted(column, replace(how, amount=float(how.amount)), modality, ids, column.vocabulary)


# --- from raw rows to columns --------------------------------------------------------------------

SHOWN = 5  # rows that an error names before it only counts


@dataclass(frozen=True)
class LeftOut:
    """A row that is in no modality of the dataset, and why. `row` counts from 0 in the source."""

    id: str
    row: int
    reason: str


def assemble(
    name: str, ids: Sequence[str], cells: Mapping[str, Sequence[Any]], where: str, source: str, on_missing: str,
    progress: Progress, *, revision: str | None = None, rows: Sequence[int] | None = None,
    kinds: Mapping[str, type[Cells]] = IN_CELLS,
) -> tuple[Any, ...]:  # fmt: skip
    """Check the raw cells of every modality and make its column of them: the fields of a `Dataset`, in their order.

    `rows` are the places in `ids` and `cells` that are taken, all without; `where` names the source in errors; `kinds` are those
    of the modalities.
    """
    choose("on_missing", on_missing, ("error", "drop"), f"on_missing={on_missing!r} is not known")
    rows = range(len(ids)) if rows is None else rows
    if len({ids[r] for r in rows}) < len(rows):
        refuse_twins(ids, rows, where)
    left_out: list[LeftOut] = []
    usable: dict[str, dict[int, Any]] = {}
    for modality in (m for m in kinds if m in cells):
        checked = dict(zip(rows, kinds[modality].checked([cells[modality][r] for r in rows], progress), strict=True))
        usable[modality] = {r: value for r, (value, _) in checked.items()}
        bad = [LeftOut(ids[r], r, why) for r, (_, why) in checked.items() if why is not None]
        if bad and on_missing == "error":
            named = "; ".join(f"row {b.row} (id {b.id!r}): {b.reason}" for b in bad[:SHOWN])
            more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
            raise RepalignError(
                f"{where}: {len(bad)} of {len(rows)} rows cannot be used: {named}{more}",
                expected="a readable stimulus of every modality in every row",
                remedy='mend the rows, or pass on_missing="drop" to leave them out of every modality',
            )
        rows = [r for r, (_, why) in checked.items() if why is None]
        left_out += bad
        if not rows:
            got = f"row {bad[0].row} (id {bad[0].id!r}): {bad[0].reason}"
            raise RepalignError(f"{where}: no row can be used", expected="at least one row with every modality", got=got)
    columns = {m: kinds[m](tuple(values[r] for r in rows)) for m, values in sorted(usable.items())}
    return name, tuple(ids[r] for r in rows), columns, source, revision, tuple(sorted(left_out, key=lambda x: x.row))


def row_ids(values: Sequence[Any], where: str) -> list[str]:
    """Ids as strings. Integers are written in decimal; anything else is an error."""
    out = []
    for row, value in enumerate(values):
        if value is not None and (not isinstance(value, str | int) or isinstance(value, bool)):
            raise RepalignError(
                f"{where}: row {row} has an id that is no name", expected="a string or an integer",
                got=f"{value!r} ({type(value).__name__})", remedy="name the column that holds the ids",
            )
        text = "" if value is None else str(value)
        if not text.strip():
            raise RepalignError(
                f"{where}: row {row} has an empty id", expected="an id in every row: pairing is by id", got=repr(value),
                remedy="fill the id in, or take the row out of the source",
            )
        if problem := bad_text(text):
            expected, remedy = "an id that is text", "mend the id"
            raise RepalignError(f"{where}: row {row} has an id with {problem}", expected=expected, remedy=remedy)
        out.append(text)
    if not out:
        raise RepalignError(f"{where} has no rows", expected="at least one row", got="none")
    return out


def refuse_twins(ids: Sequence[str], rows: Sequence[int], where: str) -> None:
    """Refuse two of some rows with one id, naming both."""
    seen: dict[str, int] = {}
    for row in rows:
        if seen.setdefault(ids[row], row) != row:
            raise RepalignError(
                f"{where}: rows {seen[ids[row]]} and {row} have the same id {ids[row]!r}",
                expected="every id once: an id names one thing in every modality", got=f"{ids[row]!r} twice",
                remedy="make the ids unique, or take one of the two rows out",
            )


def named_columns(
    id: str | None, asked: Mapping[str, str | Sequence[str] | None], given: Mapping[str, Mapping[str, str] | None], where: str
) -> tuple[dict[str, list[str]], dict[str, type[Cells]], str]:
    """The columns of each modality, its kind, and what is named in words. Refuses to name none, or a kind that there is not.

    `asked` are columns by kind, `given` by the option and the modality that the user names.
    """
    for kind in asked:
        choose("kind of stimuli", kind, IN_CELLS, f"{where}: there is no option and no kind of stimuli {kind!r}")
    named = {kind: [names] if isinstance(names, str) else list(names) for kind, names in sorted(asked.items()) if names}
    for kind, names in named.items():
        if len(names) > 1 and not IN_CELLS[kind].several:
            raise RepalignError(f"{where}: {kind} is one column", expected="the name of a column", got=", ".join(names))
    kinds = kinds_with({option: columns or {} for option, columns in given.items()}, named, where)
    named |= {modality: [column] for columns in given.values() for modality, column in (columns or {}).items()}
    if not named:
        known = sorted(IN_CELLS)
        raise RepalignError(
            f"{where}: no column of stimuli is named", got="none",
            expected=f"{', '.join(f'{kind}=' for kind in known)} or several, or {' or '.join(GIVEN)} for a function of yours",
            remedy=f"name the column that holds the {' or the '.join(IN_CELLS[kind].plural for kind in known)}",
        )
    told = {"id": [id] if id else [], **named}
    return named, kinds, ", ".join(f"{kind}={','.join(names)}" for kind, names in told.items() if names)


def kinds_with(given: Mapping[str, Mapping[str, Any]], others: Mapping[str, Any], where: str) -> dict[str, type[Cells]]:
    """The kinds of modalities: those that have the name of their kind, and those that the user names, `given` by option."""
    kinds, taken = dict(IN_CELLS), set(others)
    for option, columns in given.items():
        if not isinstance(columns, Mapping) or not all(isinstance(name, str) and name.strip() for name in columns):
            raise RepalignError(
                f"{where}: nothing says what the {option} are", expected=f"{option}={{'audio': ...}}: modalities by name",
                got=repr(columns)[:60],
            )  # fmt: skip
        if twice := taken & set(columns):
            raise RepalignError(
                f"{where}: two columns are the modality {min(twice)!r}", expected="another name for one of them", got=option
            )  # fmt: skip
        taken |= set(columns)
        kinds |= dict.fromkeys(columns, GIVEN[option])
    return kinds


def fields_of(id: str | None, named: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Every column that is asked for, with the option that asks for it."""
    return {**({} if id is None else {id: "id"}), **{column: kind for kind, names in named.items() for column in names}}


def refuse_unknown(asked: Mapping[str, str], known: Sequence[str], where: str) -> None:
    """Refuse columns that there are not, all of them at once."""
    mistakes = Mistakes()
    for column, option in asked.items():
        with mistakes.kept(option):
            choose("column", column, known, f"{where} has no column {column!r}")
    mistakes.refuse(where)
