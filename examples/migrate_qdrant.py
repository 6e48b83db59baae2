"""A collection of Qdrant: python examples/migrate_qdrant.py http://localhost:6333 documents new_sample.parquet"""

import sys

import numpy as np
from qdrant_client import QdrantClient
from repalign.experiments import migrate


def read(client, collection, name=None):  # `name` picks one of several named vectors
    vectors, ids, page = [], [], None
    while True:
        points, page = client.scroll(collection, limit=1000, offset=page, with_vectors=True, with_payload=False)
        vectors += [p.vector if name is None else p.vector[name] for p in points]
        ids += [p.id for p in points]
        if page is None:
            return {"vectors": np.array(vectors, dtype=np.float32), "ids": ids}


if __name__ == "__main__":
    print(migrate(read(QdrantClient(sys.argv[1]), sys.argv[2]), sys.argv[3]).text)
