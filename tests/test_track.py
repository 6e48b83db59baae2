"""A live model against frozen references: the numbers, and that training does not notice."""

from __future__ import annotations

import json
import logging
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import repalign
from repalign import Panel, Tracker
from repalign.errors import RepalignError
from repalign.files import DamagedError
from repalign.track import COLUMNS, rankme
from repalign.track.reading import undisturbed

BED = Path(__file__).resolve().parents[2] / "shared/bed"
N = 64


def made(n: int = N, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    y = x @ torch.randn(6, 10, generator=generator) + 0.5 * torch.randn(n, 10, generator=generator)
    return x, y, [f"s{i}" for i in range(n)]


class Net(nn.Module):
    """Dropout and batch norm: what a pass in training mode would change."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))
        self.blocks = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.head(nn.functional.dropout(x, 0.2, self.training))


def batches(x: torch.Tensor, ids: list[str], size: int = 20) -> list[tuple[list[str], torch.Tensor]]:
    return [(ids[i : i + size], x[i : i + size]) for i in range(0, len(ids), size)]


def panel() -> Panel:
    _, y, ids = made()
    return Panel.of({"target": {"a": y[:, :5], "b": y}, "other": y.flip(1)}, ids=ids)


# --- training does not notice --------------------------------------------------------------------


def trained(tracker: Tracker | None, **how) -> dict[str, torch.Tensor]:
    x, _, ids = made()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    net = Net()
    net.first[1].eval()  # a frozen batch norm among modules in training
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for step in range(6):
        if tracker is not None:
            tracker.score(net, how.get("batches", batches(x, ids)), step=step)
        rows = torch.randperm(N)[:16] + int(random.random() + np.random.rand() > 9)
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), (x[rows, 0] > 0).long()).backward()
        optimiser.step()
    assert net.training and not net.first[1].training and net.first[3].training
    assert not any(module._forward_hooks for module in net.modules())
    return net.state_dict()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_weights_are_equal_to_the_bit_with_and_without_it():
    tracker = Tracker(panel(), strict=True)
    assert equal(trained(None), trained(tracker))
    assert len(set(tracker.table().query("scope == 'cell'")["statistic"].round(6))) > 6  # and the model did move


def test_so_are_they_where_the_scorer_fails(caplog):
    tracker = Tracker(panel(), layers=lambda model, batch: 1 / 0)
    assert equal(trained(None), trained(tracker))
    assert "step 0 is not scored: division by zero" in caplog.text
    table = tracker.table()
    assert len(table) == 6 * 2 * 2 and table["statistic"].isna().all() and (table["n"] == N).all()


def test_batches_that_draw_random_numbers_change_nothing():
    x, _, ids = made()
    loader = torch.utils.data.DataLoader(list(zip(ids, x, strict=True)), batch_size=16, shuffle=True)
    tracker = Tracker(panel(), strict=True)
    assert equal(trained(None), trained(tracker, batches=loader))


def test_random_states_and_modes_are_put_back_after_an_error():
    net = Net()
    with pytest.raises(ValueError), undisturbed(net):
        assert not net.training and not torch.is_grad_enabled()
        drawn = random.random(), np.random.rand(), torch.rand(1)
        raise ValueError
    assert net.training and torch.is_grad_enabled()
    assert (random.random(), np.random.rand(), torch.rand(1)) == drawn


def test_inside_autocast_the_scores_are_those_of_full_precision():
    x, _, ids = made()
    features, targets = {"x": x}, panel()
    wanted = Tracker(targets, ["CKA()"]).score_features(features, ids=ids, step=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Tracker(targets, ["CKA()"]).score_features(features, ids=ids, step=0) == wanted


# --- the numbers -----------------------------------------------------------------------------------


def test_the_scores_are_those_of_pair():
    x, y, ids = made()
    net = Net()
    tracker = Tracker(panel(), ["MutualKNN(k=10)", "CKA()"], layers=["first", "blocks.*"], strict=True)
    row = tracker.score(net, batches(x, ids), step=0, loss=0.5)
    seen = {}
    hooks = [m.register_forward_hook(lambda m, a, out, n=n: seen.update({n: out})) for n, m in
             (("first", net.first), ("blocks.0", net.blocks[0]), ("blocks.1", net.blocks[1]))]  # fmt: skip
    with torch.no_grad():
        net.eval()(x)
    for hook in hooks:
        hook.remove()
    alone = repalign.pair(seen, {"a": y[:, :5], "b": y}, ["MutualKNN(k=10)", "CKA()"], rows=True)
    table = tracker.table()
    assert tuple(table) == COLUMNS and (table["loss"] == 0.5).all() and (table["seconds"] > 0).all()
    for scope, wanted in (("cell", alone.cells()), ("search", alone.best())):
        found = table[(table["scope"] == scope) & (table["reference"] == "target")]
        both = found.merge(wanted, left_on=["measure", "layer", "reference_layer"], right_on=["measure", "layer_x", "layer_y"])
        assert len(both) == len(wanted) == len(found)
        same = ("statistic", "null_mean", "z", "pvalue") if scope == "cell" else ("statistic",)
        for name in same:
            here = both[both[f"{name}_x"].notna()]
            if name in ("null_mean", "z"):  # ours are exact where those of `pair` are of draws
                here = here[here["null"] == "moments"]
            assert np.allclose(here[f"{name}_x"], here[f"{name}_y"], atol=1e-5), (scope, name)
            # p is told of the layer that the search finds, and of the one that is followed, in all of its pairs.
            assert len(here) >= (len(both) if name == "statistic" else 2)
    searched = table.query("scope == 'search'").merge(
        table.query("scope == 'cell'"), on=["reference", "measure", "layer", "reference_layer"]
    )
    assert len(searched) == 4  # p of the search: that of its best cell, times the number of cells
    cells = searched["reference"].map({"target": 6, "other": 3})
    assert np.allclose(searched["pvalue_x"], np.minimum(1, cells * searched["pvalue_y"]), rtol=1e-9)
    assert (searched["null_mean_x"] > searched["null_mean_y"]).all() and (searched["z_x"] < searched["z_y"]).all()
    best = table[(table["scope"] == "search") & (table["reference"] == "target") & table["measure"].str.startswith("CKA")]
    name = "repalign/CKA/target"
    assert [row[f"{name}{k}"] for k in ("", "/layer", "/z", "/p")] == best[["statistic", "layer", "z", "pvalue"]].iloc[0].tolist()
    assert row["repalign/rankme/first"] == pytest.approx(rankme(seen["first"]), abs=1e-3)


def test_the_fixed_layer_is_that_of_the_first_step_or_the_one_that_is_given():
    x, y, ids = made()
    noise = torch.randn(N, 6, generator=torch.Generator().manual_seed(5))
    steps = [{"up": noise, "down": x}, {"up": x, "down": noise}]
    for fixed, wanted in ((None, ["down", "down"]), ("up", ["up", "up"])):
        tracker = Tracker(Panel.of({"target": y}, ids=ids), ["CKA()"], fixed=fixed, strict=True)
        for step, features in enumerate(steps):
            tracker.score_features(features, ids=ids, step=step)
        table = tracker.table()
        assert table[table["scope"] == "fixed"]["layer"].tolist() == wanted
        assert table[table["scope"] == "search"]["layer"].tolist() == ["down", "up"]
        first, last = (table[(table["step"] == step) & (table["scope"] == "fixed")].iloc[0] for step in (0, 1))
        low, high = (last, first) if fixed is None else (first, last)
        assert low["statistic"] < 0.1 < 0.4 < high["statistic"] and low["pvalue"] > 0.01 > high["pvalue"]


@pytest.mark.parametrize(
    ("file", "layer", "rank", "participation"),
    [
        ("mobilenet_v1_025", -1, 170.502196, 35.633469), ("mobilenet_v1_075", -1, 467.792944, 66.877305),
        ("glove50_captions", 1, 13.278888, 10.278127),
    ],
)  # fmt: skip
def test_rank_and_participation_of_the_bed(shared, file, layer, rank, participation):
    """Figures of plain numpy, by singular values; ours come from the Gram matrix."""
    x = list(repalign.read_features(BED / f"features/{file}.safetensors").layers.values())[layer]
    assert rankme(x) == pytest.approx(rank, abs=1e-5)
    tracker = Tracker(Panel.of({"same": x}), ["CKA()"], strict=True)
    tracker.score_features({"x": x}, step=0)
    assert tracker.table()["participation"].iloc[0] == pytest.approx(participation, abs=1e-4)
    assert tracker.table()["rankme"].iloc[0] == pytest.approx(rank, abs=1e-5)


def test_rank_of_nothing_is_undefined():
    assert math.isnan(rankme(torch.zeros(5, 3)))
    x = np.random.default_rng(0).standard_normal((9, 30))
    s = np.linalg.svd(x, compute_uv=False)
    p = s / s.sum() + 1e-7
    assert rankme(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)


def captions(tokenizer, rows: list[dict], size: int = 50) -> list[tuple[list[str], dict]]:
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.decode([0])
    texts = [(row["id"], row["captions"][0]) for row in rows]
    out = []
    for i in range(0, len(texts), size):
        ids, some = zip(*texts[i : i + size], strict=True)
        out.append((list(ids), dict(tokenizer(list(some), return_tensors="pt", padding=True, return_token_type_ids=False))))
    return out


def test_step_0_of_the_bed(shared):
    """A language model of captions against a model of the photos, by outside code: mutual 10-NN and its chance level."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [json.loads(line) for line in (BED / "flickr8k_dev/pairs.jsonl").read_text().splitlines()]
    photos = Panel.of({"photos": BED / "features/mobilenet_v1_075.safetensors"}, layers="last")
    model = AutoModelForCausalLM.from_pretrained(BED / "models/stories260k")
    tokenizer = AutoTokenizer.from_pretrained(BED / "models/stories260k")
    tracker = Tracker(photos, ["MutualKNN(k=10)"], strict=True)
    row = tracker.score(model.train(), captions(tokenizer, rows), step=0)
    cells = tracker.table().query("scope == 'cell'").set_index("layer")["statistic"]
    for i, wanted in enumerate((0.0295, 0.0273, 0.0287, 0.0310, 0.0256, 0.0251)):
        assert cells[f"hidden.{i}"] == pytest.approx(wanted, abs=3e-4)
    best = tracker.table().query("scope == 'cell' and layer == 'hidden.3'").iloc[0]
    assert best["null_mean"] == pytest.approx(10 / 999, abs=1e-9) and best["pvalue"] < 1e-40
    assert row["repalign/MutualKNN/photos/layer"] == "hidden.3"
    assert row["repalign/MutualKNN/photos"] == pytest.approx(0.031, abs=3e-4)


def test_references_are_prepared_once_and_live_layers_once_a_step(monkeypatch):
    from repalign.measures import CKA

    prepared, prepare = [], CKA.prepare
    monkeypatch.setattr(CKA, "prepare", lambda self, x: prepared.append(1) or prepare(self, x))
    x, _, ids = made()
    tracker = Tracker(panel(), ["CKA()"], strict=True)
    assert len(prepared) == 3
    for step in range(4):
        tracker.score_features({"one": x, "two": x[:, :3]}, ids=ids, step=step)
    assert len(prepared) == 3 + 4 * 2


def test_numbers_are_those_of_float64_where_a_common_direction_dominates():
    """Mean cosine .97: what is left beside it is small, and float32 keeps it to 1e-4."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(200, 24, generator=generator), torch.randn(200, 32, generator=generator)
    y[:, :24] += x
    x, y = ((v + 5.6 * torch.ones(v.shape[1])).float() for v in (x, y))
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    assert 0.965 < float((unit @ unit.T).mean()) < 0.975
    measures = ["MutualKNN(k=10)", "CKNNA(k=10)", "CKA()", "CKNNAReference(k=10)"]
    found = []
    for dtype in (torch.float32, torch.float64):
        tracker = Tracker(Panel.of({"target": y.to(dtype)}), measures, strict=True)
        tracker.score_features({"x": x.to(dtype)}, step=0)
        found.append(tracker.table().query("scope == 'cell'").set_index("measure"))
    for name in ("statistic", "null_mean", "z", "rankme", "participation"):
        assert np.allclose(found[0][name], found[1][name], rtol=1e-4), name
    assert np.allclose(np.log(found[0]["pvalue"]), np.log(found[1]["pvalue"]), rtol=1e-4)


def test_a_hundred_calls_hold_no_more_memory_than_ten():
    """What is kept after a call, counted: tensors that are alive, and the memory of Python. The table grows by its rows alone."""
    import gc
    import tracemalloc

    x, _, ids = made(60)
    net = Net()
    tracker = Tracker(Panel.of({"target": x}, ids=ids), ["MutualKNN(k=10)", "CKA()"], strict=True)

    def held() -> int:
        gc.collect()
        tensors = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
        return sum(t.element_size() * t.nelement() for t in tensors) + tracemalloc.get_traced_memory()[0]

    for step in range(10):
        tracker.score(net, batches(x, ids), step=step)
    tracemalloc.start()
    try:
        before = held()
        for step in range(10, 110):
            tracker.score(net, batches(x, ids), step=step)
        assert held() - before < 5 * 2**20
    finally:
        tracemalloc.stop()
    assert len(tracker.rows) == 110 * 2 * (4 + 2)  # and every step is kept


# --- what is read ------------------------------------------------------------------------------------


def test_all_layers_of_a_module_are_its_children():
    x, _, ids = made()
    tracker = Tracker(panel(), ["CKA()"], strict=True)
    tracker.score(Net(), batches(x, ids), step=0)
    assert list(dict.fromkeys(tracker.table().query("scope == 'cell'")["layer"])) == ["first", "blocks.0", "blocks.1", "head"]


def test_what_a_module_gives_is_a_layer_too_and_the_only_one_where_it_has_no_children():
    x, _, ids = made()
    layer = nn.Linear(6, 4)
    tracker = Tracker(panel(), ["CKA()"], strict=True)
    found = tracker.score(layer, batches(x, ids), step=0)
    assert set(tracker.table()["layer"]) == {"output"}
    both = Tracker(panel(), ["CKA()"], ["output", "0"], strict=True)
    same = both.score(nn.Sequential(layer), batches(x, ids), step=0)
    assert same["repalign/CKA/target"] == pytest.approx(found["repalign/CKA/target"], abs=1e-6)
    assert set(both.table()["layer"]) == {"output", "0"}


def test_a_wrapped_module_is_read_inside():
    x, _, ids = made()
    net = Net()
    tracker = Tracker(panel(), ["CKA()"], layers="blocks.*", strict=True)
    one = tracker.score(net, batches(x, ids), step=0)
    assert one == tracker.score(nn.DataParallel(net), batches(x, ids), step=0)


def test_a_function_gives_the_layers_and_order_and_repeats_do_not_matter():
    x, _, ids = made()
    tracker = Tracker(panel(), ["CKA()"], lambda model, batch: {"x": batch}, strict=True)
    wanted = tracker.score(None, batches(x, ids), step=0)
    turned = list(reversed(range(N)))
    others = batches(x[turned], [ids[i] for i in turned], 10)
    extra = [(["stranger"], torch.randn(1, 6)), (torch.tensor([1, 2]), torch.randn(2, 6)), others[2]]
    assert tracker.score(None, lambda: others + extra, step=0) == wanted


def test_tokens_are_pooled_over_those_that_count():
    from repalign.track.reading import _counted, _pooled

    x = torch.arange(12.0).view(1, 4, 3)
    batch = {"attention_mask": torch.tensor([[0, 1, 1, 1]])}
    assert _pooled(x, "x", _counted(batch, x, False), None).tolist() == x[:, 1:].mean(1).tolist()
    assert _pooled(x, "x", _counted(batch, x, True), None).tolist() == x[:, 2:].mean(1).tolist()
    assert _pooled(x, "x", _counted(batch, x, True), "cls").tolist() == x[:, 2].tolist()
    assert _pooled(x, "x", _counted({}, x, False), None).tolist() == x.mean(1).tolist()
    assert _pooled(x[..., None], "x", None, None).tolist() == x[..., None].mean((2, 3)).tolist()


# --- what goes wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x, ids: (x[3:], ids[3:]), "3 of 64 ids of the panel were not fed: s0, s1, s2"),
        (lambda x, ids: (torch.cat([x, x[:1] + 1]), [*ids, "s0"]), "id 's0' was fed twice, with different vectors"),
        (lambda x, ids: (x.index_fill(0, torch.tensor([7]), math.nan), ids), "step 4, layer x: NaN or infinite[\\s\\S]*'s7'"),
        (lambda x, ids: (x[:, :, None], ids), "not one vector for each of the ids"),
    ],
)  # fmt: skip
def test_features_that_are_refused(change, told, caplog):
    x, _, ids = made()
    x, ids = change(x, ids)
    with pytest.raises(RepalignError, match=told):
        Tracker(panel(), ["CKA()"], strict=True).score_features({"x": x}, ids=ids, step=4)
    tracker = Tracker(panel(), ["CKA()"])
    with caplog.at_level(logging.WARNING):
        row = tracker.score_features({"x": x}, ids=ids, step=4)
    assert math.isnan(row["repalign/CKA/target"]) and "step 4 is not scored" in caplog.text
    assert tracker.table()["step"].tolist() == [4, 4]


def test_names_batches_and_modes_that_are_refused():
    x, _, ids = made()

    def score(layers="all", given=None, model=None):
        fed = batches(x, ids) if given is None else given
        Tracker(panel(), ["CKA()"], layers, strict=True).score(Net() if model is None else model, fed, step=0)

    with pytest.raises(RepalignError, match=r"no module is called 'block.0'[\s\S]*blocks.0"):
        score(layers="block.0")
    with pytest.raises(RepalignError, match="a batch is no pair"):
        score(given=[x])
    with pytest.raises(RepalignError, match="no layer was read[\\s\\S]*generator"):
        score(given=[])
    with pytest.raises(RepalignError, match="this is no torch module"):
        score(model="net")
    with pytest.raises(RepalignError, match="training mode after your function"):
        score(layers=lambda model, batch: model.train() and {"x": batch})
    with pytest.raises(RepalignError, match="batches have different layers"):
        score(layers=lambda model, batch: {str(len(batch)): batch})


def test_what_a_tracker_refuses_at_once(tmp_path):
    _, y, ids = made()
    with pytest.raises(RepalignError, match="the panel: too few stimuli"):
        Tracker(Panel.of({"t": y[:10]}), ["MutualKNN(k=10)"])
    with pytest.raises(RepalignError, match="pooling"):
        Tracker(panel(), pooling="max")
    with pytest.raises(RepalignError, match="unknown format"):
        Tracker(panel(), file=tmp_path / "table.xlsx")
    with pytest.raises(RepalignError, match="nothing says which row is which"):
        Tracker(panel(), strict=True).score_features({"x": y}, step=0)
    with pytest.raises(RepalignError, match="no layer 'z' to follow"):
        Tracker(panel(), ["CKA()"], fixed="z", strict=True).score_features({"x": y}, ids=ids, step=0)


# --- where it goes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["table.csv", "table.jsonl", "table.parquet"])
def test_a_table_is_continued_without_double_rows(tmp_path, name):
    x, _, ids = made()
    steps = [{"x": x * (torch.arange(6) <= k), "y": x.square()} for k in range(1, 5)]
    whole = Tracker(panel(), ["CKA()"], strict=True)
    for step, features in enumerate(steps):
        whole.score_features(features, ids=ids, step=step)
    file = tmp_path / name
    first = Tracker(panel(), ["CKA()"], strict=True, file=file)
    for step in (0, 1, 2):
        first.score_features(steps[step], ids=ids, step=step)
    second = Tracker(panel(), ["CKA()"], strict=True, file=file)  # from a checkpoint of step 2
    for step in (2, 3):
        second.score_features(steps[step], ids=ids, step=step)
    third = Tracker(panel(), ["CKA()"], file=file)
    without = [c for c in COLUMNS if c != "seconds"]
    for one in (second, third):
        assert one.table()[without].equals(whole.table()[without])
    with pytest.raises(RepalignError, match="is of another panel"):
        Tracker(Panel.of({"x": x}), ["CKA()"], file=file)


@pytest.mark.parametrize("name", ["table.csv", "table.jsonl"])
def test_a_line_that_was_cut_off_is_left_out_with_its_step(tmp_path, name):
    x, _, ids = made()
    file = tmp_path / name
    tracker = Tracker(panel(), ["CKA()"], strict=True, file=file)
    for step in (0, 1):
        tracker.score_features({"x": x}, ids=ids, step=step)
    file.write_text(file.read_text()[:-9])
    again = Tracker(panel(), ["CKA()"], strict=True, file=file)
    assert set(again.table()["step"]) == {0}
    again.score_features({"x": x}, ids=ids, step=1)
    without = [c for c in COLUMNS if c != "seconds"]
    assert Tracker(panel(), ["CKA()"], file=file).table()[without].equals(tracker.table()[without])
    others = "a,b\n1,2\n" if name.endswith(".csv") else '{"a": 1}\n'
    for text, told in ((others, "is no table of a tracker"), (file.read_text() + "7\n", "is damaged")):
        file.write_text(text)
        with pytest.raises(RepalignError, match=told):
            Tracker(panel(), file=file)


def test_numbers_go_to_whoever_asks_and_one_that_fails_stops_nobody(caplog):
    x, _, ids = made()
    seen = []
    tracker = Tracker(panel(), ["CKA()"]).log_to(lambda numbers, step: 1 / 0)
    tracker.log_to(lambda numbers, step: seen.append((step, numbers)))
    row = tracker.score_features({"x": x}, ids=ids, step=7)
    ((step, numbers),) = seen
    assert step == 7 and numbers == {k: v for k, v in row.items() if not k.endswith("/layer")} and len(numbers) == 9
    assert "step 7 is not logged" in caplog.text


def test_two_measures_of_one_class_have_names_of_their_own():
    x, _, ids = made()
    row = Tracker(panel(), ["MutualKNN(k=5)", "MutualKNN(k=10)"]).score_features({"x": x}, ids=ids, step=0)
    assert sum("k=5" in name for name in row) == sum("k=10" in name for name in row) == 10


# --- the panel ---------------------------------------------------------------------------------------


def test_a_panel_comes_back_as_it_was_written(tmp_path):
    _, y, ids = made()
    before = Panel.of({"a": {"l0": y.half(), "l1": y.double()}, "b": y}, ids=ids)
    after = Panel.load(before.save(tmp_path / "panel.safetensors"))
    assert after.digest == before.digest and after.ids == before.ids and list(after.references["a"]) == ["l0", "l1"]
    assert after.references["a"]["l0"].dtype == torch.float16 and torch.equal(after.references["b"]["features"], y)
    assert before.subset(ids[::-1]).digest != before.digest


def test_a_panel_that_was_changed_is_refused(tmp_path):
    _, y, ids = made()
    file = Panel.of({"a": y}, ids=ids).save(tmp_path / "panel.safetensors")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamagedError, match="is not what was written"):
        Panel.load(file)
    file.write_bytes(data[:-50])
    with pytest.raises(DamagedError, match="no whole safetensors"):
        Panel.load(file)
    file.write_bytes(data.replace(b"repalign-panel-1", b"repalign-panel-9"))
    with pytest.raises(DamagedError, match="no panel of this version"):
        Panel.load(file)
    with pytest.raises(DamagedError, match="cannot be read"):
        Panel.load(tmp_path / "none.safetensors")


def test_layers_and_rows_of_a_panel(tmp_path):
    _, y, ids = made()
    layers = {"block.0": y, "block.1": y, "head": y}
    assert list(Panel.of({"m": layers}, layers="last").references["m"]) == ["head"]
    assert list(Panel.of({"m": layers}, layers="block.*").references["m"]) == ["block.0", "block.1"]
    assert list(Panel.of({"m": layers, "k": y}, layers={"m": ["head", "block.0"]}).references["m"]) == ["block.0", "head"]
    with pytest.raises(RepalignError, match="m: no layer 'blok.0'"):
        Panel.of({"m": layers}, layers="blok.0")
    with pytest.raises(RepalignError, match="no id 's99'"):
        Panel.of({"m": y}, ids=ids).subset(["s99"])
    with pytest.raises(RepalignError, match="has each id once"):
        Panel.of({"m": y}, ids=ids).subset(["s1", "s1"])
    with pytest.raises(RepalignError, match="different numbers of rows"):
        Panel.of({"m": y, "k": y[1:]})
    with pytest.raises(RepalignError, match="these are no references"):
        Panel.of(y)
    with pytest.raises(RepalignError, match="these are no references"):
        Panel.of({})
    with pytest.raises(RepalignError, match="an RDM where features are needed|dissimilarities where features"):
        Panel.of({"m": repalign.RDM(torch.cdist(y, y))})


def test_the_best_layer_of_each_reference_is_that_the_others_are_nearest_to():
    x, y, ids = made()
    noise = torch.randn(N, 7, generator=torch.Generator().manual_seed(8))
    models = {"one": {"early": noise, "late": x}, "two": {"first": y, "end": noise.flip(0)}, "three": {"only": x[:, :3]}}
    found = Panel.of(models, ids=ids, layers="best")
    assert {name: list(some) for name, some in found.references.items()} == {"one": ["late"], "two": ["first"], "three": ["only"]}
    found = Panel.of(models, ids=ids, layers={"one": "best", "two": "end"})  # the third has its last, as always
    assert [list(some) for some in found.references.values()] == [["late"], ["end"], ["only"]]
    with pytest.raises(RepalignError, match="nothing says which layer is best"):
        Panel.of({"one": models["one"]}, ids=ids, layers="best")
    assert list(Panel.of({"one": {"best": x, "b": y}}, ids=ids, layers="best").references["one"]) == ["best"]  # a name is a name


def test_batches_of_a_dataset():
    from repalign.track import Batches

    scenes = repalign.Dataset.toy(64)

    def collate(texts):
        return torch.tensor([[float(t.count(c)) for c in "abcdefghilmnoprstuw"] for t in texts])

    batches = Batches(scenes, collate, "text", size=20)
    everything = collate([one for one, *_ in scenes.stimuli("text", list(range(64)))])
    tracker = Tracker(Panel.of({"counts": everything}, ids=scenes.ids), ["CKA()"], strict=True)
    for step in range(2):  # again, at each step
        assert tracker.score(nn.Identity(), batches, step=step)["repalign/CKA/counts"] == pytest.approx(1)
    assert len(batches) == 4
    with pytest.raises(RepalignError, match="nothing says which stimuli are fed"):
        Batches(scenes, collate)
    with pytest.raises(RepalignError, match="size is out of range"):
        Batches(scenes, collate, "text", size=0)


def test_a_panel_of_a_store(tmp_path):
    data = repalign.Dataset.of(text=[f"a text of {i} words {i * i}" for i in range(30)])
    store = repalign.FeatureStore(tmp_path / "store")

    def model(texts):
        return np.array([[len(t), t.count("1"), t.count("2"), ord(t[-1])] for t in texts], float)

    repalign.extract(data, [repalign.Model(model, name=name, revision=name) for name in ("counts", "again")], store)
    found = Panel.from_store(tmp_path / "store", ["counts"])
    assert found.ids == data.ids and list(found.references) == ["counts"]
    assert found.facts["counts"]["revision"].startswith("memory-")
    assert Panel.load(found.save(tmp_path / "p.safetensors")).digest == found.digest
    assert list(Panel.from_store(store, ["counts", "again"]).references) == ["counts", "again"]
    with pytest.raises(RepalignError, match="no model 'count'"):
        Panel.from_store(store, ["count"])
    with pytest.raises(RepalignError, match="no dataset"):
        Panel.from_store(store, dataset="x")
