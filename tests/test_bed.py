"""The real thing, end to end: photos and captions against tiny pretrained models and real features.

Expected values are those that were measured on the same files by outside code (the bed's own README).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from processes import FRESH

STUDY = Path(__file__).parent / "studies" / "flickr8k.yaml"

RAW, CENTRED = "MutualKNN(k=10, similarity='cosine', center=False)", "MutualKNN(k=10, similarity='cosine', center=True)"

# raw / centred mutual 10-NN with GloVe, mean of five captions
GLOVE = {
    ("mobilenet_025", 0): (0.0166, 0.0189), ("mobilenet_025", 1): (0.0220, 0.0242),
    ("mobilenet_025", 2): (0.0285, 0.0308), ("mobilenet_025", 3): (0.0356, 0.0367),
    ("mobilenet_025", 4): (0.0392, 0.0446), ("mobilenet_025", 5): (0.0572, 0.0619),
    ("mobilenet_075", 0): (0.0223, 0.0246), ("mobilenet_075", 1): (0.0279, 0.0278),
    ("mobilenet_075", 2): (0.0343, 0.0381), ("mobilenet_075", 3): (0.0415, 0.0453),
    ("mobilenet_075", 4): (0.0532, 0.0584), ("mobilenet_075", 5): (0.0731, 0.0833),
    ("resnet20", 2): (0.0228, 0.0283), ("resnet56", 2): (0.0235, 0.0282),
}  # fmt: skip

# raw / centred mutual 10-NN of hidden states with the last layer of mobilenet_075
HIDDEN = {
    "stories260k": [(0.0295, 0.0377), (0.0273, 0.0321), (0.0287, 0.0347), (0.0310, 0.0359), (0.0256, 0.0288), (0.0251, 0.0286)],
    "babyllama105": [(0.0217, 0.0241), (0.0252, 0.0275), (0.0243, 0.0270), (0.0284, 0.0307), (0.0308, 0.0367), (0.0244, 0.0294)],
}  # fmt: skip

BITS_PER_CHAR = {"stories260k": 2.831485, "babyllama105": 2.810072}


def study_file(folder: Path, *changes: tuple[str, str]) -> Path:
    """A copy of the study that writes its store and results into `folder`, with lines changed."""
    text = STUDY.read_text().replace("../../../shared", str(STUDY.parents[3] / "shared"))
    text = text.replace("torch:cifar_resnet.py", f"torch:{STUDY.parent / 'cifar_resnet.py'}")
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    path = folder / "study.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def bed(shared, tmp_path_factory):
    from repalign.study import load_study

    folder = tmp_path_factory.mktemp("bed")
    return folder, load_study(study_file(folder)).run().alignment


@pytest.mark.slow
def test_neighbours_agree_with_the_stated_values(bed):
    _, result = bed
    cells = result.cells()

    def score(model_x: str, index_x: int, model_y: str, index_y: int, measure: str) -> float:
        found = cells[
            (cells.model_x == model_x) & (cells.index_x == index_x) & (cells.model_y == model_y)
            & (cells.index_y == index_y) & (cells.measure == measure)
        ]  # fmt: skip
        assert len(found) == 1
        return float(found.statistic.iloc[0])

    for (model, layer), stated in GLOVE.items():
        tolerance = 1e-9 if model.startswith("mobilenet") else 3e-4
        for measure, value in zip((RAW, CENTRED), stated, strict=True):
            assert score("glove50", 1, model, layer, measure) == pytest.approx(value, abs=tolerance), (model, layer)
    for model, values in HIDDEN.items():
        for layer, stated in enumerate(values):
            for measure, value in zip((RAW, CENTRED), stated, strict=True):
                assert score(model, layer, "mobilenet_075", 5, measure) == pytest.approx(value, abs=3e-4), (
                    model,
                    layer,
                )


@pytest.mark.slow
def test_bits_per_character_agree_with_the_stated_values(bed):
    _, result = bed
    scores = {m["name"]: m["scores"] for m in result.run["models"]}
    for model, value in BITS_PER_CHAR.items():
        assert scores[model]["bits_per_char"] == pytest.approx(value, abs=1e-5)
    parameters = {m["name"]: m["n_parameters"] for m in result.run["models"]}
    assert (parameters["stories260k"], parameters["babyllama105"]) == (260032, 936448)


@pytest.mark.slow
def test_the_order_to_expect(bed):
    """Alignment grows with competence (MobileNet 0.25 below 0.75); captions' vectors align above chance."""
    _, result = bed
    best = result.best(RAW).set_index(["model_x", "model_y"])
    assert best.loc[("glove50", "mobilenet_075"), "statistic"] > best.loc[("glove50", "mobilenet_025"), "statistic"]
    assert best.loc[("glove50", "mobilenet_075"), "pvalue"] == pytest.approx(1 / 1000)
    assert best["null_mean"].between(0.0095, 0.0135).all()


