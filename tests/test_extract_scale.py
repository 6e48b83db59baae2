"""Large models: the plan for their weights, models in pieces, and the precision that weights are stored in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models as tiny
from repalign.competence import BitsProtocol, bits_per_byte
from repalign.errors import RepalignError
from repalign.sources import ModelEntry, choose_device, extract, parse_spec
from repalign.sources import hf as _placement
from repalign.sources import hf as hub
from repalign.sources.hub import held
from repalign.sources.model import Context, run_dtype, weights_digest
from repalign.sources.pooling import POSITIONS, nats
from repalign.sources.tokenizer import PROBE

GIB = 2**30


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: getattr(tiny, name)(root / name) for name in ("llama", "gpt2", "t5")}


def features(found: Any) -> dict[str, torch.Tensor]:
    return {layer: found.load(layer) for layer in found.layers}


# --- the plan ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needed", "free", "spread", "answer"),
    [
        (60, (70,), "if needed", False),  # one GPU: whole as long as it fits
        (70, (70,), "if needed", False),
        (71, (70,), "if needed", "one GPU"),
        (56, (70, 70), "if needed", False),  # several: up to 0.8 of the first
        (57, (70, 70), "if needed", True),
        (126, (70, 70), "if needed", True),  # up to 0.9 of all
        (127, (70, 70), "if needed", "2 GPUs"),
        (40, (10, 70), "if needed", True),
        (8, (10, 70), "if needed", False),
        (1, (70, 70, 70), "always", True),
        (190, (70, 70, 70), "always", "3 GPUs"),
        (60, (70,), "always", False),
        (60, (70, 70), "never", False),  # a named device is one device
        (71, (70, 700), "never", "one GPU"),
    ],
)
def test_the_plan(needed, free, spread, answer):
    there = {f"cuda:{i}": n * GIB for i, n in enumerate(free)}
    if isinstance(answer, bool):
        assert _placement.is_spread(needed * GIB, there, "cuda:0", spread, "it") is answer
        return
    shown = ", ".join(f"{n}.0 GiB free on cuda:{i}" for i, n in enumerate(free[: 1 if answer == "one GPU" else None]))
    with pytest.raises(
        RepalignError,
        match=rf"model it does not fit the memory of {answer}\n  expected: {needed}\.0 GiB for its weights.*\n  got: {shown}\n"
        r"  do: .*`device: sharded`.*not moved to the CPU or the disk",
    ):
        _placement.is_spread(needed * GIB, there, "cuda:0", spread, "it")


def test_the_first_gpu_is_the_one_that_is_named():
    free = {"cuda:0": 1 * GIB, "cuda:1": 70 * GIB}
    assert _placement.is_spread(60 * GIB, free, "cuda:1", "never", "it") is False
    with pytest.raises(RepalignError, match="1.0 GiB free on cuda:0"):
        _placement.is_spread(60 * GIB, free, "cuda:0", "never", "it")


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without a GPU")
def test_without_a_gpu(folders, data, tmp_path):
    with pytest.raises(RepalignError, match=r"device 'sharded' cannot be used(.|\n)*device: auto"):
        extract(data, [f"hf:{folders['llama']}"], tmp_path, device="sharded")
    context = Context("cpu", "auto", spread="always")
    assert _placement.device_map(None, None, context, torch.float32, 10**15, "it", "always") is None


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"), [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_a_cuda_gpu_goes_before_an_apple_gpu_before_the_cpu(monkeypatch, cuda, mps, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto") == chosen


def test_an_apple_gpu_runs_in_float32_and_never_in_float64():
    half, double = torch.float16, torch.float64
    assert run_dtype("auto", half, "mps", "m") == run_dtype("auto", double, "mps", "m") == torch.float32
    assert run_dtype("stored", half, "mps", "m") == run_dtype("auto", half, "cuda", "m") == half
    assert run_dtype("stored", double, "cpu", "m") == run_dtype("float64", None, "cuda:1", "m") == double
    for asked, stored in (("float64", None), ("stored", double)):
        with pytest.raises(RepalignError, match=f"model m: an Apple GPU does not compute in float64\n.*\n.*dtype {asked}"):
            run_dtype(asked, stored, "mps", "m")


def test_a_named_device_that_is_not_there_is_refused_with_those_that_may_be():
    with pytest.raises(RepalignError, match=r"device 'mps' cannot be used\n  expected: auto, cpu, mps, sharded(.|\n)*device: auto"):
        choose_device("mps")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_blocks_are_spread_whole_in_order_and_tied_weights_together(name, folders):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folders[name])
    context = Context("cuda", "auto")
    total = sum(t.numel() for t in load_file(folders[name] / "model.safetensors").values()) * 2
    free = {f"cuda:{i}": total for i in range(2)}
    found = _placement.spread_map(AutoModelForCausalLM, config, context, torch.bfloat16, free, "it")
    assert set(found.values()) == {"cuda:0", "cuda:1"}
    places = list(found.values())
    assert [p for p in places if p == "cuda:0"] + [p for p in places if p == "cuda:1"] == places  # in one go each
    blocks = [n for n in found if re.search(r"\.(layers|h)\.\d+$", n)]
    assert blocks and not any(re.search(r"\.(layers|h)\.\d+\.", n) for n in found)
    if name == "gpt2":
        assert found["transformer.wte"] == found.get("lm_head", found["transformer.wte"])
    with pytest.raises(RepalignError, match=r"does not fit the memory of 2 GPUs(.|\n)*in 90% of what is free"):
        small = {f"cuda:{i}": total // 4 for i in range(2)}
        _placement.spread_map(AutoModelForCausalLM, config, context, torch.bfloat16, small, "it")


def test_a_model_that_does_not_say_what_stays_whole_is_refused(folders, monkeypatch):
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

    for owner in (LlamaForCausalLM, LlamaModel):
        monkeypatch.setattr(owner, "_no_split_modules", None)
    monkeypatch.setattr(LlamaForCausalLM, "post_init", lambda self: None)
    config = AutoConfig.from_pretrained(folders["llama"])
    with pytest.raises(RepalignError, match=r"it cannot be spread over GPUs(.|\n)*LlamaForCausalLM(.|\n)*cuda:0"):
        free = {"cuda:0": GIB, "cuda:1": GIB}
        _placement.spread_map(AutoModelForCausalLM, config, Context("cuda", "auto"), torch.float32, free, "it")


# --- models in pieces ----------------------------------------------------------------------------

PIECES = {
    "llama": ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.layers.2", "model.norm",
              "model.rotary_emb", "lm_head"],
    "gpt2": ["transformer.wte", "transformer.wpe", "transformer.drop", "transformer.h.0", "transformer.h.1",
             "transformer.h.2", "transformer.ln_f", "lm_head"],
    "t5": ["shared", "encoder.embed_tokens", "encoder.block.0", "encoder.block.1", "encoder.final_layer_norm",
           "encoder.dropout", "decoder"],
}  # fmt: skip


@pytest.fixture
def in_pieces(monkeypatch):
    """Every piece of a model is placed on the CPU by itself, with the hooks that carry values between devices."""
    from accelerate import dispatch_model
    from transformers import AutoModel, AutoModelForCausalLM

    maps: list[dict[str, str]] = []

    def choose(auto: Any, config: Any, *_: Any) -> dict[str, str]:
        maps.append(dict.fromkeys(PIECES[config.model_type], "cpu"))
        return maps[-1]

    def hooked(auto: Any) -> Any:
        load = auto.from_pretrained

        def from_pretrained(*arguments: Any, **options: Any) -> Any:
            assert options["device_map"] == maps[-1]
            model, report = load(*arguments, **options)
            dispatch_model(model, maps[-1], main_device="cpu", force_hooks=True)
            assert model._hf_hook.io_same_device
            return model, report

        return from_pretrained

    monkeypatch.setattr(hub, "device_map", choose)
    for auto in (AutoModel, AutoModelForCausalLM):
        monkeypatch.setattr(auto, "from_pretrained", hooked(auto))
    return maps


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_a_model_in_pieces_gives_the_same_bits(name, padding, folders, data, tmp_path, request):
    entry = ModelEntry(f"hf:{folders[name]}", padding=padding)
    whole = extract(data, [entry], tmp_path / "whole", batch_size=4)[0]
    maps = request.getfixturevalue("in_pieces")
    pieces = extract(data, [entry], tmp_path / "pieces", batch_size=4)[0]
    assert len(maps) == 1
    for layer, x in features(whole).items():
        assert torch.equal(pieces.load(layer), x)
    assert pieces.record == whole.record  # scores and parameters, tied ones counted once
    assert pieces.facts["weights_fingerprint"] == whole.facts["weights_fingerprint"]
    # Where the pieces were is told beside the versions, and enters no key.
    assert Path(pieces.path).name == Path(whole.path).name
    assert pieces.manifest["extraction"] == whole.manifest["extraction"]
    (versions,) = pieces.manifest["versions"]
    first, last = PIECES[name][0], PIECES[name][-1]
    assert versions["device_map"] == pieces.facts["device_map"] == f"{first} to {last} on cpu"
    assert "device_map" not in whole.manifest["versions"][0] and "device_map" not in whole.facts


def test_parts_of_one_and_of_several_devices_make_one_extraction(folders, data, tmp_path, request):
    """A run that began on one GPU may end on eight."""
    entry = ModelEntry(f"hf:{folders['llama']}")
    whole = extract(data, [entry], tmp_path, rows_per_part=4)[0]
    before = features(whole)
    (Path(whole.path) / "manifest.json").unlink()
    (Path(whole.path) / "part-00001.safetensors").unlink()
    request.getfixturevalue("in_pieces")
    again = extract(data, [entry], tmp_path, rows_per_part=4)[0]
    assert [("device_map" in v) for v in again.manifest["versions"]] == [False, True]
    assert all(torch.equal(again.load(layer), x) for layer, x in before.items())


def test_bits_of_a_model_in_pieces(folders, request):
    protocol = BitsProtocol(context=24)
    whole = bits_per_byte(f"hf:{folders['llama']}", list(tiny.CAPTIONS), protocol)
    request.getfixturevalue("in_pieces")
    pieces = bits_per_byte(f"hf:{folders['llama']}", list(tiny.CAPTIONS), protocol)
    assert pieces.nats == whole.nats
    assert pieces.facts["device_map"] == "model.embed_tokens to lm_head on cpu"
    assert pieces.facts["device"] == whole.facts["device"] == "cpu"


def test_what_a_model_in_pieces_returns_stays_where_it_is(folders, in_pieces):
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = parse_spec(f"hf:{folders['llama']}")
    config = AutoConfig.from_pretrained(folders["llama"])
    loaded = hub.load_model(AutoModelForCausalLM, spec, Context("cpu", "auto"), config, "it", "always")
    assert loaded.model._hf_hook.io_same_device is False
    assert loaded.device == torch.device("cpu")
    assert _placement.placed({"": "cuda:0"}) == _placement.placed(None) == {}
    told = _placement.placed({"a": "cuda:0", "b": "cuda:0", "c": "cuda:1", "d": "cuda:0"})
    assert told == {"device": "cuda:0, cuda:1", "device_map": "a to b on cuda:0; c on cuda:1; d on cuda:0"}


def test_memory_that_runs_out_at_loading_is_told(folders, data, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(RepalignError, match=r"ran out while it was loaded\n  got: CUDA out of memory(.|\n)*sharded"):
        extract(data, [f"hf:{folders['llama']}"], tmp_path)


@pytest.mark.gpu
def test_two_gpus(folders, data, tmp_path):
    """Spread over two devices, hidden states are those of one to rounding, and are pooled where they are."""
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices, and there are {torch.cuda.device_count()}")
    entry = ModelEntry(f"hf:{folders['llama']}")
    one = extract(data, [entry], tmp_path / "one", device="cuda:0")[0]
    two = extract(data, [entry], tmp_path / "two", device="sharded")[0]
    assert two.facts["device"] == "cuda:0, cuda:1" and "cuda:1" in two.facts["device_map"]
    assert two.facts["weights_fingerprint"] == one.facts["weights_fingerprint"]
    for layer, x in features(one).items():
        torch.testing.assert_close(two.load(layer), x, rtol=1e-5, atol=1e-5)


# --- digests and costs in bounded memory ---------------------------------------------------------


def test_the_digest_does_not_depend_on_the_pieces_it_is_read_in(folders, monkeypatch):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folders["gpt2"], dtype=torch.bfloat16)
    whole = weights_digest(model)
    largest = 0
    to = torch.Tensor.to

    def watched(self: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, self.nbytes)
        return to(self, *arguments, **options)

    monkeypatch.setattr("repalign.sources.model.DIGEST_BYTES", 64)
    monkeypatch.setattr(torch.Tensor, "to", watched)
    assert weights_digest(model) == whole
    assert 0 < largest <= 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_costs_are_computed_some_positions_at_a_time(dtype, monkeypatch):
    from torch.nn import functional

    generator = torch.Generator().manual_seed(0)
    b, t, v = 2, 2 * POSITIONS + 37, 50
    logits = (3 * torch.randn(b, t, v, generator=generator)).to(dtype)
    tokens = torch.randint(v, (b, t), generator=generator)
    mask = torch.ones(b, t, dtype=torch.int64)
    mask[1, :300] = 0  # padded on the left
    p = logits.double().log_softmax(-1)
    want = [-sum(float(p[i, j - 1, tokens[i, j]]) for j in range(s + 1, t)) for i, s in enumerate((0, 300))]
    rows: list[int] = []
    plain = functional.cross_entropy

    def watched(logits: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        rows.append(len(logits))
        assert logits.dtype == torch.float32
        return plain(logits, *arguments, **options)

    monkeypatch.setattr(functional, "cross_entropy", watched)
    got = nats(logits, tokens, mask)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-6, atol=0)
    assert max(rows) == POSITIONS and sum(rows) == 2 * t - 300 - 2


# --- the precision that weights are stored in ----------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "stored", "device", "dtype"),
    [
        ("auto", torch.bfloat16, "cuda", torch.bfloat16),
        ("auto", torch.float16, "cuda:1", torch.float16),
        ("auto", torch.float32, "cuda", torch.float32),
        ("auto", None, "cuda", torch.float32),
        ("auto", torch.bfloat16, "cpu", torch.float32),
        ("stored", torch.bfloat16, "cpu", torch.bfloat16),
        ("stored", torch.float16, "cpu", torch.float16),
        ("stored", None, "cpu", torch.float32),
        ("bfloat16", torch.float32, "cpu", torch.bfloat16),
        ("float32", torch.bfloat16, "cuda", torch.float32),
    ],
)
def test_the_dtype_of_a_run(asked, stored, device, dtype):
    assert run_dtype(asked, stored, device, "it") == dtype


def test_an_unknown_dtype_is_told():
    with pytest.raises(RepalignError, match=r"unknown dtype 'store'\n  expected: auto, stored, float32(.|\n)*'stored'"):
        run_dtype("store", None, "cpu", "it")


# Rounding of activations over three blocks, relative to the layer's norm: a few steps of 2^-9 and 2^-12.
TOLERANCE = {torch.bfloat16: 0.01, torch.float16: 0.0015}


def loads(monkeypatch) -> list[torch.nn.Module]:
    """The models that are loaded from now on."""
    found: list[torch.nn.Module] = []
    load = hub.load_model

    def watched(*arguments: Any, **options: Any) -> Any:
        out = load(*arguments, **options)
        found.append(out.model)
        return out

    for module in ("hf_text", "hf_vision"):
        monkeypatch.setattr(f"repalign.sources.{module}.load_model", watched)
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_stored_precision(dtype, name, data, tmp_path, monkeypatch):
    folder = {
        "llama": lambda: tiny.llama(tmp_path / "m", dtype=dtype),
        "gpt2": lambda: tiny.gpt2(tmp_path / "m", dtype=dtype),
        "vit": lambda: as_stored(tiny.vit(tmp_path / "m"), dtype),
    }[name]()
    models = loads(monkeypatch)
    word = str(dtype).removeprefix("torch.")
    wide = extract(data, [f"hf:{folder}"], tmp_path / "store", dtype="float32")[0]
    found = extract(data, [f"hf:{folder}"], tmp_path / "store", dtype="stored")[0]
    assert {p.dtype for p in models[0].parameters()} == {torch.float32}
    assert {p.dtype for p in models[1].parameters()} == {dtype}
    assert (found.facts["dtype"], found.facts["stored_dtype"], found.facts["pooled_in"]) == (word, word, "float32")
    assert (wide.facts["dtype"], wide.facts["stored_dtype"]) == ("float32", word)
    assert found.manifest["settings"]["dtype"] == "stored"
    for layer, x in features(wide).items():
        y = found.load(layer)
        assert y.dtype == torch.float32
        apart = float((x - y).norm() / x.norm())
        assert 0 < apart < TOLERANCE[dtype] or (layer == "embeddings" and apart < 1e-6), (layer, apart)


def as_stored(folder: Path, dtype: torch.dtype) -> Path:
    """The same model with its weights stored in another dtype, which its configuration does not say."""
    file = folder / "model.safetensors"
    save_file({k: v.to(dtype) for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    assert {config.pop("dtype", None), config.pop("torch_dtype", None)} <= {None, "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_files_say_what_is_stored_whatever_the_configuration_says(tmp_path, data):
    folder = as_stored(tiny.gpt2(tmp_path / "m"), torch.float16)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    found = extract(data, [f"hf:{folder}"], tmp_path / "store", dtype="stored")[0]
    assert found.facts["dtype"] == found.facts["stored_dtype"] == "float16"


def test_weights_in_several_files(tmp_path, data):
    """The index names them; the bytes of all count, in the dtype of the run."""
    from transformers import AutoModelForCausalLM

    folder = tiny.llama(tmp_path / "m", dtype=torch.bfloat16)
    whole = extract(data, [f"hf:{folder}"], tmp_path / "store", dtype="stored")[0]
    numbers = sum(t.numel() for t in load_file(folder / "model.safetensors").values())
    (folder / "model.safetensors").unlink()
    source = tiny.llama(tmp_path / "again", dtype=torch.bfloat16)
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    found = held(parse_spec(f"hf:{folder}"), "")
    assert found.dtype == torch.bfloat16
    assert (found.n_bytes(torch.bfloat16), found.n_bytes(torch.float32)) == (2 * numbers, 4 * numbers)
    shards = extract(data, [f"hf:{folder}"], tmp_path / "store", dtype="stored")[0]
    assert shards.record.revision != whole.record.revision
    assert torch.equal(shards.load("block.2"), whole.load("block.2"))


def test_most_numbers_decide_and_a_cut_file_is_told(tmp_path, data):
    folder = tiny.gpt2(tmp_path / "m", dtype=torch.bfloat16)
    file = folder / "model.safetensors"
    weights = {k: v.float() if "ln" in k else v for k, v in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    assert held(parse_spec(f"hf:{folder}"), "").dtype == torch.bfloat16
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(RepalignError, match=r"cannot be loaded: .*\n(.|\n)*got: .*model\.safetensors: "):
        extract(data, [f"hf:{folder}"], tmp_path / "store")


@pytest.mark.parametrize("factory", [tiny.timm_vit, tiny.timm_cnn])
def test_timm_in_the_stored_precision(factory, data, tmp_path, monkeypatch):
    """timm makes every model float32: what is stored is read from the file."""
    from repalign.sources.timm import TimmVision

    folder = factory(tmp_path / "m")
    file = folder / "model.safetensors"
    save_file({k: v.to(torch.bfloat16) for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    models = []
    made = TimmVision.__init__

    def watched(self: TimmVision, *arguments: Any) -> None:
        made(self, *arguments)
        models.append(self.model)

    monkeypatch.setattr(TimmVision, "__init__", watched)
    wide = extract(data, [f"timm:{folder}"], tmp_path / "store")[0]
    found = extract(data, [f"timm:{folder}"], tmp_path / "store", dtype="stored")[0]
    assert [next(m.parameters()).dtype for m in models] == [torch.float32, torch.bfloat16]
    assert wide.facts["stored_dtype"] == found.facts["stored_dtype"] == found.facts["dtype"] == "bfloat16"
    for layer, x in features(wide).items():
        assert 0 < (x - found.load(layer)).norm() / x.norm() < 0.03


def test_sentence_transformers_in_the_stored_precision(data, tmp_path):
    base = tiny.bert(tmp_path / "base", pooler=True)
    folder = tiny.sentence_transformer(tmp_path / "st", base)
    file = next(folder.glob("*.safetensors"), None) or next(folder.rglob("model.safetensors"))
    save_file({k: v.to(torch.bfloat16) for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    config = file.parent / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "bfloat16"}))
    wide = extract(data, [f"st:{folder}"], tmp_path / "store")[0]
    found = extract(data, [f"st:{folder}"], tmp_path / "store", dtype="stored")[0]
    assert (wide.facts["dtype"], wide.facts["stored_dtype"]) == ("float32", "bfloat16")
    assert found.facts["dtype"] == "bfloat16"
    for layer, x in features(wide).items():
        assert (x - found.load(layer)).norm() / x.norm() < 0.03


def test_no_weight_is_float32_on_the_way(tmp_path, monkeypatch):
    """Every tensor that loading makes, in the dtype it is run in: a large model has no room for another copy."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tiny.llama(tmp_path / "m", dtype=torch.bfloat16)
    largest: dict[str, int] = {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(x, torch.Tensor) and x.device.type != "meta" and x.is_floating_point():
                    name = str(x.dtype)
                    largest[name] = max(largest.get(name, 0), x.numel())
            return out

    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # what other threads do is not watched
    config = AutoConfig.from_pretrained(folder)
    with Watch():
        spec = parse_spec(f"hf:{folder}")
        hub.load_model(AutoModelForCausalLM, spec, Context("cpu", "stored"), config, "it")
    assert largest["torch.bfloat16"] >= 48 * 32
    assert largest.get("torch.float32", 0) <= 64  # tables of rotary positions


# --- numbers that float16 does not hold ----------------------------------------------------------


def test_hidden_states_that_float16_does_not_hold(data, tmp_path):
    """A caption with a token that no other text has, whose embedding is beyond float16."""
    from transformers import AutoTokenizer

    folder = tiny.llama(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [set(tokenizer(text)["input_ids"]) for text in (*tiny.CAPTIONS, PROBE)]
    alone = [x.difference(*(y for j, y in enumerate(ids) if j != i)) for i, x in enumerate(ids[:-1])]
    row, own = next((i, x) for i, x in enumerate(alone) if x)
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"][sorted(own)] = 7e4  # float16 ends at 65,504
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        RepalignError,
        match=rf"it, layer 'embeddings': the row of id '{tiny.IDS[row]}' \(row {row}\) is (infinite|NaN)\n"
        r"(.|\n)*do: run the model in float32, or in bfloat16 in place of float16, which ends at 65,504",
    ):
        extract(data, [ModelEntry(f"hf:{folder}", name="it")], tmp_path / "store", dtype="float16")
    extract(data, [ModelEntry(f"hf:{folder}", name="it")], tmp_path / "store", dtype="bfloat16")


def test_a_model_that_float16_does_not_hold_at_all(data, tmp_path):
    """Told at loading, before it is taken for a model that minds its padding."""
    folder = tiny.llama(tmp_path / "m")
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.mlp.down_proj.weight"] *= 1e6
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(RepalignError, match=r"layer block\.0: 'A brown dog.*not finite in float16(.|\n)*bfloat16"):
        extract(data, [f"hf:{folder}"], tmp_path / "store", dtype="float16")


# --- bits per byte in half precision -------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 1e-3), ("float16", 1e-4)])
def test_bits_per_byte_in_half_precision(dtype, tolerance, tmp_path):
    """Weights that half precision holds exactly: what differs is the rounding of activations and logits."""
    folder = tiny.llama(tmp_path / "m", dtype=getattr(torch, dtype))
    texts = [" ".join(tiny.CAPTIONS), *tiny.CAPTIONS]
    protocol = BitsProtocol(context=48, stride=16)
    wide = bits_per_byte(f"hf:{folder}", texts, protocol)
    half = bits_per_byte(f"hf:{folder}", texts, protocol, dtype="stored")
    assert (wide.facts["dtype"], half.facts["dtype"], half.facts["stored_dtype"]) == ("float32", dtype, dtype)
    assert half.n_tokens == wide.n_tokens
    assert half.bits_per_byte != wide.bits_per_byte
    assert half.bits_per_byte == pytest.approx(wide.bits_per_byte, rel=tolerance)
