"""Words of concepts and their vectors: pairs from a table, a vocabulary from a language model or a file of features.

The vocabulary of a language model is its unembedding matrix. A word is looked up as it stands behind a space in a text, without
special tokens, and must be one token: words of several are never split, but left out and counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from repalign.errors import RepalignError, Unavailable, choose, nearby
from repalign.tables import Table, column_of, id_lines, read_table, table_of
from repalign.text import Progress, counted, named, silent

SHIPPED = Path(__file__).with_name("concepts.csv")
COLUMNS = ("concept", "base", "target")
MIN_PAIRS = 5  # of a concept: fewer have nulls of a few orders
NO_TOKEN, SEVERAL, ABSENT, SAME, TWICE = "no token", "several tokens", "not in the vocabulary", "one and the same", "there twice"
BLOCK = 8192  # rows that are looked through at a time

Pairs = Mapping[str, Sequence[tuple[str, str]]]


# --- pairs ---------------------------------------------------------------------------------------


def read_pairs(source: Any, what: str = "pairs") -> dict[str, list[tuple[str, str]]]:
    """Pairs (base, target) by concept, in order: of a table with the columns concept, base, target, or of a mapping.

    Raises RepalignError: no such table or column, an empty cell, no row.
    """
    if isinstance(source, Mapping):
        return {str(name): [(str(base), str(target)) for base, target in pairs] for name, pairs in source.items()}
    table: Table | None = read_table(Path(source), COLUMNS, what) if isinstance(source, (str, Path)) else table_of(source)
    where = str(source) if isinstance(source, (str, Path)) else what
    if table is None:
        raise RepalignError(f"{what}: not a table of pairs", expected="a file or frame with the columns concept, base, target",
                            got=type(source).__name__)  # fmt: skip
    for name in COLUMNS:
        choose("column", name, table.columns, f"{where}: no column {name!r}")
    out: dict[str, list[tuple[str, str]]] = {}
    for concept, base, target in zip(*(column_of(table, name, where, name) for name in COLUMNS), strict=True):
        out.setdefault(concept.strip(), []).append((base.strip(), target.strip()))
    if not out:
        raise RepalignError(f"{where}: no pair in it", expected="rows of concept, base, target", got="none")
    return out


# --- vocabularies --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Vectors x (V, d), the row of a name or why it has none, and what they are in words.

    is_unembedding : whether a hidden state . x is a logit, so that steering has a meaning. facts : of the record.
    """

    x: np.ndarray
    row: Callable[[str], int | str]
    what: str
    is_unembedding: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or 0 in self.x.shape:
            raise RepalignError(f"{self.what}: not vectors", expected="(V, d), a row for each name", got=f"shape {self.x.shape}")
        for start in range(0, len(self.x), BLOCK):
            wrong = ~np.isfinite(self.x[start : start + BLOCK]).all(1)
            if wrong.any():
                at = start + int(wrong.argmax())
                raise RepalignError(
                    f"{self.what}: row {at:,} is not finite",
                    expected="numbers",
                    got="NaN or infinity",
                    remedy="leave such rows out",
                )

    @classmethod
    def of(cls, x: Any, names: Iterable[str], what: str = "x") -> Vocabulary:
        """Vectors that are in memory, with a name for each row.

        >>> Vocabulary.of([[1.0, 0.0], [0.0, 1.0]], ["king", "queen"]).row("queen")
        1
        """
        x, names = np.asarray(x), list(names)
        x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)
        places = {str(name): i for i, name in enumerate(names)}
        if len(names) != len(x) or len(places) < len(names):
            got = f"{len(names):,} names, {len(places):,} distinct"
            raise RepalignError(f"{what}: names do not fit the rows", expected=f"{len(x):,} distinct names", got=got)
        return cls(x, lambda name: places.get(name, ABSENT), what)

    def population(self, over: Path | None) -> np.ndarray:
        """The rows over which the covariance is taken: all, or those of the names in a file, a name a line."""
        if over is None:
            return self.x
        if not over.is_file():
            raise RepalignError(f"there is no file {over}", expected="names, one a line", remedy=nearby(over))
        found = {row for name in id_lines(over.read_text("utf-8-sig"), over.name) if isinstance(row := self.row(name.strip()), int)}
        if not found:
            raise RepalignError(f"{over}: none of its names is in the vocabulary", expected=f"names of {self.what}")
        return self.x[sorted(found)]


