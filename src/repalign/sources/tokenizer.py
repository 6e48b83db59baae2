"""The tokenizer of a text model: the ids that its own file gives, which are not always those of the library.

transformers 5 builds the tokenizer of a named class anew from the vocabulary of `tokenizer.json`, with the class's own
normalisation and splitting into words, and converts a sentencepiece file in like manner. Where the file says otherwise, the
model was trained on other ids than come out. So here the file is read itself:

| beside the model | ids of a text | special tokens around it |
| --- | --- | --- |
| `tokenizer.json` | those of `tokenizers` with that file, under the options of tokenizer_config.json | those of the file (1) |
| a sentencepiece file alone | sentencepiece's own pieces, numbered as in the library's vocabulary | the library's |
| neither, or a class with code of its own | the library's | the library's |

(1) Where the file says nothing of them those that tokenizer_config.json states (add_bos_token, add_eos_token), or the class's.
The facts say which of them it was, whether the library gives the same ids for the probe, and a digest of these ids.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repalign.errors import Unavailable, first_line, is_installed
from repalign.sources.hub import at, hub_errors
from repalign.sources.model import Context
from repalign.sources.source import Spec

PROBE = "A brown dog runs across the wide green field."
# Where tokenizers differ: spaces, lines, digits, contractions, compatibility and decomposed characters, other scripts.
PROBES = (
    PROBE,
    "  Two  spaces, a tab\there\nand a new line ",
    "Don't say you're I'LL; 1234567 of 3.14, 50% - UPPER MiXed_case snake-case (a) [b]",
    "Café naïve \ufb01ne \u00bd \u03a9mega e\u0301a\u030a",
    "\u65e5\u672c\u8a9e\u306e\u6587 \u0440\u0443\u0441 \u0627\u0644\u0639\u0631 \U0001f642\U0001f3fd",
    "<html> & http://x.y/z?a=b ``quoted'' \u201ctext\u201d",
)
FAST = "tokenizer.json"
PIECES = ("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model", "sentencepiece.model")
AROUND = ("add_bos_token", "add_eos_token")
# Options of tokenizer_config.json that stand over tokenizer.json -> where there: the node's type and its field.
OPTIONS = {
    "do_lower_case": ("BertNormalizer", "lowercase"),
    "strip_accents": ("BertNormalizer", "strip_accents"),
    "tokenize_chinese_chars": ("BertNormalizer", "handle_chinese_chars"),
    "add_prefix_space": ("ByteLevel", "add_prefix_space"),
}
GIVES = {True: "gives the same ids for the probe", False: "gives other ids for the probe"}


@dataclass(frozen=True)
class Reading:
    """How a model reads text.

    * `tokenizer`: called and asked as those of transformers are; `own`: whether it is another than the library's.
    * `said`: in words, whose ids they are; `digest`: of the ids of the probe.
    """

    tokenizer: Any
    said: str
    own: bool = False

    @property
    def digest(self) -> str:
        return digest(self.tokenizer)

    @property
    def facts(self) -> dict[str, str]:
        return {"tokenizer": self.said, "tokenizer_probe": self.digest}


def digest(tokenizer: Any) -> str:
    """16 digits of SHA-256 over the ids of the probe texts, special tokens and all."""
    return hashlib.sha256(json.dumps(_ids(tokenizer)).encode()).hexdigest()[:16]


def load_tokenizer(spec: Spec, context: Context, folder: str = "") -> Reading:
    """The tokenizer beside a model, in a subfolder if it is there; Unavailable if there is none that can be trusted."""
    there = _files(spec, context, folder)
    loaded = _library(spec, context, folder, there)
    loaded.truncation_side = "right"
    with hub_errors(spec):
        reading = _reading(spec, loaded, there)
    return _knowing(reading, str(spec))


def given_tokenizer(tokenizer: Any, label: str) -> Reading:
    """A tokenizer that is in memory; a copy of it, whose state our calls may change."""
    own = copy.deepcopy(tokenizer)
    own.truncation_side = "right"
    return _knowing(Reading(own, f"transformers' {type(own).__name__}, as it was given"), label)


def _knowing(reading: Reading, label: str) -> Reading:
    ids = reading.tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    if set(ids) <= {reading.tokenizer.unk_token_id}:  # without files some classes make a tokenizer that knows nothing
        raise no_tokenizer(label, f"it makes {ids[:4]} of {PROBE!r}")
    return reading


def _library(spec: Spec, context: Context, folder: str, there: dict[str, Path]) -> Any:
    """The tokenizer that transformers makes of the files."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    pieces = FAST not in there and any(name in there for name in PIECES)
    needed = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
    missing = [name for name, module in needed.items() if not is_installed(module)]
    if pieces and missing:
        raise no_tokenizer(
            spec, f"{' and '.join(missing)} not installed, which its sentencepiece file needs",
            remedy=f"python -m pip install {' '.join(missing)}",
        )  # fmt: skip
    with hub_errors(spec):
        try:
            return AutoTokenizer.from_pretrained(
                spec.path, trust_remote_code=context.trust_remote_code, **({"subfolder": folder} if folder else {}),
                **at(spec, context.revision),
            )  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:  # where files are lacking
            if FAST not in there:
                raise no_tokenizer(spec, first_line(error)) from error
            return PreTrainedTokenizerFast(  # the class does not take the file: that of no class does
                tokenizer_file=str(there[FAST]), **_plain_options(_read(there.get("tokenizer_config.json")))
            )


