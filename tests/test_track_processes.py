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


def of_a_shard(rank: int, port: int, results) -> None:
    """Weights over both processes; the second has fewer batches, of which it runs the last again."""
    import torch.distributed as distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    join(rank, port)
    net = sharded_net()
    mesh = init_device_mesh("cpu", (2,))
    for layer in net:
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    passes = []
    net.register_forward_hook(lambda *_: passes.append(1))
    live = tracker()
    live.layers = ["0", "2"]
    rows = [i for i in range(N) if i % 3] if rank else [i for i in range(N) if i % 3 == 0]
    found = live.score(net, fed(rows), step=0)
    none = live.score(net, fed(rows) if rank else [], step=1)  # refused in both, and neither waits
    results[rank] = found[NAME], len(passes), none[NAME], type(net[0].weight).__name__
    distributed.destroy_process_group()


def sharded_net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 6)).double()


def test_weights_that_are_spread_over_processes_are_read():
    pytest.importorskip("torch.distributed.fsdp", reason="this torch has no FSDP")
    found = of_two(of_a_shard)
    alone = tracker()
    alone.layers = ["0", "2"]
    one = alone.score(sharded_net(), fed(list(range(N))), step=0)[NAME]
    for rank in range(2):
        score, passes, none, kind = found[rank]
        assert score == pytest.approx(one, abs=1e-12) and kind == "DTensor"
        assert passes == 7 and np.isnan(none)  # 167 rows in 4 batches, 334 in 7


def test_the_mean_of_two_shares_is_another_number():
    """Why nothing is averaged: neighbours among half of the stimuli are easier to find. A row that counts twice moves it, too."""
    x, y, _ = data()
    shares = [share(rank) for rank in range(2)]
    mean = np.mean([MutualKNN()(x[rows], y[rows]) for rows in shares])
    repeated = [i for rows in shares for i in rows]
    whole = MutualKNN()(x, y)
    assert (whole, mean) == (pytest.approx(0.2186, abs=2e-3), pytest.approx(0.2857, abs=2e-3))  # as docs/tracking.md says
    assert MutualKNN()(x[repeated], y[repeated]) != whole