@dataclass(frozen=True)
class Lookup:
    """Concepts as rows of a vocabulary: rows (m, 2) of base and target, the same as words, and what was left out and why."""

    rows: dict[str, np.ndarray]
    pairs: dict[str, list[tuple[str, str]]]
    dropped: list[tuple[str, str, str, str]]  # concept, base, target, reason
    given: dict[str, int]

    def lost(self, concept: str) -> int:
        return self.given[concept] - len(self.pairs[concept])


def look_up(pairs: Pairs, vocabulary: Vocabulary) -> Lookup:
    """Pairs whose words are both in the vocabulary, and not the same; concepts of fewer than 5 of them are left out.

    Raises RepalignError where no concept is left, with what became of its pairs.
    """
    rows: dict[str, np.ndarray] = {}
    kept: dict[str, list[tuple[str, str]]] = {}
    dropped: list[tuple[str, str, str, str]] = []
    for concept, some in pairs.items():
        found: dict[tuple[int, int], tuple[str, str]] = {}
        for base, target in some:
            at = vocabulary.row(base), vocabulary.row(target)
            reason = next((one for one in at if isinstance(one, str)), "")
            if not reason and np.array_equal(vocabulary.x[at[0]], vocabulary.x[at[1]]):
                reason = SAME
            if reason or at in found:
                dropped.append((concept, base, target, reason or TWICE))
            else:
                found[at] = (base, target)  # type: ignore[index]
        if len(found) >= MIN_PAIRS:
            rows[concept], kept[concept] = np.array(list(found)), list(found.values())
        else:
            few = f"one of {len(found)} pairs of the concept that are left, and {MIN_PAIRS} are needed"
            dropped += [(concept, *pair, few) for pair in found.values()]
    if not rows:
        raise _nothing_left(pairs, dropped, vocabulary)
    return Lookup(rows, kept, dropped, {name: len(some) for name, some in pairs.items()})


def _nothing_left(pairs: Pairs, dropped: Sequence[tuple[str, str, str, str]], vocabulary: Vocabulary) -> RepalignError:
    words = list(dict.fromkeys(word for _, *two, _ in dropped for word in two if isinstance(vocabulary.row(word), str)))
    reasons = [reason for *_, reason in dropped]
    why = ", ".join(f"{reasons.count(one)} {one}" for one in (NO_TOKEN, SEVERAL, ABSENT, SAME, TWICE) if one in reasons)
    several = SEVERAL in reasons
    remedy = "words of one token: none is split" if several else "words that it has, written as it has them"
    return RepalignError(
        f"no concept has {MIN_PAIRS} pairs in {vocabulary.what}",
        expected=f"at least {MIN_PAIRS} pairs of a concept whose words both have a vector, and differ",
        got=f"{counted(sum(map(len, pairs.values())), 'pair')} of {counted(len(pairs), 'concept')}{f': {why}' if why else ''}",
        remedy=f"give {remedy}; it lacks {named(words)}" if words else "give more pairs",
    )


# --- where vocabularies come from ----------------------------------------------------------------


def layers_of(model: Any, other: Any, layers: Sequence[str] | None) -> tuple[str | None, str | None]:
    """The layer of each model: one name for all files, or one for each in turn. A language model has one output matrix."""
    files, given = [one is not None and not _is_language_model(one) for one in (model, other)], list(layers or [])
    count = sum(files)
    if given and (not count or len(given) not in (1, count)):
        raise RepalignError(
            "layers do not fit the models", expected=f"a name for each of {count} files, or one for all" if count else "none",
            got=", ".join(given), remedy=None if count else "leave `layers` out: a language model has one output matrix",
        )  # fmt: skip
    each = iter(given * count if len(given) == 1 else given or [None] * count)
    own, its = (next(each) if is_file else None for is_file in files)
    return own, its