def _plain_options(stated: dict[str, Any]) -> dict[str, Any]:
    """Of tokenizer_config.json the special tokens and the length."""
    tokens = {name: t.get("content") if isinstance(t, dict) else t for name, t in stated.items() if name.endswith("_token")}
    kept = {name: t for name, t in tokens.items() if isinstance(t, str)}
    length = stated.get("model_max_length")
    return kept if length is None else {**kept, "model_max_length": length}


def _reading(spec: Spec, loaded: Any, there: dict[str, Path]) -> Reading:
    kind = f"transformers' {type(loaded).__name__}"
    foreign = not type(loaded).__module__.startswith("transformers.")
    if FAST in there:
        own, around = _of_json(there[FAST], _read(there.get("tokenizer_config.json")), loaded)
        if foreign or not loaded.is_fast:
            other = "" if _ids(own, False) == _ids(loaded, False) else f"; {FAST} beside it gives other ids for the probe"
            return Reading(loaded, f"{kind}, by code of its own{other}")
        same = _ids(own) == _ids(loaded)
        return Reading(own, f"{FAST}; special tokens as {around}; {kind} {GIVES[same]}", own=not same)
    file = next((there[name] for name in PIECES if name in there), None)
    processor = None if file is None else _sentencepiece(file)
    if file is None or processor is None:
        return Reading(loaded, f"{kind}; there is no {FAST} and no sentencepiece file to compare it with")
    if foreign or not loaded.is_fast:
        words = PROBE.lower().rstrip(".")  # what code of its own would change least
        pieces = [processor.id_to_piece(i) for i in processor.encode(words)]
        its = loaded.convert_ids_to_tokens(loaded(words, add_special_tokens=False)["input_ids"])
        gives = "gives its pieces for plain words" if its == pieces else "gives other pieces than its for plain words"
        return Reading(loaded, f"{kind}, which runs {file.name} by code of its own and {gives}")
    return _of_pieces(spec, loaded, processor, file.name, kind)


# --- tokenizer.json ------------------------------------------------------------------------------


