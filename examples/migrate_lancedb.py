"""A table of LanceDB: python examples/migrate_lancedb.py ./db documents new_sample.parquet"""

import sys

import lancedb
import pyarrow.parquet as pq
from repalign.experiments import migrate


def read(db, table, to="old.parquet", columns=("id", "vector")):  # batch by batch: nothing is held, here or in `migrate`
    batches = lancedb.connect(db).open_table(table).search(None).select(list(columns)).to_batches()
    with pq.ParquetWriter(to, batches.schema) as file:
        for batch in batches:
            file.write_batch(batch)
    return to


if __name__ == "__main__":
    print(migrate(read(sys.argv[1], sys.argv[2]), sys.argv[3]).text)
