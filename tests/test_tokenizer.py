"""Which ids a text model is fed: those of its own tokenizer file, whatever the library makes of it."""

from __future__ import annotations

import io
import json
import tomllib
from pathlib import Path

import pytest
import sentencepiece
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre

import tiny_models as tiny
from repalign.errors import RepalignError, Unavailable
from repalign.sources import Context, ModelEntry, extract, parse_spec
from repalign.sources import tokenizer as _tokenizer
from repalign.sources.tokenizer import PROBES, load_tokenizer

TEXTS = [*PROBES, *tiny.CAPTIONS]
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>", "[CLS]", "[SEP]"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def read(folder):
    return load_tokenizer(parse_spec(f"hf:{folder}"), Context("cpu", "auto"))


def put(folder, model_type: str, stated: dict | None = None, **files: bytes):
    """A folder with a configuration and the files of a tokenizer; no weights."""
    from transformers import AutoConfig

    folder.mkdir(parents=True, exist_ok=True)
    AutoConfig.for_model(model_type).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "<unk>", **(stated or {})}))
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


# --- tokenizer.json ------------------------------------------------------------------------------


def bpe(pre_tokenizer, normalizer=None, **options) -> Tokenizer:
    made = Tokenizer(models.BPE(**options))
    made.pre_tokenizer = pre_tokenizer  # pyright: ignore
    if normalizer is not None:
        made.normalizer = normalizer  # pyright: ignore
    alphabet = pre.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    made.decoder = decoders.ByteLevel()  # pyright: ignore
    return made


def wordpiece(lower: bool) -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))  # pyright: ignore
    made.normalizer = normalizers.BertNormalizer(lowercase=lower)  # pyright: ignore
    made.pre_tokenizer = pre.BertPreTokenizer()  # pyright: ignore
    made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False))
    return made


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])  # pyright: ignore
    made.pre_tokenizer = pre.Metaspace()  # pyright: ignore
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return made


DIGITS = pre.Sequence([pre.Digits(individual_digits=True), pre.Split(Regex(r"\s+"), "isolated"), pre.ByteLevel(use_regex=False)])
KINDS = {
    "byte level": lambda: bpe(pre.ByteLevel(add_prefix_space=False)),
    "with a space in front": lambda: bpe(pre.ByteLevel(add_prefix_space=True)),
    "digits one by one": lambda: bpe(DIGITS, normalizers.NFC()),
    "metaspace": lambda: bpe(pre.Metaspace(), unk_token="<unk>"),
    "word pieces": lambda: wordpiece(lower=True),
    "cased word pieces": lambda: wordpiece(lower=False),
    "unigram": unigram,
}
MODELS = ("qwen2", "gpt2", "llama", "gemma", "olmo", "gpt_neox", "bloom", "mistral", "bert", "roberta", "clip", "xlm-roberta", "t5")


@pytest.fixture(scope="module")
def made():
    return {kind: make() for kind, make in KINDS.items()}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("model_type", MODELS)
def test_ids_are_those_of_tokenizer_json(model_type, kind, made, tmp_path):
    """Any tokenizer beside any architecture: the class that the library takes for it is not asked."""
    file = made[kind]
    file.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 1)])
    found = read(put(tmp_path, model_type, tokenizer__json=file.to_str().encode()))
    want = [e.ids for e in file.encode_batch(TEXTS)]
    assert found.tokenizer(TEXTS)["input_ids"] == want
    assert [found.tokenizer(t, add_special_tokens=False)["input_ids"] for t in TEXTS] == [ids[1:-1] for ids in want]
    assert found.said.startswith("tokenizer.json; special tokens as it puts them; ")


def test_the_library_gives_other_ids_in_some_of_them(made, tmp_path):
    """The test above can fail: what the library loads is not what the file says, and that is told."""
    from transformers import AutoTokenizer

    folder = put(tmp_path, "qwen2", tokenizer__json=made["metaspace"].to_str().encode())
    library = AutoTokenizer.from_pretrained(folder)
    assert library(TEXTS)["input_ids"] != [e.ids for e in made["metaspace"].encode_batch(TEXTS)]
    found = read(folder)
    assert found.own and found.said.endswith("transformers' Qwen2Tokenizer gives other ids for the probe")
    same = read(put(tmp_path / "b", "bloom", tokenizer__json=made["metaspace"].to_str().encode()))
    assert not same.own and same.said.endswith("gives the same ids for the probe")
    assert same.digest == found.digest  # of the ids, not of who gives them
    other = read(put(tmp_path / "c", "bloom", tokenizer__json=made["byte level"].to_str().encode()))
    assert other.digest != same.digest and len(other.digest) == 16


