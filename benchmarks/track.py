"""What it costs to score a model while it trains: against its Gram matrices, a loop of `pair`, and steps of training.

    python benchmarks/track.py --n 1024 --d 768 --layers 12 --threads 1

First the scores alone, without the forward passes, of layers (n, d) against three references of one layer each, by mutual 10-NN,
CKNNA and CKA. The limit is one product X X^T for each live layer. Parts are taken in turn, so that all of them meet the same
machine, and are told in processor time where there is one thread: other programs do not count then. Then the loss of CKA, forward
and backward, against its formula as it is written, which makes both U-centred matrices. Last, a score of n stimuli as a share of
100 steps of training of language models of three sizes, without and with the forward passes that it needs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from contestants import features
from torch import Tensor

import repalign
from repalign.losses import cka
from repalign.measures import ParticipationRatioDifference
from repalign.measures.numerics.precision import sharing
from repalign.track import Panel, Tracker, rankme

MEASURES = ("MutualKNN(k=10)", "CKNNA(k=10)", "CKA()")
SIZES = {"tiny": (64, 4), "small": (256, 6), "middle": (512, 8)}  # hidden size and blocks
TOKENS = 32
BATCH = 32


def turns(tasks: Mapping[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Seconds of each task, the median of runs that are taken in turn."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(runs):
        for name, task in tasks.items():
            start = clock()
            task()
            taken[name].append(clock() - start)
    return {name: statistics.median(some) for name, some in taken.items()}


def scores(n: int, d: int, layers: int, runs: int) -> dict[str, float]:
    """Seconds of the limit, of a score and of its parts."""
    live = {f"hidden.{i}": x for i, x in enumerate(features(layers, n, d, seed=1))}
    panel = Panel.of({f"reference {i}": x.numpy() for i, x in enumerate(features(3, n, 768, seed=2))})
    tracker = Tracker(panel, MEASURES, strict=True)

    def states() -> list[dict]:
        out = []
        for x in live.values():
            with sharing(x):
                out.append({m: m.prepare(x) for m in tracker.measures})
                ParticipationRatioDifference().statistic(x)
        return out

    of_layers = states()
    by_measure = {m: [some[m] for some in of_layers] for m in tracker.measures}
    live_ready = {m: tracker.nulls[m].prepare(m, some) for m, some in by_measure.items()}
    return turns(
        {
            "Gram": lambda: [x @ x.T for x in live.values()],
            "score": lambda: tracker.score_features(live, step=0),
            "states": states,
            "judging": lambda: [
                tracker.nulls[m].judge_each(m, live_ready[m], tracker._references[m], tracker._columns) for m in tracker.measures
            ],
            "RankMe": lambda: [rankme(x) for x in live.values()],
        },
        runs,
    )


def loop_of_pairs(n: int, d: int, layers: int) -> float:
    """Seconds of a call of `pair` for each layer, reference and measure."""
    live, references = features(layers, n, d, seed=1), features(3, n, 768, seed=2)

    def loop() -> None:
        for x in live:
            for y in references:
                for measure in MEASURES:
                    repalign.pair(x, y, measure, rows=True)

    return turns({"loop": loop}, 1)["loop"]


def as_written(x: Tensor, y: Tensor) -> Tensor:
    """1 - debiased CKA by its formula: both Gram matrices U-centred (Szekely & Rizzo 2014), and their cosine."""

    def centred(x: Tensor) -> Tensor:
        n, k = len(x), x @ x.T
        k = k - k.diagonal().diag()
        rows = k.sum(dim=1)
        k = k - rows[:, None] / (n - 2) - rows / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
        return k - k.diagonal().diag()

    k, l = centred(x), centred(y)  # noqa: E741
    return 1 - (k * l).sum() / (k.norm() * l.norm())


def loss(n: int, d: int, runs: int) -> dict[str, float]:
    """Seconds of the loss and of its formula, forward and backward, on a batch (n, d)."""
    x, y = features(2, n, d, seed=3)
    x.requires_grad_()

    def both(function: Callable[[Tensor, Tensor], Tensor]) -> None:
        x.grad = None
        function(x, y).backward()

    return turns({"ours": lambda: both(cka), "formula": lambda: both(as_written)}, runs)


def training(size: str, n: int, runs: int) -> dict[str, float]:
    """Seconds of a step of training, of a score, and of the forward passes that it needs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width, blocks = SIZES[size]
    config = LlamaConfig(vocab_size=512, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=blocks,
                         num_attention_heads=width // 32)  # fmt: skip
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4)
    tokens, ids = torch.randint(0, 512, (n, TOKENS)), [f"s{i}" for i in range(n)]
    batches = [(ids[i : i + BATCH], {"input_ids": tokens[i : i + BATCH]}) for i in range(0, n, BATCH)]
    panel = Panel.of({"reference": torch.randn(n, 384)}, ids=ids)
    tracker = Tracker(panel, MEASURES, strict=True)
    live: dict[str, Tensor] = {}

    def step() -> None:
        optimiser.zero_grad()
        model(input_ids=tokens[:BATCH], labels=tokens[:BATCH]).loss.backward()
        optimiser.step()

    def forward() -> None:
        with torch.no_grad():
            found = [model(**batch, output_hidden_states=True).hidden_states for _, batch in batches]
        live.update({f"hidden.{i}": torch.cat([some[i].mean(dim=1) for some in found]) for i in range(blocks + 1)})

    forward()
    step()
    tracker.score_features(live, ids=ids, step=0)
    return turns({"step": step, "forward": forward, "score": lambda: tracker.score_features(live, ids=ids, step=0)}, runs)


def report(n: int, d: int, layers: int, runs: int, sizes: tuple[str, ...] = tuple(SIZES)) -> None:
    found = scores(n, d, layers, runs)
    limit = found.pop("Gram")
    print(f"{layers} layers of n = {n:,}, d = {d:,}, {torch.get_num_threads()} thread(s): X X^T of all layers {limit:.3f} s")
    for name, seconds in found.items():
        print(f"  {name:8} {seconds:8.3f} s, {seconds / limit:5.2f} limits")
    alone, loop = found["score"] - found["RankMe"], loop_of_pairs(n, d, layers)
    print(f"  a score without RankMe: {alone / limit:.2f} limits")
    print(f"  a loop of pair, which gives no RankMe: {loop:.1f} s, {loop / alone:.0f} times as long; as a score with it: "
          f"{loop / found['score']:.0f} times")  # fmt: skip
    for rows in (min(n, 256), n):
        took = loss(rows, d, 10 * runs)
        print(f"  the loss of CKA on {rows:,} rows, forward and backward: {took['ours'] / took['formula']:.2f} of its formula")
    for size in sizes:
        took = training(size, 512, runs)
        epoch = 100 * took["step"]
        print(
            f"  {size}: a step {took['step']:.3f} s; a score of 512 stimuli is {took['score'] / took['step']:.2f} steps, "
            f"{took['score'] / epoch:.1%} of 100 steps, with its forward passes {(took['score'] + took['forward']) / epoch:.1%}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("n", 1024), ("d", 768), ("layers", 12), ("threads", 1), ("runs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = vars(parser.parse_args())
    torch.set_num_threads(given.pop("threads"))
    report(**given)