def launched(asked, folder: Path) -> None:
    """Run the study in the folder `whole` and say how many seconds it took; then fork for all seconds that are asked for, run
    the study in the folder `killed` in the child, kill it after so long, and say how it ended.

    What takes longer than the work, to import, is done once: before this process, or by that first run.
    """
    import torch

    from repalign.cli import main
    from repalign.study import needs

    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)  # a process that had several threads of OpenMP cannot go on in a child
    needs.TRIAL_SECONDS = 0.01  # how long it takes is told from ever longer trials of it, in every run
    for stream in (1, 2):
        os.dup2(os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)

    def run(name: str) -> int:
        os.chdir(folder / name)
        sys.argv = ["repalign", "run", "study.yaml"]
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    start = time.monotonic()
    assert run("whole") == 0
    asked.send(time.monotonic() - start)
    while (seconds := asked.recv()) is not None:
        child, end, status = os.fork(), time.monotonic() + seconds, None
        if not child:
            os._exit(run("killed"))
        while status is None and time.monotonic() < end:
            done, found = os.waitpid(child, os.WNOHANG)
            status = os.waitstatus_to_exitcode(found) if done else None
            time.sleep(0.005)
        if status is None:
            os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        asked.send(status)


KILLS = 6
# Fewer photos in smaller parts: five parts of every model, where the whole study has four.
FEW = (
    ("  text: captions\n", "  text: captions\n  sample: {n: 200, seed: 0}\n"),
    ("batch_size: 64}", "batch_size: 64, rows_per_part: 44}"),
)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(shared, tmp_path):
    """SIGKILL at six random moments; finished parts are never written again; the table is byte-identical."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        study_file(tmp_path / name, *FEW)
    rng, inodes, killed = random.Random(0), {}, 0
    asking, asked = FRESH.Pipe()
    launcher = FRESH.Process(target=launched, args=(asked, tmp_path))
    launcher.start()
    asked.close()

    def answer() -> float:
        try:
            return asking.recv()
        except EOFError:
            pytest.fail(f"nothing runs the study: {(tmp_path / 'log.txt').read_text()[-3000:]}")

    def run(seconds: float) -> float:
        asking.send(seconds)
        return answer()

    try:
        whole, folder = answer(), tmp_path / "killed"  # seconds on this machine, as busy as it is
        while killed < KILLS:
            status = run(whole * rng.uniform(0.05, 0.35))
            killed += status == -signal.SIGKILL
            if status != -signal.SIGKILL:
                assert status == 0, (tmp_path / "log.txt").read_text()[-3000:]
                # It finished before the shot: shoot earlier, at the end of the work, which is taken away.
                next(folder.rglob("results.parquet")).unlink()
                whole /= 2
            for part in [*folder.rglob("part-*.safetensors"), *folder.rglob("tiles/*")]:
                if not part.name.startswith("."):
                    assert inodes.setdefault(part, part.stat().st_ino) == part.stat().st_ino, f"{part} was written twice"
        assert inodes, "no part was ever finished before a kill: the test shot too early"
        assert run(300) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    finally:
        with suppress(OSError):  # it has ended already
            asking.send(None)
        launcher.join(60)
    one, other = (next((tmp_path / name).rglob("results.parquet")).read_bytes() for name in ("whole", "killed"))
    assert one == other


@pytest.mark.slow
def test_the_report_and_the_check_of_the_run(bed):
    from repalign.store import check

    folder, result = bed
    report = next(folder.rglob("report.html"))
    text = report.read_text("utf-8")
    assert all(m["name"] in text for m in result.run["models"])
    stores = {p.parent for p in folder.rglob("repalign-store.json")}
    assert len(stores) == 1 and check(stores.pop()) == []
    assert np.isfinite(result.best()["statistic"]).all()
