"""Models that are not to be had: against a hub of our own on this machine, which answers as the real one does."""

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models as tiny
from repalign.cli import main
from repalign.competence import bits_per_byte
from repalign.errors import RepalignError, Unavailable
from repalign.models import known_models
from repalign.sources import ModelEntry, Skipped, extract, hf_text

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return tiny.gpt2(tmp_path_factory.mktemp("gpt2"))


class Hub:
    """Repositories by name: a folder of files, or the refusal (status, error code) of their files."""

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}
        self.refused: dict[str, tuple[int, str]] = {}
        self.asked: list[str] = []

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        parts = path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            revision = parts[5] if len(parts) > 5 else "main"
            if name not in self.files:
                return self._no(404, "RepoNotFound")
            if revision not in ("main", COMMIT):
                return self._no(404, "RevisionNotFound")
            if "tree" in parts:
                return 200, {"Content-Type": "application/json"}, b"[]"
            siblings = [{"rfilename": p.name} for p in self.files[name].iterdir()]
            told = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []}
            return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()
        name, file = "/".join(parts[:2]), "/".join(parts[4:])
        if name in self.refused:
            return self._no(*self.refused[name])
        if name not in self.files:
            return self._no(404, "RepoNotFound")
        if not (self.files[name] / file).is_file():
            return self._no(404, "EntryNotFound")
        data = (self.files[name] / file).read_bytes()
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{file}-{len(data)}"'}, data

    @staticmethod
    def _no(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
        headers = {"X-Repo-Commit": COMMIT, **({"X-Error-Code": code} if code else {})}
        return status, headers, b""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub's client asks the server of this fixture, and keeps what it gets in a cache of this test."""
    served = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self, body: bool) -> None:
            status, headers, data = served.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def do_GET(self) -> None:
            self._answer(True)

        def do_HEAD(self) -> None:
            self._answer(False)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    from huggingface_hub import constants

    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", endpoint)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it keeps a client of its own: of an earlier test's server
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def files_of(store: Path) -> list[str]:
    return sorted(p.name for p in store.rglob("*") if p.is_file())


def test_a_model_of_the_hub_is_extracted(hub, gpt2, data, tmp_path):
    """The server is enough of a hub: what it refuses below is refused for that reason alone."""
    hub.files["org/open"] = gpt2
    found = extract(data, ["hf:org/open"], tmp_path / "store")[0]
    local = extract(data, [f"hf:{gpt2}"], tmp_path / "local")[0]
    assert found.record.revision == COMMIT
    assert torch.equal(found.load("block.2"), local.load("block.2"))


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (403, "GatedRepo", r"access is gated; accept the licence on the page of org/it .* `hf auth login`"),
        (401, "GatedRepo", r"access is gated; accept the licence on the page of org/it .* `hf auth login`"),
        (403, "", r"the hub refuses access; log in with `hf auth login` as someone who may read org/it"),
        (404, "RepoNotFound", r"the hub has no such model or revision; check the spelling"),
    ],
)
def test_what_the_hub_refuses_is_left_out(status, code, reason, hub, gpt2, data, tmp_path):
    """The page of a gated model can be read by all: its revision is found, and its files are refused."""
    hub.files["org/it"] = gpt2
    hub.refused["org/it"] = (status, code)
    with pytest.raises(Unavailable, match=reason.partition(";")[0]):
        extract(data, ["hf:org/it"], tmp_path / "store")
    notes = []
    found = extract(
        data,
        [f"hf:{gpt2}", ModelEntry("hf:org/it", name="it"), ModelEntry(f"hf:{gpt2}", pooling="last")],
        tmp_path / "store",
        on_unavailable="skip",
        progress=lambda *a: notes.append(a),
    )
    left = found[1]
    assert isinstance(left, Skipped) and (left.spec, left.name) == ("hf:org/it", "it")
    assert re.search(reason, left.reason) and "\n" not in left.reason
    assert [r.manifest["settings"]["pooling"] for r in (found[0], found[2])] == [None, "last"]
    told = [n for n in notes if n[3:] and n[3] and "left out" in n[3]]
    assert told == [("extract it", data.n, data.n, f"left out: {left.reason}")]
    assert len(files_of(tmp_path / "store")) == 1 + 2 * 2  # the marker; a part and a manifest for each of the two