def _of_json(file: Path, stated: dict[str, Any], loaded: Any) -> tuple[Any, str]:
    """What `tokenizers` makes of the file, and in words who puts special tokens around a text."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer.from_str(json.dumps(_with_options(json.loads(file.read_text("utf-8")), stated)))
    own.no_truncation()
    own.no_padding()
    for number, token in sorted(loaded.added_tokens_decoder.items()):
        if str(token) in _named(stated) and own.token_to_id(str(token)) is None and number == own.get_vocab_size():
            own.add_tokens([token if isinstance(token, AddedToken) else AddedToken(str(token), special=True)])
    said = {name: stated[name] for name in AROUND if isinstance(stated.get(name), bool)}
    silent = own.post_processor is None
    options = said if silent else {}
    by_library = silent and not options and loaded.is_fast
    if by_library:  # and where the tokens that the library puts around a text have the same numbers in the file
        around = set(loaded(PROBE)["input_ids"]) & set(loaded.all_special_ids)
        by_library = all(own.token_to_id(loaded.convert_ids_to_tokens(i)) == i for i in around)
    made = PreTrainedTokenizerFast(
        tokenizer_object=own,
        model_max_length=loaded.model_max_length,
        padding_side=loaded.padding_side,
        truncation_side="right",
        model_input_names=list(loaded.model_input_names),
        **options,
        # Not those that a class takes for granted and the file has not: they would get numbers beyond the model's.
        **{name: t for name, t in loaded.special_tokens_map.items() if isinstance(t, str) and own.token_to_id(t) is not None},
    )
    if by_library:
        made.backend_tokenizer.post_processor = loaded.backend_tokenizer.post_processor
    if silent:
        return made, "tokenizer_config.json states" if options else "the library adds them" if by_library else "it puts them: none"
    before, behind = _frame(made)
    does = {"add_bos_token": made.bos_token_id in before, "add_eos_token": made.eos_token_id in behind}
    other = [name for name, value in said.items() if value != does[name]]
    return made, "it puts them" + (f", where tokenizer_config.json states another {' and '.join(other)}" if other else "")


def _named(stated: dict[str, Any]) -> set[str]:
    """The tokens that tokenizer_config.json names."""
    listed = [*(stated.get("added_tokens_decoder") or {}).values(), *(stated.get("additional_special_tokens") or [])]
    listed += [token for name, token in stated.items() if name.endswith("_token")]
    return {str(t.get("content")) if isinstance(t, dict) else str(t) for t in listed}


def _with_options(file: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json under the options that tokenizer_config.json states over it, as the fast classes have always done."""
    for option, (kind, field) in OPTIONS.items():
        node = file.get("normalizer" if kind == "BertNormalizer" else "pre_tokenizer") or {}
        if isinstance(stated.get(option), bool) and node.get("type") == kind:
            node[field] = stated[option]
    return file


# --- a sentencepiece file ------------------------------------------------------------------------


def _of_pieces(spec: Spec, loaded: Any, processor: Any, name: str, kind: str) -> Reading:
    """sentencepiece's own pieces under the library's numbers; Unavailable where the library has none for them."""
    if getattr(loaded, "do_lower_case", False) or not getattr(loaded, "keep_accents", True):
        raise no_tokenizer(
            spec, f"{kind} changes letters before {name} reads them, and there is no {FAST} that says how",
            remedy=f"name a revision or a folder with a {FAST} (made by the library that the model was trained with)",
        )  # fmt: skip
    known = loaded.get_vocab()
    numbers = [known.get(processor.id_to_piece(i)) for i in range(processor.get_piece_size())]
    unknown = known.get(processor.id_to_piece(processor.unk_id()), loaded.unk_token_id)
    for i, number in enumerate(numbers):
        if number is None and not (processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i)):
            raise no_tokenizer(spec, f"{kind} has no number for {processor.id_to_piece(i)!r}, piece {i} of {name}")
    own = Pieces(loaded, processor, [unknown if number is None else number for number in numbers])
    same = _ids(own) == _ids(loaded)
    return Reading(own, f"{name} by sentencepiece, numbers and special tokens of {kind}, which {GIVES[same]}", own=not same)


