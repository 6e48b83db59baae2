"""The callback of the Trainer of transformers."""

from __future__ import annotations

import math

import pytest
import torch

from repalign import Panel, Tracker
from repalign.errors import RepalignError
from repalign.track.hf import AlignmentCallback

transformers = pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("accelerate", reason="the Trainer needs accelerate")

N = 40
IDS = [f"s{i}" for i in range(N)]
TOKENS = torch.randint(0, 50, (N, 12), generator=torch.Generator().manual_seed(0))
BATCHES = [(IDS[i : i + 8], {"input_ids": TOKENS[i : i + 8]}) for i in range(0, N, 8)]
NAME = "repalign/CKA/target"


def tracker(layers="all", **how) -> Tracker:
    target = torch.nn.functional.one_hot(TOKENS, 50).float().mean(1)
    return Tracker(Panel.of({"target": target}, ids=IDS), ["CKA()"], layers, **how)


def trainer(folder, callbacks=(), steps: int = 4, **how):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                                      num_attention_heads=2, attention_dropout=0.2)  # fmt: skip
    rows = [{"input_ids": one, "labels": one} for one in TOKENS]
    often = {"max_steps": steps, "eval_strategy": "steps", "eval_steps": 2, "report_to": "none", "use_cpu": True} | how
    arguments = transformers.TrainingArguments(str(folder), learning_rate=0.02, disable_tqdm=True, seed=1, **often)
    model = transformers.LlamaForCausalLM(config)
    return transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=list(callbacks))


def test_weights_are_equal_to_the_bit_and_numbers_arrive(tmp_path):
    plain = trainer(tmp_path / "a", eval_on_start=True)
    plain.train()
    callback = AlignmentCallback(tracker(strict=True), BATCHES)
    tracked = trainer(tmp_path / "b", [callback], eval_on_start=True)
    callback.attach(tracked)
    tracked.train()
    one, other = plain.model.state_dict(), tracked.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    table = callback.tracker.table()
    search = table[table["scope"] == "search"].set_index("step")
    assert list(search.index) == [0, 2, 4] and search["loss"].notna().all() and search["statistic"].nunique() == 3
    assert set(table["layer"]) == {"hidden.0", "hidden.1", "hidden.2"}
    logged = {row["step"]: row[f"eval_{NAME}"] for row in tracked.state.log_history if f"eval_{NAME}" in row}
    assert logged == search["statistic"].to_dict()
    untrained = tracker().score(trainer(tmp_path / "c").model, BATCHES, step=0)
    assert callback.tracker.rows[0]["statistic"] == pytest.approx(untrained[NAME])


def test_it_may_choose_the_best_checkpoint_and_what_follows_is_not_in_the_table(tmp_path):
    target = torch.randn(N, 8, generator=torch.Generator().manual_seed(5))
    live = Tracker(Panel.of({"target": target}, ids=IDS), ["CKA()"], strict=True)
    callback = AlignmentCallback(live, BATCHES)
    one = trainer(
        tmp_path, [callback], 6, save_strategy="steps", save_steps=2, load_best_model_at_end=True, greater_is_better=True,
        metric_for_best_model=f"eval_{NAME}",
    )  # fmt: skip
    one.train()
    scores = live.table().query("scope == 'search'").set_index("step")["statistic"]
    assert one.state.best_metric == scores.max() and one.state.best_model_checkpoint.endswith(f"checkpoint-{scores.idxmax()}")
    rows = len(live.rows)
    assert one.evaluate()[f"eval_{NAME}"] == pytest.approx(scores.max()) and len(live.rows) == rows


def test_a_callback_that_is_not_attached_says_so_once_and_gives_its_metrics_all_the_same(tmp_path, caplog):
    callback = AlignmentCallback(tracker(strict=True), BATCHES)
    one = trainer(tmp_path, [callback])
    one.train()  # evaluated at steps 2 and 4
    metrics = one.evaluate()
    told = [record.getMessage() for record in caplog.records if record.name.startswith("repalign")]
    assert told == ["the numbers go into the metrics, but to no tracker: call callback.attach(trainer) once"]
    assert metrics[f"eval_{NAME}"] == callback.tracker.rows[-5]["statistic"]
    assert not any(f"eval_{NAME}" in row for row in one.state.log_history)


