"""What a study needs before it runs: facts of known models recounted, every source, sums, shortages, no network."""

from __future__ import annotations

import json
import math
import shutil
import socket
import threading
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import tiny_models as tiny
from repalign.comparison import Preprocess, compare, in_memory
from repalign.comparison.applicable import Cost
from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.measures import CKA, Group, MutualKNN, PairedCosine, Procrustes
from repalign.models import find_model, known_models, model_set
from repalign.null import Auto, Permutations
from repalign.sources import Facts, ModelEntry, extract, facts_of, hub, parse_spec, source
from repalign.store import FeatureStore
from repalign.study import needs
from repalign.study.needs import Comparing, comparing, estimate
from repalign.text import duration, named, size

RATE, TRIAL_SECONDS = 2e11, needs.TRIAL_SECONDS  # as it is before any test
BOTH = [CKA(), MutualKNN(k=10)]


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """No network by construction, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plan asked for the network while offline")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(needs, "_products", lambda *_: RATE)
    monkeypatch.setattr(needs, "TRIAL_SECONDS", TRIAL_SECONDS)  # as long as in a plan


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("pairs"))


def row(found: needs.Needs, name: str) -> pd.Series:
    return found.table.set_index("model").loc[name]


# --- known models ------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_known_vision_model_is_recounted_from_its_architecture():
    import timm

    for known in known_models():
        if known.modality != "image":
            continue
        name = parse_spec(known.spec).path
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
        tokens = model.patch_embed.num_patches + model.num_prefix_tokens
        counted = (sum(p.numel() for p in model.parameters()), len(model.blocks), model.embed_dim, tokens)
        assert (known.parameters, known.layers, known.width, known.image_tokens) == counted, name
        assert timm.get_pretrained_cfg(name).hf_hub_id == f"timm/{name}"  # where its weights are looked for
        assert known.nominal_parameters == pytest.approx(known.parameters, abs=0.06e6), name


def _llama(width: int, inner: int, blocks: int, heads: int, words: int = 32000, keys: int = 0) -> tuple[str, dict]:
    return "llama", {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": blocks, "num_attention_heads": heads,
        "num_key_value_heads": keys or heads, "vocab_size": words, "tie_word_embeddings": False,
    }  # fmt: skip


def _bloom(width: int, blocks: int, heads: int) -> tuple[str, dict]:
    return "bloom", {"hidden_size": width, "n_layer": blocks, "n_head": heads, "vocab_size": 250880}


def _other(kind: str, width: int, inner: int, blocks: int, heads: int, words: int, **more: object) -> tuple[str, dict]:
    return kind, {**_llama(width, inner, blocks, heads, words)[1], **more}


# The published hyperparameters.
LANGUAGE = {
    "bloomz-560m": _bloom(1024, 24, 16), "bloomz-1b1": _bloom(1536, 24, 16), "bloomz-1b7": _bloom(2048, 24, 16),
    "bloomz-3b": _bloom(2560, 30, 32), "bloomz-7b1": _bloom(4096, 30, 32),
    "open_llama_3b": _llama(3200, 8640, 26, 32), "open_llama_7b": _llama(4096, 11008, 32, 32),
    "open_llama_13b": _llama(5120, 13824, 40, 40),
    "llama-7b": _llama(4096, 11008, 32, 32), "llama-13b": _llama(5120, 13824, 40, 40),
    "llama-30b": _llama(6656, 17920, 60, 52), "llama-65b": _llama(8192, 22016, 80, 64),
    "OLMo-1B-hf": _other("olmo", 2048, 8192, 16, 16, 50304, tie_word_embeddings=True),
    "OLMo-7B-hf": _other("olmo", 4096, 11008, 32, 32, 50304),
    "gemma-2b": _other("gemma", 2048, 16384, 18, 8, 256000, num_key_value_heads=1, head_dim=256, tie_word_embeddings=True),
    "gemma-7b": _other("gemma", 3072, 24576, 28, 16, 256000, head_dim=256, tie_word_embeddings=True),
    "Mistral-7B-v0.1": _other("mistral", 4096, 14336, 32, 32, 32000, num_key_value_heads=8),
    "Mixtral-8x7B-v0.1": _other("mixtral", 4096, 14336, 32, 32, 32000, num_key_value_heads=8, num_local_experts=8),
    "Meta-Llama-3-8B": _llama(4096, 14336, 32, 32, 128256, 8),
    "Meta-Llama-3-70B": _llama(8192, 28672, 80, 64, 128256, 8),
}  # fmt: skip


@pytest.mark.slow
def test_every_known_language_model_is_recounted_from_its_configuration():
    from transformers import AutoConfig, AutoModelForCausalLM

    assert set(LANGUAGE) == {k.name for k in known_models() if k.modality == "text"}
    for name, (kind, values) in LANGUAGE.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values))
        known = find_model(name)
        assert known.parameters == sum(p.numel() for p in model.parameters()), name
        assert (known.layers, known.width) == (model.config.num_hidden_layers + 1, model.config.hidden_size), name
        assert known.image_tokens is None
        assert known.nominal_parameters == pytest.approx(known.parameters, rel=0.26), name  # gemma-2b has 2.5e9


def test_layers_and_widths_are_those_of_the_published_features():
    published = [(25, 1024), (25, 1536), (25, 2048), (31, 2560), (31, 4096), (27, 3200), (33, 4096), (41, 5120)]
    published += [(33, 4096), (41, 5120), (61, 6656), (81, 8192)]
    assert [(k.layers, k.width) for k in model_set("prh-val", "text")] == published
    assert find_model("bloomz-560m").parameters == 559_214_592
    assert {k.bytes_per_parameter for k in known_models()} == {2, 4}


def test_the_validation_set_is_planned_in_three_seconds_without_weights_or_network(pairs, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plan loaded weights")

    for loader in ("torch.load", "torch.nn.Module.load_state_dict", "safetensors.torch.load_file"):
        monkeypatch.setattr(loader, refuse)
    x, y = ([k.spec for k in model_set("prh-val", side)] for side in ("text", "image"))
    start = time.process_time()
    found = estimate(pairs, x, y, store=FeatureStore(str(tmp_path / "store")))
    assert time.process_time() - start < 3.0
    assert len(found.table) == 29
    assert found.table["layers"].sum() == 806
    assert found.comparing[0].layer_pairs == 159_808
    assert found.table["download_bytes"].sum() == sum(k.parameters * k.bytes_per_parameter for k in model_set("prh-val"))
    assert found.table["feature_bytes"].sum() == 4 * pairs.n * sum(k.layers * k.width for k in model_set("prh-val"))
    assert (found.table[["parameters_from", "layers_from", "download_from"]] == "known").all(axis=None)
    assert found.table.notna().all(axis=None)
    assert not (tmp_path / "store").exists() and not (tmp_path / "hub").exists()


# --- every source ------------------------------------------------------------------------------


def test_a_folder_of_transformers_is_told_from_its_headers_and_configuration(pairs, tmp_path):
    folder = tiny.llama(tmp_path / "llama")
    found = estimate(pairs, [f"hf:{folder}"], [f"hf:{tiny.vit(tmp_path / 'vit')}"], device="cpu")
    text, image = row(found, "llama"), row(found, "vit")
    config = json.loads((folder / "config.json").read_text())
    assert (text["layers"], text["width"]) == (config["num_hidden_layers"] + 1, config["hidden_size"])
    with_extract = extract(pairs, [f"hf:{folder}"], str(tmp_path / "store"), device="cpu")[0]
    assert text["layers"] == len(with_extract.layers)
    assert text["parameters"] == with_extract.record.n_parameters
    assert text["feature_bytes"] == 4 * pairs.n * sum(with_extract.widths)
    assert text["download_bytes"] == image["download_bytes"] == 0
    assert {text["parameters_from"], text["layers_from"], image["layers_from"], image["download_from"]} == {"file"}
    assert text["seconds"] > 0 and image["seconds"] > 0


def test_a_convolutional_network_of_transformers_has_widths_but_no_known_time(pairs, tmp_path):
    found = estimate(pairs, [f"hf:{tiny.resnet(tmp_path / 'resnet')}"], device="cpu")
    resnet = row(found, "resnet")
    assert (resnet["layers"], resnet["width"]) == (3, 20)
    assert np.isnan(resnet["seconds"])
    assert "running models: not known" in found.lines()


@pytest.mark.parametrize("name", ["timm_vit", "timm_cnn"])
def test_a_folder_of_timm_is_counted_without_weights(pairs, tmp_path, name):
    folder = getattr(tiny, name)(tmp_path / name)
    facts = facts_of([ModelEntry(f"timm:{folder}")], 0)[0]
    made = extract(pairs, [f"timm:{folder}"], str(tmp_path / "store"), device="cpu")[0]
    assert (facts.widths, facts.names) == (made.widths, made.layers)
    assert facts.flops is not None and facts.flops > 0
    assert facts.layers_from == "counted" and facts.download_bytes == 0


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "swin_s3_tiny_224", "efficientnet_lite0"])
def test_what_is_not_run_to_count_operations_has_none(name, monkeypatch):
    """Norms and activations: with them, the same operations, widths and names."""
    from repalign.sources import timm

    short = timm._count.__wrapped__(name)
    monkeypatch.setattr(timm, "_ELEMENTWISE", set())
    assert short == timm._count.__wrapped__(name) and short.flops > 1e8


def test_a_model_of_timm_that_is_not_in_the_table_is_counted():
    facts = facts_of([ModelEntry("timm:resnet18.a1_in1k")], 0)[0]
    assert facts.parameters == 11_689_512  # as torchvision counts it
    assert facts.download_bytes == 4 * facts.parameters
    assert facts.flops == pytest.approx(2 * 1.81e9, rel=0.02)  # 1.81e9 multiply-adds, as published
    assert facts_of([ModelEntry("timm:no_such_model")], 0)[0] == Facts()


def test_models_of_timm_that_are_built_alike_are_built_once(monkeypatch, tmp_path):
    import timm

    built, build = [], timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **more: built.append(name) or build(name, **more))
    names = ["test_resnet.r160_in1k", "resnet18.gluon_in1k", "resnet18.tv_in1k", "vit_tiny_patch16_224.augreg_in21k"]
    facts = [facts_of([ModelEntry(f"timm:{name}")], 0)[0] for name in (*names, *names)]
    assert len(built) <= 3 and facts[:4] == facts[4:] and facts[1] == facts[2]
    for name, fact in zip(names, facts, strict=False):
        assert fact.parameters == sum(p.numel() for p in build(name, pretrained=False).parameters())
    folder = tiny.timm_vit(tmp_path / "model")
    shallow = tiny.timm_cnn(tmp_path / "other") / "config.json"
    before = facts_of([ModelEntry(f"timm:{folder}")], 0)[0]
    shutil.copy(shallow, folder / "config.json")  # a folder that holds another model by now
    assert facts_of([ModelEntry(f"timm:{folder}")], 0)[0].names != before.names


def test_toy_models_cost_their_recipe_until_they_are_trained(monkeypatch):
    from repalign.toyworld import recipes

    name = "language-conv8-next"
    monkeypatch.setattr("repalign.toyworld.models.is_cached", lambda _: False)
    state = torch.random.get_rng_state()
    facts = facts_of([ModelEntry(f"toy:{name}")], 0)[0]
    assert torch.equal(state, torch.random.get_rng_state())  # a plan draws no number from the caller's generator
    assert facts.work == recipes.find(name)[0].cost
    assert facts.widths == (8, 8, 8, 8)
    monkeypatch.setattr("repalign.toyworld.models.is_cached", lambda _: True)
    assert facts_of([ModelEntry(f"toy:{name}")], 0)[0].work == 0.0
    assert facts_of([ModelEntry("toy:no-such")], 0)[0] == Facts()
    image = facts_of([ModelEntry("toy:vision-cnn3-supervised")], 0)[0]
    assert image.kind == "image" and image.widths == (3, 6, 12, 24)


def test_arrays_are_told_from_their_headers(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.torch import save_file

    a, b = np.zeros((6, 3), np.float32), np.zeros((6, 5), np.float32)
    np.save(tmp_path / "a.npy", a)
    np.savez(tmp_path / "a.npz", one=a, two=b, ids=np.array(list("abcdef")))
    save_file({"b": torch.tensor(b), "a": torch.tensor(a)}, tmp_path / "a.safetensors", {"layers": '["b", "a"]'})
    pq.write_table(pa.table({"id": list("abcdef"), "v": list(b), "w": a[:, 0], "z": a[:, 1]}), tmp_path / "a.parquet")
    torch.save({"feats": torch.zeros(6, 4, 7)}, tmp_path / "a.pt")
    torch.save({"p": torch.zeros(6, 2), "q": torch.zeros(6, 9)}, tmp_path / "b.pt")
    (tmp_path / "broken.npy").write_bytes(b"not an array")
    expected = {
        "a.npy": {"features": 3}, "a.npz": {"one": 3, "two": 5}, "a.safetensors": {"b": 5, "a": 3},
        "a.parquet": {"v": 5}, "a.pt": {f"layer.{i}": 7 for i in range(4)}, "b.pt": {"p": 2, "q": 9},
    }  # fmt: skip
    from repalign.features import read_file

    for name, layers in expected.items():
        facts = facts_of([ModelEntry(f"array:{tmp_path / name}")], 0)[0]
        assert dict(zip(facts.names, facts.widths, strict=True)) == layers, name
        assert {n: x.shape[1] for n, x in read_file(tmp_path / name).layers.items()} == layers, name
        assert facts.file_bytes == (tmp_path / name).stat().st_size
    assert facts_of([ModelEntry(f"array:{tmp_path / 'broken.npy'}")], 0)[0].widths is None
    assert facts_of([ModelEntry("array:/no/such.npy")], 0)[0] == Facts()


def test_what_cannot_be_known_is_said_to_be_unknown_and_not_counted(pairs):
    x = ["hf:org/unheard-of", "torch:package.module:build", "openclip:ViT-B-32/laion2b_s34b_b79k", "st:unheard-of"]
    found = estimate(pairs, x, ["timm:vit_tiny_patch16_224.augreg_in21k"], device="cpu")
    assert found.table.iloc[:4][["parameters", "layers", "width", "memory_bytes", "seconds"]].isna().all(axis=None)
    known = found.table.iloc[4]
    assert found.running["seconds"].sum() == known["seconds"] > 0
    assert found.comparing == (Comparing(0.0, needs.PROCESS_BYTES, 0),)
    text = "\n".join(found.lines())
    assert "downloads: about 39 MB; not known and not counted: unheard-of, ViT-B-32, unheard-of" in text
    assert "without the layers, which are not known, of unheard-of, build" in text


def test_what_the_entry_says_counts(pairs, tmp_path):
    entry = ModelEntry("torch:package.module:build", modality="image", n_parameters=1000)
    found = row(estimate(pairs, [entry], device="cpu"), "build")
    assert (found["parameters"], found["parameters_from"]) == (1000, "file")
    some = ModelEntry("hf:bigscience/bloomz-560m", layers=(0, -1, "block.3"))
    assert facts_of([some], 0)[0].widths == (1024,) * 3
    np.savez(tmp_path / "a.npz", one=np.zeros((2, 3)), two=np.zeros((2, 5)))
    of_array = ModelEntry(f"array:{tmp_path / 'a.npz'}", layers=("two",))
    assert facts_of([of_array], 0)[0].widths == (5,)
    other = ModelEntry(f"array:{tmp_path / 'a.npz'}", layers=("three",))
    assert facts_of([other], 0)[0].widths is None


# --- the hub -----------------------------------------------------------------------------------


def _cache(folder: Path, repository: str, files: dict[str, bytes]) -> None:
    """A repository in the hub's cache, as the hub's client lays it out."""
    base = folder / "hub" / f"models--{repository.replace('/', '--')}"
    commit = "0" * 40
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text(commit)
    for name, data in files.items():
        path = base / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_a_model_in_the_cache_has_nothing_to_download(pairs, tmp_path):
    folder = tiny.llama(tmp_path / "llama")
    files = {f.name: f.read_bytes() for f in folder.iterdir()}
    _cache(tmp_path, "org/tiny", files)
    _cache(tmp_path, "bigscience/bloomz-560m", {"model.safetensors": files["model.safetensors"]})
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    _cache(tmp_path, "bigscience/bloomz-1b1", {"model.safetensors.index.json": index, "model-1.safetensors": b""})
    found = estimate(
        pairs, ["hf:org/tiny", "hf:bigscience/bloomz-560m", "hf:bigscience/bloomz-1b1"], device="cpu"
    )
    assert row(found, "tiny")["download_bytes"] == row(found, "bloomz-560m")["download_bytes"] == 0
    assert row(found, "tiny")["layers_from"] == "file" and row(found, "tiny")["parameters"] > 0
    assert row(found, "bloomz-1b1")["download_bytes"] == 2 * 1_065_314_304  # a shard is lacking


def test_the_hub_is_asked_of_what_no_table_tells(pairs, monkeypatch):
    config = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "vocab_size": 50257}
    asked: list[object] = []

    def answer(repository: source.Repository, patience: float) -> source.Answer:
        asked.append(repository)
        return source.Answer(548_105_171, 137_022_720, config)

    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr(hub, "_answer", answer)
    found = estimate(pairs, ["hf:org/gpt", "hf:bigscience/bloomz-560m"], device="cpu")
    gpt = row(found, "gpt")
    assert asked == [("org/gpt", None)]
    assert (gpt["parameters"], gpt["layers"], gpt["width"]) == (137_022_720, 13, 768)
    assert gpt["download_bytes"] == 548_105_171
    assert {gpt["parameters_from"], gpt["layers_from"], gpt["download_from"]} == {"hub"}


def test_a_hub_that_hangs_or_fails_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    never = threading.Event()
    told = source.Answer(1, 1, None)

    def call(repository: source.Repository, patience: float) -> source.Answer:
        if repository[0] == "hangs":
            never.wait(30)
        if repository[0] == "fails":
            raise OSError("no route")
        return told

    monkeypatch.setattr(hub, "_answer", call)
    start = time.monotonic()
    assert hub.ask_hub([("hangs", None), ("fails", None), ("answers", None)], 0.3) == {("answers", None): told}
    assert time.monotonic() - start < 5
    never.set()


def test_what_the_hub_says_of_files(monkeypatch):
    import huggingface_hub

    File = namedtuple("File", "rfilename size")
    Info = namedtuple("Info", "siblings safetensors")

    class Api:
        def model_info(self, *_: object, **__: object) -> Info:
            files = [File("model-00001-of-00002.safetensors", 7), File("model-00002-of-00002.safetensors", 5)]
            return Info([*files, File("consolidated.safetensors", 12), File("pytorch_model.bin", 12)], None)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert hub._answer(("org/name", None), 1.0) == source.Answer(12, None, None)


def test_offline_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(hub, "_answer", lambda *_: pytest.fail("asked"))
    assert hub.ask_hub([("org/name", None)], 1.0) == {}


# --- the store, twice the same -----------------------------------------------------------------


def test_what_is_complete_in_the_store_costs_nothing(pairs, tmp_path):
    spec, store = f"hf:{tiny.llama(tmp_path / 'llama')}", FeatureStore(str(tmp_path / "store"))
    before = estimate(pairs, [spec], store=store, device="cpu")
    made = extract(pairs, [spec], store, device="cpu")[0]
    after = estimate(pairs, [spec], store=store, device="cpu")
    assert row(before, "llama")["seconds"] > 0 and not row(before, "llama")["complete"]
    done = row(after, "llama")
    assert done["complete"] and done["seconds"] == 0 == done["memory_bytes"] == done["download_bytes"] and after.running.empty
    assert (done["layers"], done["layers_from"]) == (len(made.layers), "measured")
    assert done["feature_bytes"] == row(before, "llama")["feature_bytes"]
    assert after.lines()[0] == "1 of 1 models are complete in the store and cost nothing"
    other = estimate(pairs, [ModelEntry(spec, caption=1)], store=store, device="cpu")
    assert not other.running.empty  # another extraction
    Path(made.path, made.manifest['parts'][0]['file']).unlink()
    assert not row(estimate(pairs, [spec], store=store, device="cpu"), "llama")["complete"]


def test_a_model_on_both_sides_is_run_once_and_two_captions_are_downloaded_once(pairs):
    spec = "hf:bigscience/bloomz-560m"
    alone = estimate(pairs, [spec], device="cpu")
    twice = estimate(pairs, [spec], [spec], device="cpu")
    costs = ["download_bytes", "memory_bytes", "feature_bytes", "seconds"]
    assert twice.running[costs].equals(alone.running[costs]) and len(twice.table) == 2
    captions = estimate(pairs, [ModelEntry(spec, caption=c) for c in (0, 1)], device="cpu")
    assert captions.table["download_bytes"].sum() == alone.table["download_bytes"].sum()
    assert captions.table["feature_bytes"].sum() == 2 * alone.table["feature_bytes"].sum()


# --- time --------------------------------------------------------------------------------------


def test_a_pass_costs_two_operations_per_parameter_and_token_and_its_attention(pairs, monkeypatch):
    def seconds(facts: Facts, **entry: object) -> float | None:
        asked = ModelEntry("hf:org/model", **entry)
        given = {"batch_size": 10, "dtype": "float32", "place": "cpu", "image_seconds": lambda _: 0.25}
        return needs._costs(asked, facts, pairs, **given)[2]

    monkeypatch.setattr(needs, "_tokens", lambda *_: 10.0)
    monkeypatch.setattr(needs, "_products", lambda *_: 1.0)  # a machine on which the products are all that takes time
    facts = Facts(kind="text", parameters=100, widths=(8, 8, 8))
    assert seconds(facts) == pytest.approx(pairs.n * (2 * 100 * 10 + 4 * 10**2 * 24) / needs.EFFICIENCY["cpu"], rel=1e-3)
    assert seconds(Facts(kind="text", parameters=100, flops=7e6)) == pytest.approx(pairs.n * 7e6 / 0.7, rel=1e-3)
    assert seconds(Facts(parameters=100)) is None and seconds(Facts(kind="image", parameters=100)) is None
    monkeypatch.setattr(needs, "_products", lambda *_: 1e30)
    blocks = -(-pairs.n // 10) * 3 * needs.BLOCK_SECONDS
    assert seconds(facts) == pytest.approx(needs.BUILD_SECONDS + blocks, rel=1e-4)
    assert seconds(replace(facts, work=5.0, file_bytes=int(needs.FILE_BYTES))) == pytest.approx(seconds(facts) + 6.0)
    image = replace(facts, kind="image", tokens=10)
    assert seconds(image) == pytest.approx(seconds(facts) + 0.25 * pairs.n)


def test_tokens_are_those_of_the_tokenizer_where_it_is_here(pairs, tmp_path):
    folder = tiny.llama(tmp_path / "llama")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = np.mean([len(tokenizer(c)["input_ids"]) for c in tiny.CAPTIONS])
    assert needs._tokens(ModelEntry(f"hf:{folder}"), pairs) == pytest.approx(own)
    words = np.mean([len(c.split()) for c in tiny.CAPTIONS])
    assert needs._tokens(ModelEntry("hf:org/other"), pairs) == pytest.approx(needs.TOKENS_PER_WORD * words)
    prompted = ModelEntry("hf:org/other", prompt="one two: {caption}")
    assert needs._tokens(prompted, pairs) == pytest.approx(needs.TOKENS_PER_WORD * (words + 2))
    assert needs._tokens(ModelEntry("hf:org/other", modality="image"), pairs) is not None  # the only text there is
    assert needs._image_seconds(pairs, None) > 0


def test_images_are_read_for_their_time_once_for_all_models(pairs, monkeypatch):
    asked = []
    monkeypatch.setattr(needs, "_image_seconds", lambda dataset, named: asked.append((dataset is pairs, named)) or 1e3)
    models = ["timm:vit_tiny_patch16_224", "timm:resnet18"]
    found = estimate(pairs, models, device="cpu").table["seconds"]
    assert asked == [(True, None)] and (found > 1e3 * pairs.n).all()


def widths(side: str) -> list[tuple[int, ...]]:
    return [(k.width,) * k.layers for k in model_set("prh-val", side)]


def test_the_memory_of_the_papers_grid_within_a_factor_of_two_of_what_was_measured(monkeypatch):
    """6.4 GiB on a machine with 23.4 GiB (docs/performance.md)."""
    monkeypatch.setattr("repalign.comparison.DEFAULT_MEMORY", int(23.4 * 2**30 / 4))
    found = comparing(widths("text"), widths("image"), 1024, BOTH, Auto(), Preprocess())
    assert found.layer_pairs == 159_808 and found.seconds > 1
    assert 6.4 / 2 < found.memory_bytes / 2**30 < 6.4 * 2


def test_running_the_bed_within_a_factor_of_three_of_what_was_measured(shared, monkeypatch):
    """19.8 s on two cores at 204 GFLOP/s, of which 3.5 s comparing and 5.4 s two networks of which nothing is known."""
    bed = shared / "bed"
    dataset = Dataset.from_table(bed / "flickr8k_dev/pairs.jsonl", id="id", image="image", text="captions")
    x = [ModelEntry(f"hf:{bed}/models/{name}") for name in ("stories260k", "babyllama105")]
    x.append(ModelEntry(f"array:{bed}/features/glove50_captions.safetensors", modality="text"))
    y = [ModelEntry(f"torch:cifar_resnet.py:resnet{d}", modality="image") for d in (20, 56)]
    y += [ModelEntry(f"array:{bed}/features/mobilenet_v1_{w}.safetensors", modality="image") for w in ("025", "075")]
    monkeypatch.setattr(needs, "_products", lambda *_: 2.04e11)
    monkeypatch.setattr(needs, "comparing", lambda *_: Comparing(3.5, 1, 1))
    found = estimate(dataset, x, y, device="cpu", dtype="float32", batch_size=64)
    assert found.table.loc[found.table["seconds"].isna(), "model"].tolist() == ["resnet20", "resnet56"]
    assert (19.8 - 5.4) / 3 < found.seconds < (19.8 - 5.4) * 3
    assert found.table["layers"].tolist()[:3] == [6, 6, 2]


class Work(TorchDispatchMode):
    """A clock that goes by the work done and not by the time it takes, so that a busy machine changes nothing."""

    seconds = 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [x for x in tree_leaves((args, out)) if isinstance(x, torch.Tensor)]
        packet = function._overloadpacket
        if packet in flop_registry:
            work = flop_registry[packet](*args, **(kwargs or {}), out_val=out) / 50
        elif any(name in packet.__name__ for name in ("svd", "eigh", "_qr", "cholesky", "solve")):
            work = 10 * max(x.numel() * min(x.shape[-2:]) for x in made if x.ndim > 1) / 50
        else:
            work = max((x.numel() for x in made), default=0)
        self.seconds += 2e-6 + work / 1e9
        return out


@pytest.fixture
def work(monkeypatch):
    needs._trial.cache_clear()
    with Work() as clock:
        monkeypatch.setattr(needs.time, "perf_counter", lambda: clock.seconds)
        yield clock
    needs._trial.cache_clear()  # its seconds are of this clock


@pytest.mark.parametrize("measures", [BOTH, [Procrustes()], [CKA(kernel="rbf"), Procrustes()]], ids=repr)
def test_comparing_takes_what_was_told(work, measures):
    """What is told of two models of three and two layers at n = 384, against the comparison itself, within a factor of two."""
    sides = [(40,) * 3, (24,) * 2]
    told = comparing(sides[:1], sides[1:], 384, measures, Auto(), Preprocess())
    assert told.layer_pairs == 6 and not told.left_out
    random = np.random.default_rng(0)
    made = [
        in_memory({str(i): random.standard_normal((384, d)) for i, d in enumerate(side)}, name, None)
        for side, name in zip(sides, "xy", strict=True)
    ]
    start = work.seconds
    compare(made[:1], made[1:], measures)
    spent = work.seconds - start
    assert spent / 2 < told.seconds < spent * 2


def test_comparing_grows_as_it_should(monkeypatch):
    """Sums over layers, pairs of layers and pairs of models of what a trial says."""

    def seconds(x: list, y: list | None, n: int = 1024, **more: object) -> float:
        return comparing(x, y, n, BOTH, more.get("null", Auto()), more.get("preprocess", Preprocess())).seconds

    trials: list[object] = []
    monkeypatch.setattr(needs, "_trial", lambda *given: trials.append(given) or np.array([3.0, 0.5, 20.0, 1e6]))
    one = [(64,) * 4]
    read = needs.ENTRY_SECONDS * 1024 * 64 * 4
    assert seconds(one, one) == pytest.approx(8 * 3 + 16 * 0.5 + 20 + 2 * needs.TILE_SECONDS + 2 * read)
    assert seconds([(64,) * 8], one) == pytest.approx(12 * 3 + 32 * 0.5 + 20 + 2 * needs.TILE_SECONDS + 3 * read)
    assert comparing(one * 4, None, 1024, BOTH, Auto(), Preprocess()).layer_pairs == 6 * 16
    assert seconds(one * 4, None) == pytest.approx(16 * 3 + 96 * 0.5 + 6 * (20 + 2 * needs.TILE_SECONDS) + 4 * read)
    assert trials[-1][2] == 64 and seconds([(10, 30)], [(20,)]) and trials[-1][2] == 20  # the mean width
    both = Preprocess(concatenate=True)
    assert seconds(one, one, preprocess=both) == pytest.approx(10 * 3 + 25 * 0.5 + 20 + 2 * needs.TILE_SECONDS + 4 * read)


def test_a_trial_ends_in_time_and_goes_on_growing(monkeypatch):
    """Of a cost a + b n^2 that is tried at two sizes only, what is told at four times the larger is a + b n^2 again."""

    def timed(jobs: object, n: int, width: int, layers: int) -> tuple[float, float, int]:
        clock[0] += 1.0
        layer, cell, pair = 2 + 3e-4 * n**2, 1e-5 * n**2, 5 + 1e-3 * n
        return 2 * layers * layer, layers**2 * cell + pair, 2 * layers * 4 * n**2

    clock = [0.0]
    monkeypatch.setattr(needs, "_timed", timed)
    monkeypatch.setattr(needs.time, "perf_counter", lambda: clock[0])
    how = needs.Settings(Permutations(9), "studentised", 0.05)
    layer, cell, pair, held = needs._trial(((CKA(), how),), 2048, 64)
    assert layer == pytest.approx(2 + 3e-4 * 2048**2) and cell == pytest.approx(1e-5 * 2048**2)
    assert pair == pytest.approx(5 + 1e-3 * 2048) and held == pytest.approx(4 * 2048**2)
    assert clock[0] == 4  # two at each of two sizes: where one takes a second, none is spent on loading libraries


def test_draws_are_counted_and_a_group_is_limited(monkeypatch):
    slow = Procrustes()
    monkeypatch.setattr(needs, "trial", lambda *_: Cost(1.0, 0.5))
    found = comparing([(8,)], [(8,)], 300, [slow], Auto(), Preprocess())
    assert found.left_out == () and found.seconds == pytest.approx(2 + 0.5 * 200, rel=0.01)
    few = comparing([(8,)], [(8,)], 300, [slow], Permutations(9), Preprocess())
    assert few.seconds == pytest.approx(2 + 0.5 * 10, rel=0.01)
    assert comparing([(8,)], [(8,)], 300, [slow], Auto(), Preprocess(), limit=60).seconds == pytest.approx(2 + 0.5 * 20, rel=0.01)
    assert comparing([(8,)], [(8,)], 300, [slow], Auto(), Preprocess(), limit=10).seconds < 0.1  # left out
    monkeypatch.setattr(Group, "members", [slow])
    with_few = comparing([(8,)], [(8,)], 300, [Group("shape")], Auto(), Preprocess())
    assert with_few.seconds == pytest.approx(2 + 0.5 * 20, rel=0.01) and not with_few.long


def test_the_plan_says_which_measure_costs_the_hours_and_what_to_do(monkeypatch, pairs):
    """Two layers of 90 s, two pairs of layers of 30 s, 200 times: 12,180 s."""
    monkeypatch.setattr(needs, "trial", lambda *_: Cost(90.0, 30.0))
    models = (["toy:vision-pixels"], ["toy:language-bag"])
    (line,) = [s for s in estimate(pairs, *models, ["Procrustes()", "CKA()"], device="cpu").lines() if "leave it out" in s]
    assert line == (
        "Procrustes takes about 103 min: leave it out, or limit it (--limit 1200, in a study `limit: 1200`), for 19 shuffles in "
        "the place of 199 and about 13 min"
    )
    assert not [s for s in estimate(pairs, *models, ["Procrustes()"], limit=1200, device="cpu").lines() if "leave it out" in s]


def test_one_wide_layer_does_not_pass_for_the_width_of_all(monkeypatch):
    """Layers of 16, 16 and 4,096: their geometric mean is 102, their mean 1,376. A side has its own; one space has one width."""
    tried = []
    monkeypatch.setattr(needs, "trial", lambda measure, x, y, _: tried.append((x.shape[1], y.shape[1])) or Cost(0.1, 0.1))
    comparing([(16, 16, 4096)], [(8, 32)], 60, [Procrustes(), PairedCosine()], Auto(), Preprocess())
    comparing([(16, 4096), (64,)], None, 60, [Procrustes()], Auto(), Preprocess())
    assert tried == [(102, 16), (49, 49), (161, 161)]


def test_measures_that_cannot_be_tried_are_left_out(monkeypatch, pairs):
    def undefined(*_: object) -> None:
        raise RepalignError("undefined")

    monkeypatch.setattr(needs, "trial", undefined)
    found = estimate(pairs, ["toy:vision-pixels"], ["toy:language-bag"], ["Procrustes()", "MutualKNN(k=99)"], device="cpu")
    assert found.comparing[0].left_out == (repr(Procrustes()), repr(MutualKNN(k=99)))
    assert any(line.startswith("not known and not counted: the time of Procrustes") for line in found.lines())


def test_linear_cka_of_many_stimuli_is_streamed(work):
    found = comparing([(64,) * 2], [(64,) * 2], 100_000, [CKA()], Auto(), Preprocess())
    assert found.seconds < 20 and found.memory_bytes < 2e9


def test_the_rate_of_a_machine_is_measured_once(monkeypatch):
    monkeypatch.undo()
    needs._products.cache_clear()
    found = needs._products("cpu", torch.float32)
    assert found > 1e8 and needs._products("cpu", torch.float32) == found


# --- what is short -----------------------------------------------------------------------------


def short(monkeypatch, pairs: Dataset, memory=10**12, gpu=math.inf, store=10**13, cache=10**13, devices=(1, 2)) -> list[str]:
    """The warnings on a machine with so much of each; store and cache lie on these file systems."""
    monkeypatch.setattr("repalign.comparison.DEFAULT_MEMORY", memory // 4)
    monkeypatch.setattr(needs, "free_gpu", lambda _: gpu)
    monkeypatch.setattr(needs, "hub_cache", lambda: Path("/cache"))
    disks = {"/cache": (devices[1], cache), "/features": (devices[0], store)}
    monkeypatch.setattr(needs, "disk_of", lambda path: disks["/cache" if str(path) == "/cache" else "/features"])
    monkeypatch.setattr(needs, "_trial", lambda *_: np.array([0.0, 0.0, 0.0, 1e4]))
    kept = FeatureStore("memory://needs")
    kept.url = "/features"
    found = estimate(pairs, ["hf:huggyllama/llama-7b", "hf:bigscience/bloomz-560m"], store=kept, device="cpu")
    assert all(f"warning: {w}" in found.lines() for w in found.warnings)
    return list(found.warnings)


def test_shortages_name_the_model(monkeypatch, pairs):
    assert short(monkeypatch, pairs) == []
    memory = short(monkeypatch, pairs, memory=20 * 10**9)
    assert len(memory) == 1 and memory[0].startswith("llama-7b needs about 27")
    assert "the machine has 20 GB" in memory[0]
    gpu = short(monkeypatch, pairs, gpu=10**9)
    assert len(gpu) == 1 and gpu[0].startswith("llama-7b needs about")
    assert "of GPU memory and 1 GB are free (too much for bloomz-560m as well)" in gpu[0]
    cache = short(monkeypatch, pairs, cache=10**9)
    assert cache == [
        "downloads need about 14.6 GB and 1 GB are free at /cache; the largest: llama-7b (13.5 GB), bloomz-560m (1.12 GB)"
    ]
    features = short(monkeypatch, pairs, store=10**6)
    assert len(features) == 1 and features[0].startswith("features need about")
    comparing_ = short(monkeypatch, pairs, memory=10**6)
    assert any(w.startswith("comparing needs about") for w in comparing_)


def test_features_and_downloads_on_one_file_system_have_to_fit_it_together(monkeypatch, pairs):
    free = 14_595_300_000  # the downloads alone fit
    assert short(monkeypatch, pairs, store=free, cache=free) == []
    both = short(monkeypatch, pairs, store=free, cache=free, devices=(1, 1))
    assert len(both) == 1 and both[0].startswith("features and downloads need about")


def test_the_room_is_that_of_the_machine(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10, 3, 7))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda i: (100 + i, 200))
    assert needs.disk_of(tmp_path / "not" / "yet") == (tmp_path.stat().st_dev, 7)
    assert [needs.free_gpu(device) for device in ("cuda", "cuda:1", "cpu")] == [201, 101, math.inf]


def test_half_precision_takes_half_the_memory(pairs):
    facts = Facts(parameters=10**9, widths=(8,), stored=torch.float16)
    entry = ModelEntry("hf:org/model")
    half, whole = (needs._costs(entry, facts, pairs, 32, dtype, "cpu", float)[1] for dtype in ("bfloat16", "float32"))
    assert whole == 2 * half == 4 * 10**9 + 32 * 8 * 4
    stored = [ModelEntry("hf:bigscience/bloomz-560m", store_dtype=dtype) for dtype in ("float32", "float16")]
    whole, half = estimate(pairs, stored, device="cpu").table["feature_bytes"]
    assert whole == 2 * half == 4 * pairs.n * sum(facts_of(stored[:1])[0].widths)


# --- words -------------------------------------------------------------------------------------


def test_sizes_and_times_in_words():
    assert [size(c) for c in (500, 2.5e6, 13.47e9, 2e12)] == ["0.5 kB", "2.5 MB", "13.5 GB", "2 TB"]
    told = [duration(s) for s in (0.2, 3.14, 109, 360, 9000, 5e5)]
    assert told == ["under a second", "3.1 s", "109 s", "6 min", "2.5 hours", "5.8 days"]
    assert named(list("abc"), 2) == "a, b and 1 more"


def test_lines_are_sentences_with_sums(pairs):
    found = estimate(pairs, ["hf:bigscience/bloomz-560m"], ["timm:vit_tiny_patch16_224.augreg_in21k"], device="cpu")
    lines = found.lines()
    assert lines[0] == "downloads: about 1.16 GB"
    assert lines[2].startswith("memory on cpu while models run: about 2.2") and lines[2].endswith("for bloomz-560m")
    assert any(line.startswith("comparing 300 pairs of layers: ") and "memory" in line for line in lines)
    assert lines[-1].startswith("in all about") and lines[-1].endswith("and the downloads")
    assert {"model", "side", "parameters", "seconds", "layers_from"} <= set(found.table.columns)
