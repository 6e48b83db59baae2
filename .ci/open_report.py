"""Open a report in headless Chromium: it must render, and its scripts must not fail."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,2400",
    "--virtual-time-budget=15000",
]


def main(report: Path) -> None:
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                "chromium",
                *FLAGS,
                f"--user-data-dir={profile}",
                "--enable-logging=stderr",
                "--dump-dom",
                report.resolve().as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        )
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "rror" in line]
    if errors:
        sys.exit("the report's scripts failed:\n" + "\n".join(errors))
    if "<table" not in done.stdout or "MutualKNN" not in done.stdout:
        sys.exit("the report did not render its table")
    print(f"{report}: rendered, {len(done.stdout)} characters, no script errors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