@pytest.mark.parametrize("spec", ["st:org/it", "timm:resnet18.a1_in1k"])
def test_other_sources_say_the_same(spec, hub, gpt2, data, tmp_path):
    name = "org/it" if spec.startswith("st:") else "timm/resnet18.a1_in1k"
    hub.files[name] = gpt2
    hub.refused[name] = (403, "GatedRepo")
    found = extract(data, [spec], tmp_path / "store", on_unavailable="skip")[0]
    assert "access is gated; accept the licence on the page of" in found.reason


def test_a_revision_that_is_not_there(hub, gpt2, data, tmp_path):
    hub.files["org/it"] = gpt2
    found = extract(data, ["hf:org/it@v9"], tmp_path / "store", on_unavailable="skip")
    assert "no such model or revision" in found[0].reason


def test_pickled_weights_alone(hub, gpt2, data, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    for file in gpt2.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    hub.files["org/old"] = folder
    found = extract(data, ["hf:org/old", f"hf:{folder}"], tmp_path / "store", on_unavailable="skip")
    assert all("there are no safetensors weights; convert them once" in f.reason for f in found)
    assert "@refs/pr/1" in found[0].reason and "@refs/pr/1" not in found[1].reason
    assert not any(p.endswith("pytorch_model.bin") for p in hub.asked)  # not even fetched


def test_an_architecture_that_the_library_lacks(hub, gpt2, data, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    for file in gpt2.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "transfo-xl-ii"}))
    hub.files["org/gone"] = folder
    found = extract(data, ["hf:org/gone"], tmp_path / "store", on_unavailable="skip")
    assert "does not have its architecture; upgrade transformers" in found[0].reason
    local = extract(data, [f"hf:{folder}"], tmp_path / "local", on_unavailable="skip")
    assert "does not have its architecture; upgrade transformers" in local[0].reason


def _without(name: str):
    return lambda folder: (folder / name).unlink()


def _config(**changed: Any):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, **changed}), "utf-8")

    return change


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _weights(change) -> Any:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return rewrite


def _whisper(folder: Path) -> None:
    """Its encoder hears, and takes no tokens."""
    from transformers import WhisperConfig, WhisperModel

    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SMALL.items()}
    WhisperModel(WhisperConfig(vocab_size=64, pad_token_id=0, d_model=32, num_mel_bins=8, **sizes)).save_pretrained(folder)


SMALL = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
REASONS = {  # what is wrong with a model of its own -> the reason that is told
    "no config": (_without("config.json"), r"cannot be loaded: .*config"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), r"cannot be loaded: .*(JSON|config)"),
    "no tokenizer": (_without("tokenizer.json"), r"its tokenizer cannot be loaded: "),
    "weights cut short": (_cut, r"cannot be loaded: .*model.safetensors"),
    "no weights": (_without("model.safetensors"), r"there are no safetensors weights; convert them once"),
    "a weight is lacking": (_weights(lambda t: t.pop("transformer.h.1.attn.c_attn.weight")), r"files lack weights"),
    "weights are NaN": (_weights(lambda t: t["transformer.wte.weight"].fill_(float("nan"))), r"not finite in float32"),
    "code of its own": (
        _config(model_type="mine", architectures=["Mine"], auto_map={"AutoConfig": "mine.Config"}),
        r"comes with code of its own, which is not run unless asked for; read the code",
    ),
    "a package is missing": (_config(quantization_config={"quant_method": "gptq", "bits": 4}), r"cannot be loaded: .*"),
    "reads no text": (_whisper, r"loading it, or its first pass, failed in its library: TypeError: "),
}


