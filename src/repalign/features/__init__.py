"""Features of any origin, read by one rule.

| form | what it holds |
| --- | --- |
| .npy, a numpy or torch array | one layer, "features"; of three dimensions several |
| .npz, .pt, .safetensors, .h5, .mat, .zarr, a mapping | named arrays |
| .parquet, .feather, .arrow, .csv, .tsv, .jsonl, a frame, a structured array | columns: numbers, lists, texts; and an index |
| .vec, .w2v, .glove, .txt | words, each with its vector |
| a list | arrays (n, d), a layer each; or rows |

**The rule.** Two-dimensional float blocks are layers; all float columns of a table together are one. The id is what is called
so (`id`, `ids`, `image_id`, a text or named index, ids in a safetensors file's metadata, `FILE.ids.txt`, `FILE.ids.json`) or what
the caller names. Everything else is left out and named in `how`, or refused if it could be meant as a feature. Rows are
paired by position only if nothing on either side could be an id, or the caller says so.

**By pairs.** A square symmetric array is refused until somebody says what it is: an RDM or a kernel (`kind`, or the wrappers
`RDM` and `Kernel`), (n, n) or a stack (m, n, n), whose rows and columns are the stimuli; or features after all.
"""

from repalign.features.files import (
    SUFFIXES,
    feature_files,
    file_pieces,
    file_rows,
    file_widths,
    is_features,
    read_features,
    read_file,
    sidecars,
)
from repalign.features.pairing import Joined, join
from repalign.features.rule import AXES, Found, Reading, id_tier, names_of

__all__ = [
    "AXES", "SUFFIXES", "Found", "Joined", "Reading", "feature_files", "file_pieces", "file_rows", "file_widths", "id_tier",
    "is_features", "join", "names_of", "read_features", "read_file", "sidecars",
]  # fmt: skip
