"""Models and data in memory: what a user has in hands is run as it is, gives right numbers, and is left as it was."""

from __future__ import annotations

import copy
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import repalign
import tiny_models as tiny
from repalign import Dataset, FeatureStore, Model, ModelEntry, RepalignError, extract
from repalign.sources import loop
from repalign.sources.identity import fingerprint

X = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
SIZE = 8


class Net(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.stem = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)) for _ in range(3))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = self.scale * self.stem(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x)


class Eyes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((SIZE, SIZE)))).permute(2, 0, 1) / 255


def seeded(made):
    torch.manual_seed(0)
    return made()


def by_hooks(module: nn.Module, inputs: torch.Tensor, names) -> dict[str, torch.Tensor]:
    found = {}
    hooks = [module.get_submodule(n).register_forward_hook(lambda _m, _a, out, n=n: found.update({n: out})) for n in names]
    was = module.training
    with torch.no_grad():
        module.eval()(inputs)
    module.train(was)
    for hook in hooks:
        hook.remove()
    return found


@pytest.fixture
def net():
    return seeded(Net)


@pytest.fixture
def data() -> Dataset:
    return Dataset.of(x=X)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Dataset:
    """Texts and pictures."""
    return tiny.dataset(tmp_path_factory.mktemp("data"))


def told(progress: list) -> list[str]:
    return [a[3] for a in progress if len(a) > 3 and a[3]]


def equal(a, b) -> None:
    assert a.layers == b.layers
    for layer in a.layers:
        assert torch.equal(a.load(layer), b.load(layer)), layer


# --- torch modules -------------------------------------------------------------------------------