def _is_language_model(model: Any) -> bool:
    return isinstance(model, str) and model.startswith("hf:")


def read_vocabulary(model: Any, layer: str | None = None, progress: Progress = silent) -> Vocabulary:
    """The vocabulary of a language model, or of vectors with names: a file of features, STORE#MODEL, a frame or a mapping.

    Raises RepalignError: another scheme, vectors without names, several layers and none named, a model without an output matrix.
    """
    from repalign.sources import SOURCES, parse_spec

    if not isinstance(model, (str, Path)):
        return _of_object(model, layer)
    text = str(model)
    scheme, colon, rest = text.partition(":")
    if colon and scheme in SOURCES and scheme not in ("hf", "array"):
        raise _no_output(text, f"a {scheme}: model")
    if _is_language_model(text):
        progress("read the unembedding", 0, 1)
        found = _language_model(text)
        progress("read the unembedding", 1, 1)
        return found
    path = Path(rest if scheme == "array" and colon else text)
    if path.is_dir() and (path / "config.json").is_file():
        raise RepalignError(f"{path} is a folder of a model", expected="hf:folder", got=text, remedy=f"write hf:{path.absolute()}")
    if not path.exists() and not path.suffix and "#" not in text:
        parse_spec(text)  # which says how models are named
    return _named(str(path), layer, text)


def _of_object(model: Any, layer: str | None) -> Vocabulary:
    """What is in memory: a vocabulary, a mapping of words to vectors, or what the reader of features takes."""
    if isinstance(model, Vocabulary):
        return model
    if isinstance(model, Mapping) and all(np.ndim(vector) == 1 for vector in model.values()):
        if len({len(vector) for vector in model.values()}) != 1:
            raise RepalignError("x: not vectors of one width", expected="a vector for each word, all of one width")
        return Vocabulary.of(np.stack([np.asarray(vector) for vector in model.values()]), model)
    return _named({"x": model}, layer, "x")


def _named(source: Any, layer: str | None, called: str) -> Vocabulary:
    """One layer whose rows have names."""
    from repalign.experiments.inputs import read_inputs

    found = read_inputs([source] if isinstance(source, str) else source, None if layer is None else [layer])
    if found.ids is None:
        raise RepalignError(
            f"{called}: its rows have no names", expected="ids, which pairs name", got=found.how[0],
            remedy="store names with them, for instance np.savez('x.npz', x=array, ids=names)",
        )  # fmt: skip
    what = found.names[0] if layer is None else f"{found.names[0]}, layer {found.layers[0]}"
    return Vocabulary.of(found.arrays[0], found.ids, what)


def _language_model(model: str) -> Vocabulary:
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM

    from repalign.sources import Context, ModelEntry, parse_spec
    from repalign.sources.hf import load_model, read_config
    from repalign.sources.hf_text import is_causal
    from repalign.sources.model import library_errors
    from repalign.sources.tokenizer import load_tokenizer

    spec, entry = parse_spec(model), ModelEntry(model)
    spec.source.check(spec, entry)
    context = Context("cpu", "float32", revision=spec.source.revision(spec, entry))
    config = read_config(spec, context)
    causal = is_causal(config)
    if not causal and type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise _no_output(model, f"{type(config).__name__}, which predicts no token")
    tokenizer = load_tokenizer(spec, context).tokenizer
    with library_errors(entry.label, "loading it", Unavailable, alone=True):
        loaded = load_model(AutoModelForCausalLM if causal else AutoModelForMaskedLM, spec, context, config, entry.label)
    head = loaded.model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    path = next((name for name, p in loaded.model.named_parameters(remove_duplicate=False) if p is weight), "")
    names = {name for name, p in loaded.model.named_parameters(remove_duplicate=False) if p is weight}
    if weight is None or (names and names <= set(loaded.missing)):
        raise _no_output(model, f"its files have no {path}" if path else "no output embeddings")
    tied = weight is loaded.model.get_input_embeddings().weight
    x = weight.detach().float().numpy().copy()  # (V, d); half precision is read as float32
    kind = "tied to its embeddings" if tied else "not tied to its embeddings"
    stored = str(loaded.stored).removeprefix("torch.")
    facts = {"model": model, "revision": context.revision, "matrix": path, "tied": tied, "stored_dtype": stored}
    return Vocabulary(x, _rows(tokenizer, len(x)), f"the unembedding matrix of {model} ({kind})", True, facts | _capped(config))