class Pieces:
    """A sentencepiece file as a tokenizer: its own pieces, between the special tokens that the library puts around a text.

    Everything else that is asked of it is the library's.
    """

    is_fast = False  # it does not tell which characters a token stands for

    def __init__(self, library: Any, processor: Any, numbers: Sequence[int]) -> None:
        self.library, self.processor, self.numbers = library, processor, numbers
        self.before, self.behind = _frame(library)

    def __getattr__(self, name: str) -> Any:
        if name in ("library", "processor"):  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.library, name)

    def __call__(
        self, text: str | Sequence[str], add_special_tokens: bool = True, truncation: bool = False,
        max_length: int | None = None, **_: Any,
    ) -> dict[str, Any]:  # fmt: skip
        if isinstance(text, str):
            return {"input_ids": self([text], add_special_tokens, truncation, max_length)["input_ids"][0]}
        before, behind = (self.before, self.behind) if add_special_tokens else ([], [])
        most = max_length - len(before) - len(behind) if truncation and max_length is not None else None
        pieces = [[self.numbers[i] for i in ids][:most] for ids in self.processor.encode(list(text))]
        return {"input_ids": [[*before, *ids, *behind] for ids in pieces]}


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before and behind those of a text."""
    whole, plain = (list(tokenizer(PROBE, add_special_tokens=s)["input_ids"]) for s in (True, False))
    start = next((i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain), 0)
    return whole[:start], whole[start + len(plain) :]


def _sentencepiece(file: Path) -> Any | None:
    """What sentencepiece makes of a file; None where it is not of its kind (tiktoken has files of that name too)."""
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError):
        return None


# --- files ---------------------------------------------------------------------------------------


def _files(spec: Spec, context: Context, folder: str) -> dict[str, Path]:
    """The files that a tokenizer is made of, of those that are there."""
    from transformers.utils.hub import cached_file

    def find(name: str) -> Path | None:
        if spec.is_local:
            path = Path(spec.path) / folder / name
            return path if path.is_file() else None
        found = cached_file(
            spec.path, name, subfolder=folder, **at(spec, context.revision),
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        return None if found is None else Path(found)

    with hub_errors(spec):
        there = {name: find(name) for name in (FAST, "tokenizer_config.json")}
        if there[FAST] is None:
            there |= {name: find(name) for name in PIECES}
    return {name: path for name, path in there.items() if path is not None}


def _read(config: Path | None) -> dict[str, Any]:
    return {} if config is None else json.loads(config.read_text("utf-8"))


def _ids(tokenizer: Any, special: bool = True) -> list[list[int]]:
    """The ids of the probe texts."""
    return [list(map(int, tokenizer(text, add_special_tokens=special)["input_ids"])) for text in PROBES]


def no_tokenizer(spec: Spec | str, got: str, remedy: str | None = None) -> Unavailable:
    return Unavailable(
        f"model {spec}: its tokenizer cannot be loaded: {got}",
        expected="tokenizer.json and tokenizer_config.json, or a sentencepiece file, beside the model", got=got,
        remedy=remedy or "save it there with tokenizer.save_pretrained(folder)",
    )  # fmt: skip


# --- what the tokenizer and the configuration say together ---------------------------------------


def context_length(config: Any, tokenizer: Any) -> int | None:
    """The most tokens that the model takes; None if there is no limit, as with relative positions."""
    config = getattr(config, "text_config", None) or config
    stated = [getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    limits = [int(s) for s in stated if s is not None and 0 < s < 10**9]  # tokenizers say 1e30 for no limit
    return min(limits, default=None)


def pad_id(config: Any, tokenizer: Any) -> int:
    """A token to pad with that the model has; the mask leaves it out, so any will do."""
    config = getattr(config, "text_config", None) or config
    size = getattr(config, "vocab_size", 0)
    known = (tokenizer.pad_token_id, getattr(config, "pad_token_id", None), tokenizer.eos_token_id, tokenizer.unk_token_id)
    return next((int(i) for i in known if isinstance(i, int) and 0 <= i < size), 0)