@pytest.mark.parametrize("layers, names", [
    (None, ["stem", "blocks.0", "blocks.1", "blocks.2", "head"]), ("blocks.*", ["blocks.0", "blocks.1", "blocks.2"]),
    (["blocks.*.0", "stem"], ["blocks.0.0", "blocks.1.0", "blocks.2.0", "stem"]),
    ([-1, "blocks.[02]"], ["head", "blocks.0", "blocks.2"]),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_by_the_names_of_its_layers(layers, names, dtype, net, data):
    net.to(dtype).train()
    (got,) = extract(data, [Model(net, name="mine", layers=layers, store_dtype="float64")], batch_size=3)
    want = by_hooks(net, torch.from_numpy(X).to(dtype), names)
    assert got.layers == tuple(names) and got.name == "mine" and got.record.n_parameters == sum(p.numel() for p in net.parameters())
    for name in names:
        torch.testing.assert_close(got.load(name).float(), want[name].float(), rtol=1e-5, atol=1e-6)
    assert got.facts["dtype"] == str(dtype).removeprefix("torch.") and got.facts["column"] == got.record.modality == "x"


def test_images_go_in_by_the_users_transform(both):
    from torchvision.transforms import v2

    module = seeded(Eyes)
    transform = v2.Compose([v2.ToImage(), v2.Resize((SIZE, SIZE)), v2.ToDtype(torch.float32, scale=True)])
    (got,) = extract(both, [Model(module, modality="image", preprocess=transform)])
    want = by_hooks(module, torch.stack([transform(i) for i in tiny.images()]), ["conv", "head"])
    torch.testing.assert_close(got.load("conv"), want["conv"].mean((2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.load("head"), want["head"], rtol=1e-5, atol=1e-6)
    assert "Resize" in got.facts["preprocessing"]


def test_what_is_lacking_is_said(both, data, net, tmp_path):
    def refused(message: str, *models, on=both, **how) -> None:
        with pytest.raises(RepalignError, match=message):
            extract(on, list(models), **how)

    refused(r"nothing says what it reads\n.*image \(image\), text \(text\)(.|\n)*repalign\.Model\(model, modality=", seeded(Eyes))
    refused(r"how an image goes(.|\n)*a transform of torchvision(.|\n)*would go in raw", Model(seeded(Eyes), modality="image"))
    refused(r"how a text goes into the module(.|\n)*pass \(model, tokenizer\)", Model(net, modality="text"))
    refused(r"no module 'block\.\*'(.|\n)*did you mean 'blocks\.\d' or", Model(net, layers="block.*"), on=data)
    refused(r"no model: \('hf:x', (.|\n)*or a function of a batch", ("hf:x", len), on=data)
    refused("no model: 3", 3)
    refused("no model: <class 'test_in_memory.Net'>", Net)
    refused(r"no model: \(Net\((.|\n)*a pair of a model", (net, len, len))
    with warnings.catch_warnings(action="ignore"):
        scripted = torch.jit.script(nn.Linear(4, 2))
    refused(r"compiled by torch\.jit", scripted, on=data)
    refused(r"it is not in memory here\n(.|\n)*hf:\./folder", ModelEntry("memory:Net"), on=data)
    refused(r"fails on what it is given: RuntimeError: .*\n(.|\n)*float32 \(2, 4\), of column x", nn.Linear(5, 2), on=data)


class Odd(nn.Module):
    """Parts whose outputs are of every form."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.part = what, Part(what)

    def forward(self, x):
        self.part(x)
        return x


class Part(nn.Linear):
    def __init__(self, what: str) -> None:
        super().__init__(4, 3)
        self.what = what

    def forward(self, x):
        y = super().forward(x)
        return {
            "tuple": (y, x), "dict": {"y": y, "x": x}, "tokens": y[:, None].repeat(1, 2, 1), "text": "y", "flat": y.flatten(),
            "one": y[:, 0], "mixed": y - y.mean(0), "random": y + torch.rand_like(y),
        }[self.what]  # fmt: skip


def test_outputs_of_other_forms(data):
    for what in ("tuple", "dict"):
        module = seeded(lambda w=what: Odd(w))
        (got,) = extract(data, module)
        with torch.no_grad():
            want = nn.functional.linear(torch.from_numpy(X), module.part.weight, module.part.bias)
        torch.testing.assert_close(got.load("part"), want, rtol=1e-5, atol=1e-6)
    (last,) = extract(data, Model(seeded(lambda: Odd("tokens")), pooling="last"))
    torch.testing.assert_close(last.load("part"), want, rtol=1e-5, atol=1e-6)
    for what, message in {
        "text": "module 'part' gives no tensor", "one": r"no known form(.|\n)*got: shape \(2,\)", "flat": r"got: shape \(6,\)",
        "tokens": "tokens .* needs another pooling", "mixed": "another vector beside others than alone", "random": "random numbers",
    }.items():  # fmt: skip
        with pytest.raises(RepalignError, match=message):
            extract(data, Odd(what))


def test_a_module_whose_first_axis_is_not_of_stimuli_is_refused():
    tokens = Dataset.of(x=np.random.default_rng(0).standard_normal((5, 3, 8)).astype(np.float32))
    layer = seeded(lambda: nn.TransformerEncoderLayer(8, 2, 8))
    with pytest.raises(RepalignError, match=r"another vector beside others than alone(.|\n)*batch_first=True"):
        extract(tokens, Model(layer, pooling="mean", layers="output"))
    layer = seeded(lambda: nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)).eval()
    (got,) = extract(tokens, Model(layer, pooling="mean", layers="output"))
    with torch.no_grad():
        want = layer(torch.from_numpy(np.stack(tokens.stimuli("x", range(5))))).mean(1)
    torch.testing.assert_close(got.load("output"), want, rtol=1e-4, atol=1e-5)


def test_a_module_is_given_back_as_it_was(net, data):
    """Also where the run fails in the middle; what the run itself sets is forgotten."""

    class Counting(Net):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls > self.most:
                raise ValueError("enough")
            return super().forward(x)

    for most in (1, 3, 99):
        module = seeded(Counting)
        module.most = most
        module.train()
        module.head.eval()
        weights = {k: v.clone() for k, v in module.state_dict().items()}
        before = {n: (m.training, len(m._forward_hooks), sorted(vars(m))) for n, m in module.named_modules()}
        try:
            extract(data, module, batch_size=3)
        except RepalignError as error:
            assert most < 99 and "ValueError: enough" in str(error)
        else:
            assert most == 99
        assert {n: (m.training, len(m._forward_hooks), sorted(vars(m))) for n, m in module.named_modules()} == before
        assert all(torch.equal(v, module.state_dict()[k]) for k, v in weights.items())


def test_another_dtype_is_that_of_a_copy(net, data):
    (got,) = extract(data, Model(net, store_dtype="float64"), dtype="float64")
    assert {p.dtype for p in net.parameters()} == {torch.float32} and got.facts["dtype"] == "float64"
    want = by_hooks(seeded(Net).double(), torch.from_numpy(X).double(), ["head"])["head"]
    torch.testing.assert_close(got.load("head"), want.float().double(), rtol=1e-6, atol=1e-7)
    (own,) = extract(data, net.to(torch.bfloat16))
    assert own.facts["dtype"] == "bfloat16" and next(net.parameters()).dtype == torch.bfloat16


def test_mixed_dtypes_are_the_modules_own_affair(data):
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2).double())
    with pytest.raises(RepalignError, match=r"same dtype(.|\n)*one of mixed dtypes or devices has to cast itself"):
        extract(data, module)

    class Casts(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).double())

    (got,) = extract(data, Casts(*module))
    with torch.no_grad():
        want = module[1](module[0](torch.from_numpy(X)).double())
    torch.testing.assert_close(got.load("1"), want.float(), rtol=1e-5, atol=1e-6)


def test_a_lazy_module_is_drawn_for_the_run_and_stays_lazy(data):
    module = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    (got,) = extract(data, module)
    assert got.widths == (3,) and isinstance(module[1].weight, nn.UninitializedParameter)
    module(torch.from_numpy(X))
    (got,) = extract(data, module)
    with torch.no_grad():
        torch.testing.assert_close(got.load("1"), module(torch.from_numpy(X)), rtol=1e-5, atol=1e-6)


def test_a_copy_is_the_same_and_leaves_the_first_as_it_was():
    """The first copy of an object leaves a mark, `__slotnames__`, on its class."""

    class Half:
        share = 2

        def __call__(self, x):
            return x / self.share

    half = Half()
    of_class, of_object = fingerprint(Half), fingerprint(Half, half)
    copied = copy.deepcopy(half)
    assert "__slotnames__" in vars(Half)
    assert fingerprint(Half) == of_class and fingerprint(Half, half) == fingerprint(Half, copied) == of_object


def test_what_wraps_a_module_is_taken_off(net, data):
    plain = extract(data, net)[0]
    for wrapped in (torch.compile(net, backend="eager"), nn.DataParallel(net)):
        assert extract(data, wrapped)[0].path == plain.path
    assert extract(data, nn.ReLU())[0].layers == ("output",)


# --- models of libraries: as what the same files give --------------------------------------------


def loaded(name: str, folder: Path):
    import transformers as hf

    getattr(tiny, name)(folder)
    heads = {"gpt2": hf.GPT2LMHeadModel, "bert": hf.BertForMaskedLM, "vit": hf.ViTForImageClassification}
    model = heads.get(name, hf.T5ForConditionalGeneration).from_pretrained(folder)
    return model, (hf.AutoImageProcessor if name == "vit" else hf.AutoTokenizer).from_pretrained(folder)


@pytest.mark.parametrize("name", ["gpt2", "bert", "vit", "t5"])
def test_a_model_of_transformers_with_its_processor(name, both, tmp_path):
    model, processor = loaded(name, tmp_path / "m")
    model.train()
    configs = [dict(vars(m.config)) for m in model.modules() if hasattr(m, "config")]
    got, of_files = extract(both, [(model, processor), f"hf:{tmp_path / 'm'}"])
    equal(got, of_files)
    assert got.record.scores == of_files.record.scores and (name != "gpt2" or got.record.scores)
    own = ("source", "tokenizer")
    assert {k: v for k, v in got.facts.items() if k not in own} == {k: v for k, v in of_files.facts.items() if k not in own}
    assert model.training and [dict(vars(m.config)) for m in model.modules() if hasattr(m, "config")] == configs
    with pytest.raises(RepalignError, match=r"its (image processor|tokenizer) is not there\n  expected: a pair, \(model, "):
        extract(both, [model])


def test_both_sides_of_a_model_of_transformers(both, tmp_path):
    import transformers as hf

    tiny.clip(tmp_path / "m")
    model = hf.CLIPModel.from_pretrained(tmp_path / "m")
    eyes, reader = hf.CLIPImageProcessor.from_pretrained(tmp_path / "m"), hf.AutoTokenizer.from_pretrained(tmp_path / "m")
    sides = [ModelEntry(f"hf:{tmp_path / 'm'}", modality=m) for m in ("image", "text")]
    of_files = extract(both, sides, tmp_path / "store")
    processor = hf.CLIPProcessor(image_processor=eyes, tokenizer=reader)
    got = extract(both, [(model, processor)])
    assert [r.name for r in got] == ["CLIPModel-image", "CLIPModel-text"]
    for pair in zip([*got, *extract(both, [(model, eyes), (model, reader)])], of_files * 2, strict=True):
        equal(*pair)
    assert len(extract(Dataset.of(text=["a dog", "a cat"]), [(model, processor)])) == 1
    (named,) = extract(both, [Model((model, processor), name="mine", modality="text")])
    assert named.name == "mine" and named.path == extract(both, [(model, processor)])[1].path
    with pytest.raises(RepalignError, match=r"a processor of what it is to read is not there\n.*\(model, processor\)"):
        extract(both, [model])


def test_modules_of_a_model_of_transformers_by_their_names(both, tmp_path):
    model, processor = loaded("vit", tmp_path / "m")

    def prepare(image):
        return processor(image, return_tensors="pt")["pixel_values"][0]

    (got,) = extract(both, Model(model, modality="image", preprocess=prepare, layers="vit.layers.1", pooling="cls"))
    (spec,) = extract(both, [f"hf:{tmp_path / 'm'}"])
    torch.testing.assert_close(got.load("vit.layers.1"), spec.load("block.1"), rtol=1e-5, atol=1e-6)


def test_a_sentence_transformer(both, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = tiny.sentence_transformer(tmp_path / "st", tiny.bert(tmp_path / "base", pooler=True))
    model = SentenceTransformer(str(folder), device="cpu")
    model.train()
    got, of_files = extract(both, [model, f"st:{folder}"])
    equal(got, of_files)
    want = model.eval().encode(list(tiny.CAPTIONS))
    np.testing.assert_allclose(got.load("sentence_embedding").numpy(), want, rtol=1e-4, atol=1e-6)
    assert not model[0].auto_model.config.output_hidden_states


@pytest.mark.parametrize("name, layers", [("timm_vit", None), ("timm_vit", "blocks.*"), ("timm_cnn", None)])
def test_a_model_of_timm_brings_its_transform(name, layers, both, tmp_path):
    import timm

    folder = getattr(tiny, name)(tmp_path / "m")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).train()
    how = {"layers": layers, "pooling": "mean"}
    got, of_files = extract(both, [Model(model, **how), ModelEntry(f"timm:{folder}", **how)])
    equal(got, of_files)
    assert got.facts["preprocessing"]["mean"] == [0.4, 0.5, 0.6] and model.training
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    equal(extract(both, Model((model, transform), **how))[0], of_files)


def test_an_openclip_pair(both, tmp_path, monkeypatch):
    open_clip = pytest.importorskip("open_clip", reason="the extra repalign[openclip] is not installed")
    from open_clip.model import CLIP
    from open_clip.transform import image_transform

    vision = {"image_size": 32, "layers": 3, "width": 24, "patch_size": 8, "head_width": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    model = seeded(lambda: CLIP(12, vision, text)).train()
    transform, tokenizer = image_transform(32, is_train=False), open_clip.get_tokenizer("ViT-B-32")
    image, words = extract(both, [(model, transform), (model, tokenizer)])
    assert (image.name, words.name) == ("CLIP-image", "CLIP-text") and model.training
    model.eval()
    with torch.no_grad():
        seen = model.encode_image(torch.stack([transform(i) for i in tiny.images()]))
        read = model.encode_text(tokenizer(list(tiny.CAPTIONS)))
    torch.testing.assert_close(image.load("embedding"), seen, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(words.load("embedding"), read, rtol=1e-4, atol=1e-6)
    assert words.path == extract(both, [(model, tokenizer)])[0].path
    with pytest.raises(RepalignError, match="its transform or its tokenizer is not there"):
        extract(both, [model])


# --- functions of a batch ------------------------------------------------------------------------


def test_functions_of_texts_pictures_and_arrays(both, data):
    def letters(texts: list[str]) -> list[list[float]]:
        assert all(isinstance(t, str) for t in texts)
        return [[len(t), t.count("a") / 3] for t in texts]

    def colours(pictures: list[Image.Image]) -> dict[str, object]:
        means = np.array([np.asarray(p, dtype=np.float64).mean((0, 1)) for p in pictures])
        return {"mean": torch.from_numpy(means).requires_grad_(), "maps": means[:, :, None, None] * np.ones((2, 2))}

    words, seen = extract(both, [Model(letters, modality="text"), Model(colours, name="eyes", modality="image")], batch_size=3)
    np.testing.assert_allclose(words.load("output").numpy(), letters(list(tiny.CAPTIONS)), rtol=1e-7)
    assert (words.name, seen.name) == ("letters", "eyes")
    for layer in ("mean", "maps"):
        np.testing.assert_allclose(seen.load(layer).numpy(), colours(tiny.images())["mean"].detach().numpy(), rtol=1e-6)
    assert extract(both, Model(colours, modality="image", layers="ma*"))[0].layers == ("maps",)
    (got,) = extract(data, lambda rows: np.stack(rows)[:, :2])
    np.testing.assert_array_equal(got.load("output").numpy(), X[:, :2])
    assert got.name == "<lambda>" and got.record.n_parameters is None


@pytest.mark.parametrize("given, message", [
    (lambda x: np.zeros((1, 3)), r"layer output: not one row for each(.|\n)*expected: \(2, d\)\n  got: shape \(1, 3\)"),
    (lambda x: None, "the function gives no array"), (lambda x: ["a"] * len(x), "no array"),
    (lambda x: np.ones((len(x), 2)) * 1j, "complex"),
    (lambda x: np.ones(len(x)), "no known form"), (lambda x: np.stack(x) - np.mean(x, axis=0), "beside others than alone"),
    (lambda x: {f"n{min(len(x), 3)}": np.ones((len(x), 2))}, "beside others than alone"),
    (lambda x: {"a" if len(x) < 3 else "b": np.ones((len(x), 2))}, "other layers for other stimuli"),
    (lambda x: np.full((len(x), 2), np.nan), "is NaN"),
])  # fmt: skip
def test_what_a_function_may_not_give(given, message, data):
    with pytest.raises(RepalignError, match=message):
        extract(data, given)


# --- what tells features from those of another model ---------------------------------------------


def test_weights_tell_models_apart_and_the_same_are_not_run_again(net, data, tmp_path):
    def run(model) -> tuple[str, bool]:
        notes: list = []
        (found,) = extract(data, [model], tmp_path, progress=lambda *a: notes.append(a))
        return found.path, "complete in the store" in told(notes)

    first, again = run(net), run(net)
    assert not first[1] and again == (first[0], True)
    assert run(seeded(Net)) == again and run(Model(net, name="other"))[1]
    assert run(Model(net, revision="2"))[0] != first[0]
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    net(torch.from_numpy(X)).sum().backward()
    optimizer.step()
    other, done = run(net)
    assert other != first[0] and not done
    assert run(seeded(Net)) == again


def test_all_that_a_module_computes_with_counts(tmp_path):
    def changed(one: object, other: object) -> None:
        assert None not in (a := fingerprint(one), b := fingerprint(other)) and a != b

    changed(seeded(Net), seeded(lambda: Net(2.0)))  # an attribute
    heads = [seeded(lambda n=n: nn.TransformerEncoderLayer(8, n, 8)) for n in (2, 4)]  # weights and repr are the same
    assert all(torch.equal(a, b) for a, b in zip(heads[0].state_dict().values(), heads[1].state_dict().values(), strict=True))
    changed(*heads)
    hooked = seeded(Net)
    hooked.stem.register_forward_hook(lambda _m, _a, out: 2 * out)
    changed(seeded(Net), hooked)
    unsaved = seeded(Net)
    unsaved.register_buffer("mask", torch.ones(3), persistent=False)
    changed(seeded(Net), unsaved)
    codes = []
    for number in (1, 2):  # the code of a class, a constant that it names, a variable around it
        for text in (f"return {number} * x", "return K * x", "return k * x"):
            space: dict = {"nn": nn, "K": number, "__name__": "somewhere"}
            exec(f"def make(k):\n class M(nn.Module):\n  def forward(self, x):\n   {text}\n return M()", space)
            codes.append(fingerprint(space["make"](number)))
    assert None not in codes and len(set(codes)) == len(codes)
    assert fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 1) != fingerprint(lambda x: x + 2)
    assert fingerprint(i for i in "ab") is None and fingerprint(open) is not None


def test_what_goes_before_a_module_counts_too(both, tmp_path):
    from torchvision.transforms import v2

    module = seeded(Eyes)
    sizes = [v2.Compose([v2.PILToTensor(), v2.Resize((n, n)), v2.ToDtype(torch.float32, scale=True)]) for n in (8, 8, 9)]
    paths = [extract(both, Model(module, modality="image", preprocess=t), tmp_path)[0].path for t in sizes]
    assert paths[0] == paths[1] != paths[2]


def test_the_digest_is_the_same_in_every_process(tmp_path):
    code = (
        "import torch; from torch import nn; from repalign.sources.identity import fingerprint\n"
        "class M(nn.Module):\n"
        "    def __init__(self): super().__init__(); self.a = nn.LSTM(3, 2); self.names = {'x', 'y', 'z', 'w'}\n"
        "    def forward(self, x): return self.a(x)[0] if 'q' not in {'r', 's', 't', 'u'} else x\n"
        "torch.manual_seed(0); found = fingerprint(M(), lambda x: x + 1)"
    )
    space: dict = {"__name__": "__main__"}
    exec(code, space)
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", f"{code}; print(found)"], env=environment, capture_output=True, text=True)
    assert other.stdout.strip() == space["found"], other.stderr


def test_features_of_a_function_are_never_taken_for_anothers(data, tmp_path, caplog):
    calls = []

    def double(rows):
        calls.append(len(rows))
        return 2 * np.stack(rows)

    with caplog.at_level(logging.WARNING):
        first, second = (extract(data, double, tmp_path)[0] for _ in range(2))
    assert first.path != second.path and len(calls) == 6 and not list(tmp_path.iterdir())
    assert "kept until Python ends, not in the store" in caplog.text
    stored = [extract(data, Model(double, revision=r), tmp_path)[0] for r in ("1", "1", "2")]
    assert len(calls) == 12 and stored[0].path == stored[1].path != stored[2].path
    assert len(FeatureStore(tmp_path).representations()) == 2
    caplog.clear()
    extract(data, double)
    assert not caplog.text


def test_a_module_that_cannot_be_told_is_as_a_function(net, data, tmp_path):
    import threading

    net.lock = threading.Lock()
    first, second = (extract(data, net, tmp_path)[0] for _ in range(2))
    assert first.path != second.path and not list(tmp_path.iterdir())
    said = [extract(data, Model(net, revision="1"), tmp_path)[0].path for _ in range(2)]
    with torch.no_grad():
        net.head.bias += 1
    assert said[0] == said[1] != extract(data, Model(net, revision="1"), tmp_path)[0].path


# --- without a store, and many models ------------------------------------------------------------


def test_without_a_store_and_straight_into_a_comparison(data, both, monkeypatch):
    models = [seeded(Net), seeded(lambda: Net(2.0)), lambda rows: np.stack(rows)]
    reps = extract(data, models)
    assert [r.name for r in reps] == ["Net", "Net-2", "<lambda>"]
    table = repalign.compare(reps, measures="cka").rows("max")
    assert len(table) == 3 and table["n"].tolist() == [7] * 3
    # The folder goes when Python ends.
    ends: list = []
    monkeypatch.setattr(loop.atexit, "register", lambda function, *a, **k: ends.append((function, a, k)))
    store = loop.session_store.__wrapped__()
    assert Path(store.url).is_dir()
    (function, given, how), = ends
    function(*given, **how)
    assert not Path(store.url).exists()


def test_an_executor_leaves_objects_in_this_process(net, data):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as executor:
        monkey = executor.submit
        executor.submit = lambda *a, **k: pytest.fail("sent away")
        (got,) = extract(data, net, executor=executor, rows_per_part=2)
        executor.submit = monkey
    assert got.n == 7


# --- data ----------------------------------------------------------------------------------------

FRAME = pd.DataFrame({"key": [3, 1, 2], "text": ["a dog", "a cat", "a cow"], "label": [0, 1, 1]})


def test_a_frame_is_a_table():
    import pyarrow as pa

    d = Dataset.from_table(FRAME, text="text")
    assert d.ids == ("00000", "00001", "00002") and "ids are row numbers" in d.source
    assert [t for (t,) in d.stimuli("text", range(3))] == FRAME["text"].tolist()
    assert Dataset.from_table(FRAME, id="key", text="text").ids == ("3", "1", "2")
    assert Dataset.from_table(FRAME.rename(columns={"key": "id"}), text="text").ids == ("3", "1", "2")
    same = [pa.Table.from_pandas(FRAME), FRAME.to_dict("records"), FRAME.astype({"text": "category"})]
    assert {Dataset.from_table(t, text="text").fingerprint for t in same} == {d.fingerprint}
    assert Dataset.from_table(FRAME.assign(text=FRAME["text"].str.upper()), text="text").fingerprint != d.fingerprint
    several = FRAME.assign(text=[["a", "b"], ["c"], ["d"]])
    assert Dataset.from_table(several, text="text").stimuli("text", [0]) == [("a", "b")]
    holes = FRAME.assign(text=["a", None, float("nan")])
    with pytest.raises(RepalignError, match="2 of 3 rows cannot be used: row 1 .*caption missing"):
        Dataset.from_table(holes, text="text")
    assert Dataset.from_table(holes, text="text", on_missing="drop").n == 1
    twice = FRAME.rename(columns={"key": "text"})
    for given, message in ((twice, "column 'text' is there twice"), (3, "made of no int(.|\n)*Dataset.of")):
        with pytest.raises(RepalignError, match=message):
            Dataset.from_table(given, text="text")
    with pytest.raises(RepalignError, match="DataFrame has no column 'txt'"):
        Dataset.from_table(FRAME, text="txt")


def test_pictures_in_a_frame(tmp_path):
    pictures = tiny.images(3)
    pictures[0].save(tmp_path / "a.png")
    frame = FRAME.assign(image=pictures)
    d = Dataset.from_table(frame, image="image", text="text")
    assert [np.array_equal(a, b) for a, b in zip(d.stimuli("image", range(3)), pictures, strict=True)] == [True] * 3
    cells = ["a.png", (tmp_path / "a.png").read_bytes(), {"bytes": None, "path": "a.png"}]
    files = Dataset.from_table(FRAME.assign(image=cells), image="image", root=tmp_path)
    assert np.array_equal(files.stimuli("image", [1])[0], pictures[0])
    pictures[1].putpixel((0, 0), (1, 2, 3))
    assert Dataset.from_table(frame, image="image", text="text").fingerprint != d.fingerprint
    with pytest.raises(RepalignError, match="image 'image in memory' has changed since the dataset was opened"):
        d.stimuli("image", [1])
    deep = Image.fromarray(np.ones((4, 4), np.float32))
    with pytest.raises(RepalignError, match="mode 'F' have no defined range"):
        Dataset.of(image=[deep])


def test_lists_of_stimuli():
    pictures = tiny.images(4)
    d = Dataset.of(image=pictures, text=["a", "b", ["c", "d"], "e"], ids=[4, 3, 2, 1], name="mine")
    assert (d.name, d.modalities, d.ids) == ("mine", ("image", "text"), ("4", "3", "2", "1"))
    assert d.stimuli("text", [2]) == [("c", "d")] and d.kind("image") == "image"
    by_arrays = Dataset.of(image=[np.asarray(p) for p in pictures], text=["a", "b", ["c", "d"], "e"], ids=[4, 3, 2, 1])
    assert by_arrays.fingerprint == d.fingerprint != Dataset.of(image=pictures, text=["a", "b", ["c", "d"], "e"]).fingerprint
    mixed = Dataset.of(image=torch.rand(4, 3, 8, 8), latent=np.zeros((4, 2)), text=list("abcd"))
    assert [mixed.kind(m) for m in mixed.modalities] == ["array", "array", "text"]
    clear = Image.new("RGBA", (3, 2), (255, 0, 0, 0))
    assert np.asarray(Dataset.of(image=[clear]).stimuli("image", [0])[0]).min() == 255  # over white, as in files
    for given, message in (
        ({"text": "abc"}, "text: it is no list"), ({"text": ["a"], "image": pictures}, "unequal length(.|\n)*1 text, 4 image"),
        ({"text": ["a"], "ids": ["a", "b"]}, "2 ids, 1 text"), ({}, "no rows"),
        ({"eyes": pictures}, "no arrays of one shape(.|\n)*pictures under `image`"),
        ({"x": [np.ones(2), np.ones(3)]}, "same shape"), ({"text": ["a", "b"], "ids": ["a", "a"]}, "the same id 'a'"),
    ):  # fmt: skip
        with pytest.raises(RepalignError, match=message):
            Dataset.of(**given)


class Items(torch.utils.data.Dataset):
    def __init__(self, items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_datasets_of_torch(net):
    pictures = tiny.images(4)
    labelled = Items(list(zip(pictures, range(4), strict=True)))
    for given in (labelled, torch.utils.data.DataLoader(labelled, batch_size=2, shuffle=True)):
        d = Dataset.from_torch(given)
        assert d.modalities == ("image",) and d.fingerprint == Dataset.of(image=pictures).fingerprint and d.name == "Items"
    named = Items([{"pixels": torch.full((3, 2, 2), float(i)), "caption": f"no. {i}"} for i in range(4)])
    d = Dataset.from_torch(named, image="pixels", text="caption")
    assert (d.kind("image"), d.stimuli("text", [3])) == ("array", [("no. 3",)]) and d.stimuli("image", [2])[0].max() == 2
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.arange(7))
    equal(extract(Dataset.from_torch(tensors), net)[0], extract(Dataset.of(image=X), net)[0])
    assert Dataset.from_torch(Items(["a", "b"])).modalities == ("text",)
    with pytest.raises(RepalignError, match="which fields(.|\n)*the keys are 'pixels', 'caption'"):
        Dataset.from_torch(named)
    with pytest.raises(RepalignError, match="no field 'x'"):
        Dataset.from_torch(named, image="x")


def test_a_dataset_of_the_datasets_library():
    datasets = pytest.importorskip("datasets", reason="the extra repalign[models] is not installed")
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "image": tiny.images(2)}, features=features)
    d = Dataset.from_table(data, text="text", image="image")
    assert d.ids == ("00000", "00001") and np.array_equal(d.stimuli("image", [1])[0], tiny.images(2)[1])
    assert {Dataset.from_hub(data, text="text", image="image").fingerprint, Dataset.from_table(
        data.to_pandas(), text="text", image="image").fingerprint} == {d.fingerprint}  # fmt: skip
    assert Dataset.from_table(data.add_column("id", ["x", "y"]), text="text").ids == ("x", "y")


# --- the page ------------------------------------------------------------------------------------


def test_blocks_of_the_page_are_short():
    """They are run by tests/test_pages.py."""
    page = (Path(__file__).parents[1] / "docs/models.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    assert len(blocks) >= 5 and all(len(block.strip().splitlines()) <= 6 for block in blocks)
