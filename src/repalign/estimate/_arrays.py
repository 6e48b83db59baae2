"""The layers of a file of features, read from its header."""

from __future__ import annotations

from pathlib import Path

from repalign.estimate._facts import FILE, UNKNOWN, Facts
from repalign.features import Reading, file_widths


def array_facts(path: Path, reading: Reading) -> Facts:
    """Widths of all layers without reading them; None where a form has no header that says them, or the file is broken."""
    if not path.is_file():
        return Facts()
    try:
        layers = file_widths(path, reading)
    except Exception:  # each library raises its own kinds for a broken file; the run will say what is wrong
        layers = None
    return Facts(
        widths=None if layers is None else tuple(layers.values()),
        names=None if layers is None else tuple(layers),
        file_bytes=path.stat().st_size,
        download_bytes=0,
        reads_array=True,
        download_from=FILE,
        layers_from=UNKNOWN if layers is None else FILE,
    )
