"""An index of FAISS: python examples/migrate_faiss.py documents.index new_sample.parquet"""

import sys

import faiss
from repalign.experiments import migrate


def read(index):  # flat, HNSW, IVF and others; what an index compresses comes back as it is served
    mapped = isinstance(index, faiss.IndexIDMap)  # an index without ids counts its vectors from 0
    ids = faiss.vector_to_array(index.id_map) if mapped else range(index.ntotal)
    flat = faiss.downcast_index(index.index) if mapped else index
    if isinstance(flat, faiss.IndexIVF):
        flat.make_direct_map()
    return {"vectors": flat.reconstruct_n(0, flat.ntotal), "ids": [int(i) for i in ids]}


if __name__ == "__main__":
    print(migrate(read(faiss.read_index(sys.argv[1])), sys.argv[2]).text)
