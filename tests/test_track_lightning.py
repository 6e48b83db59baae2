"""The callback of Lightning; skipped where it is not installed."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

from repalign import Panel, Tracker

lightning = pytest.importorskip("lightning", reason="needs Lightning (pip install lightning)")
pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]  # of its own

N = 64
IDS = [f"s{i}" for i in range(N)]
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
Y = X @ torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
BATCHES = [(IDS[i : i + 16], X[i : i + 16]) for i in range(0, N, 16)]
NAME = "repalign/CKA/target"


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(16, 10)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch):
        return torch.nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("loss", torch.nn.functional.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.02)


def panel() -> Panel:
    return Panel.of({"target": Y}, ids=IDS)


def tracker() -> Tracker:
    return Tracker(panel(), ["CKA()"], "net.*", strict=True)


def trained(folder: Path, callbacks=(), **how):
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=16, shuffle=True)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    module = Module()
    trainer = lightning.Trainer(max_epochs=3, callbacks=list(callbacks), default_root_dir=folder,
                                **{"enable_checkpointing": False, **quiet, **how})  # fmt: skip
    trainer.fit(module, loader, loader)
    return module, trainer


@pytest.mark.parametrize(("every", "steps"), [("validation", [4, 8, 12]), ("epoch", [4, 8, 12]), (3, [3, 6, 9, 12])])
def test_weights_are_equal_to_the_bit_and_numbers_arrive(tmp_path, every, steps):
    from repalign.track.lightning import AlignmentCallback

    live = tracker()
    one, _ = trained(tmp_path)
    other, trainer = trained(tmp_path, [AlignmentCallback(live, BATCHES, every=every)])
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    table = live.table().query("scope == 'search'")
    assert table["step"].tolist() == steps and table["statistic"].nunique() == len(steps)
    assert float(trainer.callback_metrics[NAME]) == pytest.approx(table["statistic"].iloc[-1], abs=1e-6)


def test_checkpoints_and_loggers_may_take_a_score(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    from repalign.track.lightning import AlignmentCallback

    live = tracker()
    keep = ModelCheckpoint(tmp_path, monitor=NAME, mode="max", filename="best-{step}")
    logger = CSVLogger(tmp_path)
    trained(tmp_path, [AlignmentCallback(live, BATCHES), keep], enable_checkpointing=True, logger=logger)
    best = live.table().query("scope == 'search'").set_index("step")["statistic"]
    assert f"best-step={best.idxmax()}" in keep.best_model_path
    assert float(keep.best_model_score) == pytest.approx(best.max(), abs=1e-6)
    assert NAME in (Path(logger.log_dir) / "metrics.csv").read_text()


def test_the_block_of_the_page_runs(tmp_path):
    import repalign

    page = (Path(__file__).parents[1] / "docs/tracking.md").read_text("utf-8")
    block = re.search(r"```py\n(.*?)```", page, re.DOTALL)[1]
    names = {"repalign": repalign, "panel": panel(), "batches": BATCHES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(block, names)
    assert names["trainer"].max_epochs == 3 and names["callback"] in names["trainer"].callbacks