def _capped(config: Any) -> dict[str, float]:
    """What a model does to its logits behind the matrix, where log odds are then no longer linear in a hidden state."""
    cap = getattr(config.get_text_config(), "final_logit_softcapping", None)
    return {} if not cap else {"final_logit_softcapping": float(cap)}


def _rows(tokenizer: Any, size: int) -> Callable[[str], int | str]:
    """The token of a name behind a space: the ids of "the name" behind those of "the"."""
    front, unknown = list(tokenizer("the", add_special_tokens=False)["input_ids"]), tokenizer.unk_token_id

    def row(name: str) -> int | str:
        ids = list(tokenizer(f"the {name}", add_special_tokens=False)["input_ids"])
        behind = (
            ids[len(front) :]
            if ids[: len(front)] == front
            else list(tokenizer(f" {name}", add_special_tokens=False)["input_ids"])
        )
        if not behind or behind == [unknown]:
            return NO_TOKEN
        return SEVERAL if len(behind) > 1 or behind[0] >= size else int(behind[0])

    known: dict[str, int | str] = {}
    return lambda name: known[name] if name in known else known.setdefault(name, row(name))


def _no_output(model: str, got: str) -> RepalignError:
    return RepalignError(
        f"model {model} has no output matrix", expected="a language model (hf:org/name) that predicts tokens", got=got,
        remedy="of any other model give a file of stored features with ids, whose rows pairs name",
    )  # fmt: skip


# --- hidden states of contexts -------------------------------------------------------------------


def read_states(model: Any, texts: Sequence[str], states: Path | None, width: int, progress: Progress = silent) -> np.ndarray:
    """The hidden state of each context (n, d): of a file whose ids they are, or the last layer's at the last token of each text.

    Raises RepalignError: no file for a model that reads no text, contexts that are not in it, another width.
    """
    if states is None and not _is_language_model(model):
        raise RepalignError(
            f"{model if isinstance(model, (str, Path)) else 'x'}: contexts need hidden states", got="none",
            expected="states, a file of features whose ids are the contexts", remedy="or a language model (hf:), which reads them",
        )  # fmt: skip
    if states is not None:
        stored = _named(str(states), None, str(states))
        rows = [stored.row(text) for text in texts]
        if absent := [text for text, row in zip(texts, rows, strict=True) if isinstance(row, str)]:
            raise RepalignError(f"{states}: no hidden state of {len(absent)} contexts", got=f"none of {json.dumps(absent[0])}",
                                expected="contexts as ids")  # fmt: skip
        x, what = stored.x[rows], str(states)
    else:
        from repalign.dataset import Dataset
        from repalign.sources import ModelEntry, extract

        entry = ModelEntry(model, pooling="last", layers=(-1,))
        (found,) = extract(Dataset.of(text=list(texts)), [entry], device="cpu", dtype="float32", progress=progress)
        x, what = found.load(found.layers[-1]).double().numpy(), model
    if x.shape[1] != width:
        raise RepalignError(
            f"{what}: hidden states do not fit the vocabulary", expected=f"width {width:,}", got=f"width {x.shape[1]:,}"
        )
    return np.asarray(x, np.float64)
