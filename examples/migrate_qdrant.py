"""Vectors of a Qdrant collection as `repalign.experiments.migrate` reads them: vectors with the ids of their points.

    python examples/migrate_qdrant.py http://localhost:6333 documents old.npz

Needs `pip install qdrant-client`. Then: repalign migrate old.npz new_sample.npz
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def read(client: Any, collection: str, name: str | None = None) -> dict[str, Any]:
    """All vectors of a collection, by pages; `name` picks one of several named vectors."""
    vectors, ids, page = [], [], None
    while True:
        points, page = client.scroll(collection, limit=1000, offset=page, with_vectors=True, with_payload=False)
        vectors += [p.vector if name is None else p.vector[name] for p in points]
        ids += [str(p.id) for p in points]
        if page is None:
            return {"vectors": np.array(vectors, dtype=np.float32), "ids": np.array(ids)}


if __name__ == "__main__":
    from qdrant_client import QdrantClient

    url, collection, to = sys.argv[1:]
    np.savez(to, **read(QdrantClient(url), collection))
