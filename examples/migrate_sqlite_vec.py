"""A table of sqlite-vec: python examples/migrate_sqlite_vec.py notes.db documents embedding new_sample.parquet"""

import sqlite3
import sys

import numpy as np
import sqlite_vec
from repalign.experiments import migrate


def read(db, table, column):  # of float32, which is how the vectors lie there
    db.enable_load_extension(True)
    sqlite_vec.load(db)
    ids, vectors = zip(*db.execute(f"select rowid, {column} from {table}"), strict=True)
    return {"vectors": np.stack([np.frombuffer(v, np.float32) for v in vectors]), "ids": ids}


if __name__ == "__main__":
    print(migrate(read(sqlite3.connect(sys.argv[1]), sys.argv[2], sys.argv[3]), sys.argv[4]).text)
