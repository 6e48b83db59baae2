"""What a study that was run leaves behind, for tests of who runs it."""

from __future__ import annotations

from pathlib import Path

TABLES = ("results.parquet", "draws.parquet")


def made(folder: Path, study: str) -> Path:
    """The file of a study, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "s.yaml").write_text(study)
    return folder / "s.yaml"


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The features and the tables of a study, by their names."""
    found = [*folder.rglob("part-*.safetensors"), *(folder / "runs/s/results" / name for name in TABLES)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