@pytest.mark.parametrize(("what", "where"), [*((w, "folder") for w in REASONS), ("no config", "hub"), ("code of its own", "hub")])
def test_what_fails_for_a_reason_of_its_own_is_left_out(what, where, hub, gpt2, data, tmp_path):
    """From the hub or in a folder: the others are extracted, and the reason is one line with the cause in it."""
    spoil, reason = REASONS[what]
    folder = tmp_path / "spoilt"
    shutil.copytree(gpt2, folder)
    spoil(folder)
    hub.files["org/it"] = folder
    entry = ModelEntry("hf:org/it" if where == "hub" else f"hf:{folder}", modality="text")
    found = extract(data, [entry, f"hf:{gpt2}"], tmp_path / "store", on_unavailable="skip")
    assert re.search(reason, found[0].reason) and "\n" not in found[0].reason
    assert found[1].layers
    with pytest.raises(Unavailable) as caught:
        extract(data, [entry], tmp_path / "store")
    assert "  do: " in str(caught.value)


@pytest.mark.parametrize("at", ["HFText.__init__", "HFText._padded", "HFText._pass", "load_tokenizer"])
def test_our_own_faults_are_not_left_out(at, gpt2, data, tmp_path, monkeypatch):
    """What this package does wrong keeps its traceback, whether models are left out or not."""

    def fault(*given: Any, **named: Any):
        raise TypeError("a fault of ours")

    fault.__code__ = fault.__code__.replace(co_filename=hf_text.__file__)
    monkeypatch.setattr(f"repalign.sources.hf_text.{at}", fault)
    with pytest.raises(TypeError, match="a fault of ours"):
        extract(data, [f"hf:{gpt2}"], tmp_path / "store", on_unavailable="skip")


@pytest.mark.parametrize("step", ["prepare", "forward"])
def test_what_a_library_raises_later_is_told_and_not_left_out(step, gpt2, data, tmp_path, monkeypatch):
    """Half of the rows are done: the model is there, and something is wrong with a stimulus or an option."""

    def fail(*given: Any, **named: Any):
        raise IndexError("index out of range in self")

    monkeypatch.setattr(f"repalign.sources.hf_text.HFText.{step}", fail)
    doing = {"prepare": r"preparing row 0 \(id 's00'\) to row 10 \(id 's10'\)", "forward": "a forward pass"}[step]
    with pytest.raises(RepalignError, match=f"{doing} failed in its library: IndexError: index out of") as caught:
        extract(data, [f"hf:{gpt2}"], tmp_path / "store", on_unavailable="skip")
    assert not isinstance(caught.value, Unavailable)


def test_memory_that_runs_out_while_loading(gpt2, data, tmp_path, monkeypatch):
    def fail(*given: Any, **named: Any):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 130 GiB")

    monkeypatch.setattr("transformers.GPT2LMHeadModel.from_pretrained", fail)
    found = extract(data, [f"hf:{gpt2}"], tmp_path / "store", on_unavailable="skip")
    assert "the memory ran out while it was loaded; see that nothing else uses the device" in found[0].reason