@pytest.mark.parametrize(
    ("kind", "stated", "change", "around"),
    [
        ("byte level", {"bos_token": "<s>", "add_bos_token": True}, None, [3]),
        ("byte level", {"bos_token": "<s>", "add_bos_token": False}, None, []),
        ("byte level", {"add_prefix_space": True}, ("pre_tokenizer", "add_prefix_space", True), []),
        ("word pieces", {"do_lower_case": False}, ("normalizer", "lowercase", False), []),
        ("cased word pieces", {"do_lower_case": True}, ("normalizer", "lowercase", True), []),
        ("cased word pieces", {"strip_accents": True}, ("normalizer", "strip_accents", True), []),
    ],
)
def test_what_the_configuration_states_stands_over_the_file(kind, stated, change, around, made, tmp_path):
    """Options that the fast classes have always taken: BOS or none, a space in front, letters made small."""
    said = json.loads(made[kind].to_str())
    said["post_processor"] = None
    if change is not None:
        part, field, value = change
        assert said[part][field] != value
    (tmp_path / "m").mkdir()
    stated = {**stated, "tokenizer_class": "PreTrainedTokenizerFast"}
    folder = put(tmp_path / "m", "llama", stated, tokenizer__json=json.dumps(said).encode())
    if change is not None:
        said[part][field] = value
    want = [[*around, *e.ids] for e in Tokenizer.from_str(json.dumps(said)).encode_batch(TEXTS)]
    assert read(folder).tokenizer(TEXTS)["input_ids"] == want


def test_a_statement_against_the_file_is_told(made, tmp_path):
    """As transformers 5 has it, the file's own way of adding tokens stands over add_bos_token; both are in the facts."""
    file = Tokenizer.from_str(made["byte level"].to_str())
    file.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])  # pyright: ignore
    stated = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False, "add_eos_token": False}
    found = read(put(tmp_path, "llama", stated, tokenizer__json=file.to_str().encode()))
    assert found.tokenizer("A dog.")["input_ids"] == file.encode("A dog.").ids
    assert "special tokens as it puts them, where tokenizer_config.json states another add_bos_token; " in found.said


def test_a_token_that_only_the_class_knows_is_not_put_in_front(made, tmp_path):
    """CLIP's class begins with <|startoftext|>; a file without it would get a number that the model has no row for."""
    file = Tokenizer.from_str(made["byte level"].to_str())
    file.post_processor = None  # pyright: ignore
    ids = read(put(tmp_path, "clip", tokenizer__json=file.to_str().encode())).tokenizer(TEXTS)["input_ids"]
    assert max(map(max, ids)) < file.get_vocab_size()


