"""The layers of a file of features, read from its header."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

from repalign.estimate._facts import FILE, UNKNOWN, Facts


def array_facts(path: Path) -> Facts:
    """Widths of all layers without reading them; None where a form has no header that says them, or the file is broken."""
    if not path.is_file():
        return Facts()
    readers = {
        ".npy": _npy,
        ".npz": _npz,
        ".safetensors": _safetensors,
        ".parquet": _parquet,
        ".pt": _pt,
        ".pth": _pt,
    }
    reader = readers.get(path.suffix.lower())
    try:
        layers = None if reader is None else reader(path)
    except Exception:  # each library raises its own kinds for a broken file; the run will say what is wrong
        layers = None
    return Facts(
        widths=None if layers is None else tuple(layers.values()),
        names=None if layers is None else tuple(layers),
        file_bytes=path.stat().st_size,
        download_bytes=0,
        reads_array=True,
        download_from=FILE,
        layers_from=UNKNOWN if layers is None else FILE,
    )


def _npy(path: Path) -> dict[str, int]:
    import numpy as np

    return {"features": np.load(path, mmap_mode="r", allow_pickle=False).shape[1]}


def _npz(path: Path) -> dict[str, int]:
    from numpy.lib import format as npy

    out = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
                shape = read(file)[0]
            out[member.removesuffix(".npy")] = shape[-1]
    out.pop("ids", None)
    return out


def _safetensors(path: Path) -> dict[str, int]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        names = json.loads(metadata["layers"]) if "layers" in metadata else sorted(file.keys())
        return {name: file.get_slice(name).get_shape()[1] for name in names}


def _parquet(path: Path) -> dict[str, int]:
    """A column of lists is as wide as its first row; all numeric columns are one layer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    columns = [f for f in file.schema_arrow if f.name != "id"]
    lists = [f.name for f in columns if pa.types.is_nested(f.type)]
    first = next(file.iter_batches(batch_size=1, columns=lists)) if lists else None
    out = {} if first is None else {name: len(first[name][0]) for name in lists}
    numeric = [f for f in columns if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]
    return {**out, "features": len(numeric)} if numeric else out


def _pt(path: Path) -> dict[str, int]:
    """Tensors are mapped, not read."""
    import torch

    held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    held = held.get("feats", held) if isinstance(held, dict) else held
    if isinstance(held, torch.Tensor):
        if held.ndim == 3:
            return {f"layer.{i}": held.shape[2] for i in range(held.shape[1])}
        return {"features": math.prod(held.shape[1:])}
    pairs = held.items() if isinstance(held, dict) else ((f"layer.{i}", x) for i, x in enumerate(held))
    return {str(name): x.shape[1] for name, x in pairs if isinstance(x, torch.Tensor) and x.ndim == 2}