def test_without_a_network(gpt2, data, tmp_path, monkeypatch, caplog):
    """A pinned commit needs no answer to be resolved; its files do."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with caplog.at_level(logging.WARNING, "repalign"):
        found = extract(
            data,
            ["hf:org/none", f"hf:org/none@{COMMIT}", "st:org/none", "timm:resnet18.a1_in1k", f"hf:{gpt2}"],
            tmp_path / "store",
            on_unavailable="skip",
        )
    assert all(isinstance(f, Skipped) for f in found[:4]) and found[4].layers
    assert all("cannot be reached and the model is not in the cache" in f.reason for f in found[:4])
    assert sum("left out" in r.getMessage() for r in caplog.records) == 4  # one line each, where progress is silent


def test_hub_weights_of_timm_are_safetensors(hub, data, tmp_path):
    """timm reads a pickle where a repository has no safetensors file; here it is not asked to."""
    folder = tmp_path / "timm"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    hub.files["timm/resnet18.a1_in1k"] = folder
    found = extract(data, ["timm:resnet18.a1_in1k"], tmp_path / "store", on_unavailable="skip")[0]
    assert "there are no safetensors weights" in found.reason
    assert not any(p.endswith("pytorch_model.bin") for p in hub.asked)


def test_a_known_model_that_timm_no_longer_has(data, tmp_path, monkeypatch):
    import timm

    spec = next(k.spec for k in known_models() if k.spec.startswith("timm:"))
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: None)
    found = extract(data, [spec], tmp_path / "store", on_unavailable="skip")[0]
    assert "does not have it any more; install a version of timm that has it" in found.reason
    with pytest.raises(RepalignError, match=r"timm has no pretrained model 'resnet18\.mine'") as caught:
        extract(data, ["timm:resnet18.mine"], tmp_path / "store", on_unavailable="skip")
    assert not isinstance(caught.value, Unavailable)


# --- what stays an error -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"layers": ("block.99",)}, r"no layer 'block\.99'"),
        ({"pooling": "cls"}, r"pooling 'cls' does not apply"),
        ({"caption": 7}, r"has no caption 7"),
    ],
)
def test_mistakes_are_errors_still(entry, message, gpt2, data, tmp_path):
    with pytest.raises(RepalignError, match=message) as caught:
        extract(data, [ModelEntry(f"hf:{gpt2}", **entry)], tmp_path / "store", on_unavailable="skip")
    assert not isinstance(caught.value, Unavailable)


def test_bad_requests_are_told_before_anything_runs(gpt2, data, tmp_path):
    for models, message in (
        ([f"hf:{gpt2}", "hg:org/name"], r"starts with no known scheme"),
        ([f"hf:{gpt2}", ModelEntry("timm:resnet18", prompt="{caption}")], r"a prompt does not go with timm: models"),
    ):
        with pytest.raises(RepalignError, match=message):
            extract(data, models, tmp_path / "store", on_unavailable="skip")
    with pytest.raises(RepalignError, match=r"unknown on_unavailable 'ignore'\n  expected: error, skip"):
        extract(data, [f"hf:{gpt2}"], tmp_path / "store", on_unavailable="ignore")
    assert not (tmp_path / "store").exists()


def test_models_before_one_that_is_not_to_be_had_are_done(gpt2, data, tmp_path, monkeypatch):
    """Revisions are resolved one by one: the third is not asked for before the first two are whole."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    entries = [f"hf:{gpt2}", ModelEntry(f"hf:{gpt2}", pooling="last"), "hf:org/none"]
    with pytest.raises(Unavailable, match="cannot be reached"):
        extract(data, entries, tmp_path / "store")
    assert files_of(tmp_path / "store").count("manifest.json") == 2


def test_workers_say_the_same(gpt2, data, tmp_path, hub):
    """The error crosses to the caller as it is, with its remedy."""
    hub.files["org/it"] = gpt2
    hub.refused["org/it"] = (403, "GatedRepo")
    with ThreadPoolExecutor(2) as executor:
        found = extract(
            data, ["hf:org/it"], tmp_path / "store", on_unavailable="skip", executor=executor, rows_per_part=3
        )
    assert "access is gated; accept the licence" in found[0].reason
    error = Unavailable("model x: gone", got="404", remedy="look elsewhere")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is Unavailable and again.reason == error.reason == "model x: gone; look elsewhere"


# --- bits per byte -------------------------------------------------------------------------------


def test_bits_of_a_gated_model(hub, gpt2, tmp_path, capsys, monkeypatch):
    hub.files["org/it"] = gpt2
    hub.refused["org/it"] = (403, "GatedRepo")
    with pytest.raises(Unavailable, match="access is gated"):
        bits_per_byte("hf:org/it", ["A text."])
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("A dog runs.")

    def call(*options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["repalign", "competence", "bits", "hf:org/it", str(corpus), *options])
        with pytest.raises(SystemExit) as stop:
            main()
        told = capsys.readouterr()
        return int(stop.value.code or 0), told.out, told.err

    code, _, err = call()
    assert code == 1 and "access is gated" in err
    code, out, err = call("--on-unavailable", "skip")
    assert (code, out, err.count("\n")) == (0, "", 1)
    assert "bits per byte: left out: model hf:org/it: access is gated; accept the licence" in err
    code, _, err = call("--on-unavailable", "never")
    assert code == 1 and "expected: error, skip" in err