def test_a_model_is_fed_these_ids_and_scored_on_them(made, tmp_path):
    """Hidden states and bits per byte of a Qwen2 with a tokenizer of its own, against a plain loop over its file."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    file = made["metaspace"]
    file.post_processor = None
    config = Qwen2Config(
        vocab_size=file.get_vocab_size(), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256,
    )  # fmt: skip
    model = tiny._randomise(Qwen2ForCausalLM(config)).eval()
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m/tokenizer.json").write_text(file.to_str())
    (tmp_path / "m/tokenizer_config.json").write_text(json.dumps({"unk_token": "<unk>"}))
    data = tiny.dataset(tmp_path / "data")
    got = extract(data, [ModelEntry(f"hf:{tmp_path / 'm'}", pooling="last")], tmp_path / "store")[0]
    states, nats = [], 0.0
    with torch.no_grad():
        for text in tiny.CAPTIONS:
            ids = torch.tensor([file.encode(text).ids])
            out = model(ids, labels=ids, output_hidden_states=True)
            states.append(out.hidden_states[-2][0, -1])
            nats += float(out.loss) * (ids.shape[1] - 1)
    torch.testing.assert_close(got.load("block.0"), torch.stack(states), rtol=1e-4, atol=1e-5)
    n_bytes = sum(len(t.encode()) for t in tiny.CAPTIONS)
    assert got.record.scores["bits_per_byte"] == pytest.approx(nats / 0.6931471805599453 / n_bytes, rel=1e-4)
    assert got.facts["tokenizer"].endswith("transformers' Qwen2Tokenizer gives other ids for the probe")
    assert got.facts["tokenizer_probe"] == read(tmp_path / "m").digest


@pytest.mark.parametrize("ours", [True, False])
def test_what_a_former_version_fed_otherwise_is_not_reused(ours, made, tmp_path, monkeypatch):
    """Its facts have no digest of a probe. Where the library's ids are those of the file, its features are today's."""
    from transformers import AutoTokenizer

    folder = tiny.llama(tmp_path / "m", bos=False)
    if not ours:  # GPT-2's own splitting in place of the file's
        file = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        file["pre_tokenizer"]["add_prefix_space"] = True
        (folder / "tokenizer.json").write_text(json.dumps(file), "utf-8")
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "Qwen2Tokenizer"}), "utf-8")
    data, entry = tiny.dataset(tmp_path / "data"), ModelEntry(f"hf:{folder}", sink="keep")
    with monkeypatch.context() as former:
        former.setattr(_tokenizer.Reading, "facts", property(lambda self: {}))
        library = _tokenizer.Reading(AutoTokenizer.from_pretrained(folder), "the library's")
        former.setattr("repalign.sources.hf_text.load_tokenizer", lambda *given: library)
        extract(data, [entry], tmp_path / "store")
    if ours:
        assert "tokenizer_probe" not in extract(data, [entry], tmp_path / "store")[0].facts
        return
    with pytest.raises(RepalignError, match=r"former version stored features of other tokens(.|\n)*remove that folder"):
        extract(data, [entry], tmp_path / "store")


def test_ids_that_the_model_has_no_embedding_for_are_told(made, tmp_path):
    tiny.gpt2(tmp_path / "m")
    (tmp_path / "m/tokenizer.json").write_text(made["byte level"].to_str())
    with pytest.raises(Unavailable, match=r"the probe that the model has no embedding for\n  expected: ids below 300\n  got: \d+"):
        extract(tiny.dataset(tmp_path / "data"), [f"hf:{tmp_path / 'm'}"], tmp_path / "store")


# --- a sentencepiece file alone ------------------------------------------------------------------


def pieces(kind: str, **options) -> bytes:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore
        sentence_iterator=iter(TEXTS), model_writer=out, vocab_size=400 if kind == "bpe" else 120, model_type=kind,
        minloglevel=2, byte_fallback=kind == "bpe", **options,
    )  # fmt: skip
    return out.getvalue()


@pytest.fixture(scope="module")
def trained():
    return {
        "bpe": pieces("bpe"),
        "bpe as it is": pieces("bpe", normalization_rule_name="identity", remove_extra_whitespaces=False),
        "unigram": pieces("unigram"),
    }


FAMILIES = {  # model type -> its file, what tokenizer_config.json states, how its numbers differ, what stands around
    "llama": ("tokenizer.model", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}, 0, ([1], [])),
    "mistral": ("tokenizer.model", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}, 0, ([1], [])),
    "gemma": ("tokenizer.model", {"bos_token": "<s>", "tokenizer_class": "GemmaTokenizer"}, 0, ([], [])),
    "t5": ("spiece.model", {"tokenizer_class": "T5Tokenizer"}, 0, ([], [2])),
    "xlm-roberta": ("sentencepiece.bpe.model", {"tokenizer_class": "XLMRobertaTokenizer"}, 1, ([0], [2])),
}


@pytest.mark.parametrize("kind", ["bpe", "bpe as it is", "unigram"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_ids_are_those_of_sentencepiece(family, kind, trained, tmp_path):
    """With its own normalisation: the library's conversion loses it (two spaces, a new line, full-width letters)."""
    file, stated, shift, (before, behind) = FAMILIES[family]
    found = read(put(tmp_path, family, stated, **{file: trained[kind]})).tokenizer
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained[kind])  # pyright: ignore
    number = {0: 3} if shift else {}  # the unknown piece of the shifted families
    want = [[number.get(i, i + shift) for i in ids] for ids in processor.encode(TEXTS)]
    assert found(TEXTS, add_special_tokens=False)["input_ids"] == want
    assert found(TEXTS)["input_ids"] == [[*before, *ids, *behind] for ids in want]
    short = found(TEXTS[0], truncation=True, max_length=6)["input_ids"]
    assert short == [*before, *want[0][: 6 - len(before) - len(behind)], *behind]


def test_the_library_gives_other_ids_than_sentencepiece(trained, tmp_path):
    from transformers import AutoTokenizer

    folder = put(tmp_path, "llama", FAMILIES["llama"][1], tokenizer__model=trained["bpe"])
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained["bpe"])  # pyright: ignore
    library = AutoTokenizer.from_pretrained(folder)
    assert library("two  spaces", add_special_tokens=False)["input_ids"] != processor.encode("two  spaces")
    assert read(folder).said == (
        "tokenizer.model by sentencepiece, numbers and special tokens of transformers' LlamaTokenizer, "
        "which gives other ids for the probe"
    )


def test_a_class_that_changes_letters_before_sentencepiece_is_refused(trained, tmp_path):
    folder = put(tmp_path, "xlnet", {"tokenizer_class": "XLNetTokenizer"}, spiece__model=trained["unigram"])
    with pytest.raises(Unavailable, match=r"changes letters before spiece\.model(.|\n)*with a tokenizer\.json"):
        read(folder)


@pytest.mark.parametrize("package", ["sentencepiece", "protobuf"])
def test_the_package_that_is_missing_is_named(package, trained, tmp_path, monkeypatch):
    """The library says that tiktoken is required, which leads astray."""
    monkeypatch.setattr(_tokenizer, "is_installed", lambda module: module != {"protobuf": "google.protobuf"}.get(package, package))
    folder = put(tmp_path, "llama", tokenizer__model=trained["bpe"])
    with pytest.raises(Unavailable, match=rf"{package} not installed(.|\n)*do: python -m pip install {package}$"):
        read(folder)


def test_the_extra_for_models_brings_what_the_files_need():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    assert {"sentencepiece", "protobuf"} <= {line.partition(">")[0] for line in project["optional-dependencies"]["models"]}
