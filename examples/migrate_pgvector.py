"""A table of Postgres with pgvector: PGPASSWORD=... python examples/migrate_pgvector.py shop documents new_sample.parquet"""

import os
import sys

import pg8000.dbapi
import pyarrow as pa
import pyarrow.parquet as pq
from repalign.experiments import migrate


def read(connection, table, to="old.parquet", id="id", column="embedding"):  # of any driver; by pieces: nothing is held
    cursor, schema = connection.cursor(), pa.schema({"id": pa.string(), "vector": pa.list_(pa.float32())})
    cursor.execute(f"declare everything cursor for select {id}::text, {column}::real[] from {table}")
    with pq.ParquetWriter(to, schema) as file:
        cursor.execute(fetch := "fetch 10000 from everything")
        while rows := cursor.fetchall():
            file.write_table(pa.Table.from_pylist([{"id": i, "vector": v} for i, v in rows], schema))
            cursor.execute(fetch)
    return to


if __name__ == "__main__":
    connection = pg8000.dbapi.connect("postgres", database=sys.argv[1], password=os.environ.get("PGPASSWORD"))
    print(migrate(read(connection, sys.argv[2]), sys.argv[3]).text)
