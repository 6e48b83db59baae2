"""Fields of a study file that are handed on to what reads corpora and datasets; tests/test_adding.py holds all the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from repalign.competence import BitsProtocol
from repalign.dataset import DatasetConfig
from repalign.dataset.config import SOURCES
from repalign.experiments import EXPERIMENTS
from repalign.sources import ModelEntry
from repalign.study import config
from repalign.study.experiment import config_of
from repalign.study.members import Competence
from repalign.text import told_of


def test_every_field_of_bits_per_byte_is_handed_on(tmp_path, monkeypatch):
    given = {
        "corpus": "c.csv", "column": "text", "documents": "d", "split": "s", "revision": "r", "context": 8, "stride": 4,
        "max_tokens": 99, "batch_size": 3,
    }  # fmt: skip
    assert set(given) == set(config.BitsConfig.model_fields)
    called: dict[str, Any] = {}

    def named_corpus(*arguments: Any, **options: Any) -> str:
        called.update(options, name=arguments[0], column=arguments[1])
        return "corpus"

    def bits_per_byte(spec: str, corpus: Any, protocol: BitsProtocol, **options: Any) -> Any:
        called.update(options, context=protocol.context, stride=protocol.stride, max_tokens=protocol.max_tokens)
        return SimpleNamespace(bits_per_byte=1.5)

    monkeypatch.setattr("repalign.competence.corpus.named_corpus", named_corpus)
    monkeypatch.setattr("repalign.competence.bits_per_byte", bits_per_byte)
    block = config.CompetenceConfig(bits_per_byte=config.BitsConfig(**given))
    competence = Competence(block, tmp_path, tmp_path / "kept", config.ExtractConfig(device="cpu", dtype="bfloat16"))
    causal: Any = SimpleNamespace(facts={"bits_per_byte": {"definition": "of the stimuli"}})
    (score,) = competence._bits(ModelEntry("hf:org/model"), causal)
    assert score.value == 1.5 and score.source == "c.csv"
    assert called["name"] == str(tmp_path / "c.csv")
    assert {k: called[k] for k in given if k != "corpus"} == {k: v for k, v in given.items() if k != "corpus"}
    assert (called["device"], called["dtype"]) == ("cpu", "bfloat16")


def test_every_field_of_a_dataset_is_a_source_an_option_of_one_or_a_selection():
    options = {name for names in SOURCES.values() for name in names}
    assert set(DatasetConfig.model_fields) == {*SOURCES, *options, "ids", "sample", "distort"}


def test_every_field_is_described():
    """In the schema, of which editors, the reference and errors tell; and nothing is described that is no field."""
    from repalign.prh.colour_study import ColourConfig
    from repalign.prh.theory_study import TheoryConfig

    ours = [config_of(name) for name in EXPERIMENTS]
    for whole in (config.schema(), *(block.model_json_schema() for block in (ColourConfig, TheoryConfig, *ours))):
        blocks = [whole, *whole.get("$defs", {}).values()]
        fields = [(b.get("title"), name, field) for b in blocks for name, field in b.get("properties", {}).items()]
        missing = [(title, name) for title, name, field in fields if not field.get("description")]
        assert not missing
    for cls in (c for c in vars(config).values() if isinstance(c, type) and issubclass(c, config.Block)):
        assert told_of(cls)[1].keys() <= cls.model_fields.keys(), cls
