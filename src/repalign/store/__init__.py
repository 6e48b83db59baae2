"""The feature store: what models make of a dataset, on disk, part by part, in safetensors files.

`docs/store.md` describes the format on a page. An extraction is written by a `Writer` in parts that
are each there whole or not at all, and is complete when its manifest is there; it is read as a
`StoredRepresentation`, a layer at a time. `check` says what is broken in a store.
"""

from repalign.store.check import Problem, check
from repalign.store.format import extraction_hash
from repalign.store.reader import StoredRepresentation
from repalign.store.store import MARKER, FeatureStore, Kept
from repalign.store.writer import Part, Writer

__all__ = ["MARKER", "FeatureStore", "Kept", "Part", "Problem", "StoredRepresentation", "Writer", "check", "extraction_hash"]
