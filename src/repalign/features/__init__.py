"""Features of any origin, read by one rule.

| form | what it holds |
| --- | --- |
| .npy, a numpy or torch array | one layer, "features"; of three dimensions several |
| .npz, .pt, .safetensors, a mapping | named arrays |
| .parquet, a frame, a structured array | columns: numbers, lists, texts; and the index of pandas |
| a list | arrays (n, d), a layer each; or rows |

**The rule.** Two-dimensional float blocks are layers; all float columns of a table together are one. The id is what is called
so (`id`, `ids`, `image_id`, a text or named index, ids in a safetensors file's metadata, `FILE.ids.txt`, `FILE.ids.json`) or what
the caller names. Everything else is left out and named in `how`, or refused where it could be meant as a feature. Rows are
paired by position only if nothing on either side could be an id, or the caller says so.

**By pairs.** A square symmetric array is refused until somebody says what it is: an RDM or a kernel (`kind`, or the wrappers
`RDM` and `Kernel`), (n, n) or a stack (m, n, n), whose rows and columns are the stimuli; or features after all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repalign.errors import RepalignError
from repalign.features._files import file_widths, read_file, sidecars
from repalign.features._ids import names_of
from repalign.features._join import Joined, join
from repalign.features._matrix import is_symmetric, refuse_unmarked_matrix
from repalign.features._memory import of_object
from repalign.features._rule import Found, apply
from repalign.features._table import AXES, Reading

__all__ = [
    "AXES",
    "Found",
    "Joined",
    "Reading",
    "file_widths",
    "is_symmetric",
    "join",
    "names_of",
    "read_features",
    "read_file",
    "refuse_unmarked_matrix",
    "sidecars",
]


def read_features(source: Any, reading: Reading | None = None, *, name: str = "x", **said: Any) -> Found:
    """Layers and ids of a file or an object of any form; `said` are the fields of `Reading`.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"f0": [0.1, 0.2], "f1": [1.0, 3.0], "label": [1, 1]}, index=["a", "b"])
    >>> found = read_features(frame)
    >>> found.ids, found.how
    (('a', 'b'), 'x: features: 2 columns f0, f1; ids: the index (text); left out: label (int64)')

    Raises RepalignError, which names the source and the block, for whatever the rule does not settle.
    """
    reading = Reading(**said) if reading is None else reading
    if isinstance(source, Found):
        if reading != Reading():
            raise RepalignError(f"{source.what}: it has been read", remedy="say what it is to `read_features`, at once")
        return source
    if isinstance(source, (str, Path)):
        return read_file(source, reading)
    try:
        return apply(of_object(source, name), reading)
    except RepalignError:
        raise
    except Exception as error:  # of numpy, torch, pandas and Arrow, each with kinds of its own
        raise RepalignError(
            f"{name}: it cannot be read as features",
            expected="arrays of numpy or torch, frames, mappings or lists of these",
            got=f"{type(source).__name__}: {(str(error).splitlines() or [type(error).__name__])[0][:200]}",
            remedy="convert it to a float array (n, d)",
        ) from error
