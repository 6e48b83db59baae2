"""Files of numpy and torch: .npy, .npz, .safetensors, .pt, .pth; headers first, and no pickle."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from repalign.errors import RepalignError
from repalign.features.arrays import Array, Arrays, listed_ids, natural, numpy_block, of_object
from repalign.features.rule import PLATONIC, Block, Kind, Table
from repalign.layers import FEATURES, as_tensor

KNOWN_FACTS = ("model", "objective", "modality", "pooling", "source", "published_imagenet_top1")
PICKLED = ("closed", "pickled objects, never loaded")


def _header(name: str, file: Any, get: Callable[[], np.ndarray]) -> tuple[Block, np.dtype]:
    """An array of numpy in a file, from its header; objects are pickles, which are never loaded."""
    version = npy.read_magic(file)
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    return numpy_block(name, shape, dtype, get, name, PICKLED), dtype


def read_npy(path: Path, headers: bool = False) -> Table:  # noqa: ARG001  (all is in headers)
    def get() -> np.ndarray:
        return np.load(path, allow_pickle=False)

    with path.open("rb") as file:
        block, dtype = _header(FEATURES, file, get)
        if not dtype.hasobject and (there := path.stat().st_size) < (whole := file.tell() + block.nbytes):
            raise ValueError(f"it ends after {there:,} of {whole:,} bytes")
    if dtype.names:
        return of_object(get(), str(path))
    if block.kind in ("other", "closed"):
        block.load()  # says what it is that is never loaded
    return Array(str(path), (block,))


def read_npz(path: Path, headers: bool = False) -> Table:  # noqa: ARG001  (all is in headers)
    def get(name: str) -> np.ndarray:
        with np.load(path, allow_pickle=False) as held:
            return held[name]

    blocks = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            name = member.removesuffix(".npy")
            with archive.open(member) as file:
                if file.peek(len(npy.MAGIC_PREFIX))[: len(npy.MAGIC_PREFIX)] == npy.MAGIC_PREFIX:
                    blocks.append(_header(name, file, lambda name=name: get(name))[0])
                else:
                    blocks.append(Block(name, "closed", (), "no array", lambda: None, list))
    if {"indptr", "indices", "data", "shape", "format"} <= {b.name for b in blocks}:
        raise RepalignError(
            f"{path}: a sparse matrix {tuple(get('shape').tolist())}", expected="a dense array (n, d)",
            got="a file of scipy.sparse.save_npz",
            remedy="np.save('dense.npy', scipy.sparse.load_npz(path).toarray()), where (n, d) fits in memory",
        )
    return Arrays(str(path), tuple(blocks))


def read_safetensors(path: Path, headers: bool = False) -> Table:  # noqa: ARG001  (all is in headers)
    from safetensors import safe_open

    def load(name: str) -> Tensor:
        with safe_open(path, framework="pt") as file:
            return as_tensor(file.get_tensor(name), name)

    blocks = []
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        for name in sorted(file.keys(), key=natural):  # a file has no order of its own
            at = file.get_slice(name)
            code, shape = at.get_dtype(), tuple(at.get_shape())
            kinds: dict[str, Kind] = {"F": "float", "B": "float", "C": "complex"}
            kind: Kind = "boolean" if code == "BOOL" else kinds.get(code[0], "integer")
            shown = {"BF": "bfloat", "F": "float", "I": "int", "U": "uint", "C": "complex"}
            prefix = code.rstrip("0123456789")
            dtype = f"{shown[prefix]}{code[len(prefix) :]}" if prefix in shown else code.lower()
            blocks.append(Block(name, kind, shape, dtype, lambda n=name: load(n), lambda n=name: load(n).tolist()))
    facts = {k: metadata[k] for k in KNOWN_FACTS if k in metadata}
    scores = {}
    if "published_imagenet_top1" in facts:
        try:
            scores["imagenet_top1"] = float(facts["published_imagenet_top1"])
        except ValueError:
            facts["imagenet_top1"] = "not a number in the file's metadata"
    if "ids" in metadata:
        blocks.append(listed_ids("ids of the metadata", metadata["ids"]))
    layers = tuple(map(str, json.loads(metadata["layers"]))) if "layers" in metadata else None
    return Arrays(str(path), tuple(blocks), layers, facts, scores=scores)


def read_torch(path: Path, headers: bool = False) -> Table:
    mapped = headers and zipfile.is_zipfile(path)  # files of torch before 1.6 cannot be mapped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sparse tensors, which are refused below
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    table = of_object(held, str(path))
    if not isinstance(held, Mapping) or PLATONIC not in held:
        return table
    bits, count = held.get("bpb"), held.get("num_params")
    scores = {} if bits is None else {"bits_per_byte": float(torch.as_tensor(bits, dtype=torch.float64).mean())}
    blocks = tuple(b for b in table.blocks if b.name not in ("bpb", "num_params"))
    parameters = None if count is None else int(count.item() if hasattr(count, "item") else count)
    return Arrays(str(path), blocks, None, {"source": "platonic-rep"}, parameters, scores)