def test_a_callback_is_attached_to_the_trainer_that_has_it(tmp_path):
    callback = AlignmentCallback(tracker(), BATCHES)
    for wrong, got in ((None, "NoneType"), (callback.tracker, "Tracker"), (trainer(tmp_path), "a Trainer with .*Callback")):
        with pytest.raises(RepalignError, match=f"no Trainer with this callback[\\s\\S]*got: {got}[\\s\\S]*callback.attach"):
            callback.attach(wrong)
    assert callback.trainer is None
    one = trainer(tmp_path)
    one.add_callback(callback)
    assert callback.attach(one).trainer is one


def test_a_scorer_that_fails_does_not_stop_training(tmp_path, caplog):
    callback = AlignmentCallback(tracker(["no.such.module"]), BATCHES)
    one = trainer(tmp_path, [callback])
    callback.attach(one)
    one.train()
    assert one.state.global_step == 4 and "no module is called 'no.such.module'" in caplog.text
    assert math.isnan(next(row for row in one.state.log_history if f"eval_{NAME}" in row)[f"eval_{NAME}"])


def test_resuming_goes_on_with_the_table(tmp_path):
    file = tmp_path / "table.csv"
    how = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path / "out", [AlignmentCallback(tracker(file=file, strict=True), BATCHES)], 4, **how).train()
    again = trainer(tmp_path / "out", [AlignmentCallback(tracker(file=file, strict=True), BATCHES)], 6, **how)
    again.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    table = tracker(file=file).table().query("scope == 'search'")
    assert table["step"].tolist() == [2, 4, 6]


@pytest.mark.parametrize(("every", "steps"), [("epoch", [3, 6]), (2, [2, 4, 6])])
def test_other_times(tmp_path, every, steps):
    callback = AlignmentCallback(tracker(strict=True), BATCHES, every=every)
    one = trainer(tmp_path, [callback], 6, per_device_train_batch_size=16, eval_strategy="no", eval_steps=None)
    callback.attach(one).trainer.train()
    assert callback.tracker.table().query("scope == 'search'")["step"].tolist() == steps
    assert sum(f"eval_{NAME}" in row for row in one.state.log_history) == len(steps)


def test_a_time_that_is_none_is_refused():
    for every in ("never", 0, True):
        with pytest.raises(RepalignError, match="nothing says when to score"):
            AlignmentCallback(tracker(), BATCHES, every=every)


@pytest.mark.integrations
@pytest.mark.filterwarnings("ignore")  # of its own
def test_tensorboard_holds_the_number(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    callback = AlignmentCallback(tracker(strict=True), BATCHES)
    one = trainer(tmp_path / "out", [callback], report_to="tensorboard")
    callback.attach(one)
    one.train()
    events = EventAccumulator(str(tmp_path / "runs")).Reload().Scalars(f"eval/{NAME}")
    wanted = callback.tracker.table().query("scope == 'search'").set_index("step")["statistic"]
    assert {event.step: event.value for event in events} == pytest.approx(wanted.to_dict(), abs=1e-6)


@pytest.mark.integrations
@pytest.mark.filterwarnings("ignore")
def test_trackio_holds_the_number(tmp_path, monkeypatch):
    import json
    import sqlite3

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read as it is imported
    pytest.importorskip("trackio", reason="needs trackio")
    callback = AlignmentCallback(tracker(strict=True), BATCHES)
    one = trainer(tmp_path / "out", [callback], report_to="trackio")
    callback.attach(one)
    one.train()
    found = {}
    for file in (tmp_path / "trackio").rglob("*.db"):
        with sqlite3.connect(file) as base:
            rows = [json.loads(blob) for (blob,) in base.execute("select metrics from metrics")]
        found |= {row["train/global_step"]: row[f"eval/{NAME}"] for row in rows if f"eval/{NAME}" in row}
    wanted = callback.tracker.table().query("scope == 'search'").set_index("step")["statistic"]
    assert found == pytest.approx(wanted.to_dict(), abs=1e-6)


@pytest.mark.integrations
@pytest.mark.filterwarnings("ignore")
def test_wandb_holds_the_number(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    wandb = pytest.importorskip("wandb", reason="needs wandb")
    callback = AlignmentCallback(tracker(strict=True), BATCHES)
    one = trainer(tmp_path / "out", [callback], report_to="wandb")
    callback.attach(one)
    one.train()
    assert wandb.run.summary[f"eval/{NAME}"] == pytest.approx(callback.tracker.rows[-5]["statistic"], abs=1e-6)
    wandb.finish()
    wandb.teardown()  # its process writes the file, and may still do so after `finish`
    (file,) = tmp_path.rglob("*.wandb")
    assert f"eval/{NAME}".encode() in file.read_bytes()
