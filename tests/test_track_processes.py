"""Two processes (gloo): rows joined by id, scored once, the same numbers for both."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from processes import join, of_two
from repalign import Panel, Tracker
from repalign.measures import MutualKNN

N = 501
NAME = "repalign/MutualKNN/target"


def data() -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 8, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(8, 12, generator=generator, dtype=torch.float64)
    return x, y + 2 * torch.randn(N, 12, generator=generator, dtype=torch.float64), [f"s{i}" for i in range(N)]


def tracker(**how) -> Tracker:
    _, y, ids = data()
    return Tracker(Panel.of({"target": y}, ids=ids), ["MutualKNN(k=10)"], lambda model, batch: {"x": model(batch)}, **how)


def share(rank: int) -> list[int]:
    """As a DistributedSampler: every second row, the last share filled with a row that the other has."""
    return [*range(rank, N, 2), *([0] if rank else [])]


def fed(rows: list[int]) -> list[tuple[list[str], torch.Tensor]]:
    x, _, ids = data()
    return [([ids[i] for i in rows[a : a + 50]], x[rows[a : a + 50]]) for a in range(0, len(rows), 50)]


def of_a_process(rank: int, port: int, folder: str, results) -> None:
    import torch.distributed as distributed

    join(rank, port)
    torch.manual_seed(0)
    model = torch.nn.Identity()
    live = tracker(file=f"{folder}/table.csv")
    seen = []
    live.log_to(lambda numbers, step: seen.append(step))
    whole = live.score(model, fed(share(rank)), step=0)
    alone = live.score(model, fed([i for i in share(rank) if i != 7]), step=1)  # nobody feeds row 7
    failed = live.score(model if rank == 0 else None, fed(share(rank)), step=2)  # in one process
    none = live.score(model, fed(list(range(N))) if rank == 0 else [], step=3)  # one has all
    results[rank] = [whole[NAME], alone[NAME], failed[NAME], none[NAME]], seen, len(live.rows)
    distributed.destroy_process_group()


def test_two_processes_have_the_numbers_of_one(tmp_path):
    found = of_two(of_a_process, str(tmp_path))
    x, y, _ = data()
    one = tracker().score(torch.nn.Identity(), fed(list(range(N))), step=0)[NAME]
    assert one == pytest.approx(MutualKNN()(x, y), abs=1e-12)
    for rank in range(2):
        numbers, seen, rows = found[rank]
        assert numbers[0] == pytest.approx(one, abs=1e-12) == numbers[3]
        assert np.isnan(numbers[1:3]).all() and rows == 3 + 1 + 1 + 3
        assert seen == ([0, 1, 2, 3] if rank == 0 else [])
    assert tracker(file=tmp_path / "table.csv").table()["step"].tolist() == [0, 0, 0, 1, 2, 3, 3, 3]


def test_the_mean_of_two_shares_is_another_number():
    """Why nothing is averaged: neighbours among half of the stimuli are easier to find. A row that counts twice moves it, too."""
    x, y, _ = data()
    shares = [share(rank) for rank in range(2)]
    mean = np.mean([MutualKNN()(x[rows], y[rows]) for rows in shares])
    repeated = [i for rows in shares for i in rows]
    whole = MutualKNN()(x, y)
    assert (whole, mean) == (pytest.approx(0.2186, abs=2e-3), pytest.approx(0.2857, abs=2e-3))  # as docs/tracking.md says
    assert MutualKNN()(x[repeated], y[repeated]) != whole
