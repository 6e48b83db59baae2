"""A bucket of S3 on this machine, for tests: moto's server in a thread, which counts requests and can refuse some."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

SLOW = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
BUCKET, SECRET = "bucket", "a-secret-of-the-tests"


class Bucket:
    """`url` is the bucket; `counts` its requests by kind; every `refuse`-th request is answered with 503 (0: none)."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app, self.url, self.refuse, self.refused, self.endpoint = app, f"s3://{BUCKET}", 0, 0, ""
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        kind = environ["REQUEST_METHOD"]
        kind = "LIST" if kind == "GET" and "list-type" in environ["QUERY_STRING"] else kind
        with self.lock:
            self.counts[kind] += 1
            refused = self.refuse and sum(self.counts.values()) % self.refuse == 0
            self.refused += bool(refused)
        if refused:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW)))])
            return [SLOW] if kind != "HEAD" else []
        return self.app(environ, start)

    def spent(self) -> dict[str, int]:
        """The requests since this was asked last."""
        with self.lock:
            counts, self.counts = dict(self.counts), Counter()
        return counts


@contextmanager
def bucket() -> Iterator[Bucket]:
    """An empty bucket; the environment has its address and credentials, for this process and those that it starts."""
    from fsspec import filesystem
    from moto.server import DomainDispatcherApplication, create_backend_app
    from s3fs import S3FileSystem
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            pass

    made = Bucket(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, made, threaded=True, request_handler=Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.endpoint = f"http://127.0.0.1:{server.server_port}"
    given = {
        "AWS_ENDPOINT_URL": made.endpoint, "AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    S3FileSystem.clear_instance_cache()
    try:
        filesystem("s3").mkdir(BUCKET)
        made.spent()
        yield made
    finally:
        with suppress(FileNotFoundError):
            made.refuse = 0
            filesystem("s3").rm(BUCKET, recursive=True)  # moto keeps its buckets for as long as Python runs
        S3FileSystem.clear_instance_cache()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        server.shutdown()
        thread.join()
        server.server_close()
