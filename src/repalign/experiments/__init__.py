"""Measuring systems beside the comparison of models, a file each: what a model or two hold, asked in another way.

Each has a row of `EXPERIMENTS`, which makes it a command, a kind of study and a name of this room. Nothing else knows it. Its
file is imported when it is first used.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from repalign.experiments.base import Experiment, Found, Input

if TYPE_CHECKING:  # the same names for editors and type checkers, which run no `__getattr__`
    from repalign.experiments.brain import brain as brain
    from repalign.experiments.closeness import closeness as closeness
    from repalign.experiments.compress import compress as compress
    from repalign.experiments.concepts import concepts as concepts
    from repalign.experiments.direction import direction as direction
    from repalign.experiments.disentangle import disentangle as disentangle
    from repalign.experiments.migrate import migrate as migrate
    from repalign.experiments.perceive import perceive as perceive
    from repalign.experiments.self_consuming import self_consuming as self_consuming
    from repalign.experiments.sparse_codes import universality as universality
    from repalign.experiments.stages import stages as stages
    from repalign.experiments.stitch import stitch as stitch
    from repalign.experiments.superposition import superposition as superposition
    from repalign.experiments.track import track as track
    from repalign.experiments.translate import translate as translate
    from repalign.experiments.unpaired import unpaired as unpaired

EXPERIMENTS: dict[str, Experiment] = {
    "brain": Experiment(
        "brain:brain",
        "Which model is closest to the brains of several people, and how close could one be? With ceilings and chance.",
        "Closeness of models to the brain", "repalign brain brain.npz models.npz --subjects sessions.csv --measure tau_a",
        "RDMs or features in files: seconds at n = 92, with Kendall's tau a minute or two",
    ),
    "closeness": Experiment(
        "closeness:closeness",
        "How far apart the predictions of two models are: the log-likelihood variance distance d_LLV, beside KL and CKA.",
        "Closeness in distribution, d_LLV", "repalign closeness f.npy g.npy other-f.npy other-g.npy --out closeness",
        "the files; the search for two labels grows with the cube of their number",
    ),
    "compress": Experiment(
        "compress:compress",
        "What does compression cost? How many exact answers of an index float16, int8, single bits and fewer dimensions keep.",
        "What compression costs", "repalign compress vectors.parquet --queries queries.parquet --k 10 --out compress",
        "an exact search for each form of the vectors: seconds at n = 10,000",
    ),
    "concepts": Experiment(
        "concepts:concepts",
        "Is a concept one direction between words? Pairs such as king and queen, against turned and shuffled ones.",
        "Directions of concepts", "repalign concepts hf:HuggingFaceTB/SmolLM2-135M --metric causal",
        "the output matrix of each language model; no text but contexts goes through one: a minute",
    ),
    "direction": Experiment(
        "direction:direction",
        "Does one space tell more of the other than the other of it? Both directions, each against its own chance.",
        "Both directions, and what chance gives to each", "repalign direction a.npy b.npy --measure 'CycleKNN(k=10)'",
        "relabellings of n² numbers: half a minute at n = 1,000",
    ),
    "disentangle": Experiment(
        "disentangle:disentangle",
        "Do two models share components, once ICA has turned each? Beside PCA, relabelled rows, halves of the rows and new starts.",
        "Components of two models, after PCA and after ICA", "repalign disentangle image.npy text.npy --k 8 --k 16",
        "FastICA some twenty times for each k: half a minute at n = 500",
    ),
    "migrate": Experiment(
        "migrate:migrate",
        "Must I re-embed? How much a new embedding model changes answers, and how much of it a map of its queries keeps.",
        "Must I re-embed?", "repalign migrate old.npy new_sample.npy --queries-old q_old.npy --queries-new q_new.npy",
        "an exact search for each adapter and number of anchors: seconds at n = 10,000",
    ),
    "perceive": Experiment(
        "perceive:perceive",
        "How much does a predictor of labels use each modality? What it loses when one changes places between rows.",
        "What accuracy loses without each modality", "repalign perceive labels.csv photos.npy captions.npy --test 0.5",
        "a logistic regression and n² predictions: seconds at n = 1,000",
    ),
    "self_consuming": Experiment(
        "self_consuming:self_consuming",
        "How far does a model drift that learns from its own samples, and how much real data stops it? Gaussians, refitted.",
        "Models that learn from their own samples", "repalign self-consuming --shares 0 --shares 0.1 --shares 0.5",
        "no data and no model: about ten seconds on one core",
    ),
    "stages": Experiment(
        "stages:stages",
        "What each block of a language model or a vision transformer does: delete it, swap it with the next, answer before it.",
        "What each block does", "repalign stages hf:HuggingFaceTB/SmolLM2-135M texts.jsonl --n 100 --out stages",
        "a pass over the stimuli for each block of the model, and one of its head",
    ),
    "stitch": Experiment(
        "stitch:stitch",
        "The first half of A, an affine map, the second half of B: does B's head still say what B says?",
        "One model's first half and another's second", "repalign stitch torch:./nets.py:small torch:./nets.py:large photos "
        "--cuts layer1 --cuts layer2 --out stitch", "two trainings of an affine map at each cut, on the images to fit",
    ),
    "superposition": Experiment(
        "superposition:superposition",
        "Does a small network keep more features than dimensions, once its features are sparse? In a toy that knows its features.",
        "More features than dimensions", "repalign superposition --widths 5 --sparsity 0 --sparsity 0.9",
        "no data and no model: about twenty seconds on one core",
    ),
    "track": Experiment(
        "track:track",
        "How does alignment change over training? Checkpoints against frozen references.",
        "Alignment over training", "repalign track out/checkpoint-2 out/checkpoint-4 --references photos.npz --data a.csv",
        "the stimuli through every checkpoint; kept in the store, if one is named",
    ),
    "universality": Experiment(
        "sparse_codes:universality",
        "Do two models have the same sparse features? Their codes matched, beside relabelled rows and two starts of one model.",
        "Sparse features of two models", "repalign universality image.npy text.npy --k 24 --atoms 48",
        "a dictionary for each start of each model: seconds at n = 500",
    ),
    "translate": Experiment(
        "translate:translate",
        "How many pairs join two models? Held-out translation by a map that is fitted on few pairs.",
        "How many pairs join two models", "repalign translate image.npy text.npy --out translate",
        "two maps for each number of pairs and draw: about a minute at n = 500",
    ),
    "unpaired": Experiment(
        "unpaired:unpaired",
        "Can two embedding models be joined without pairs? Found, or not found. Experimental.",
        "Joined without pairs?", "repalign unpaired old.npy new_of_other_texts.npy --adapter adapter.safetensors",
        "60 clusterings of up to 10,000 vectors of each model: some ten seconds at n = 2,000",
    ),
}  # fmt: skip

__all__ = ["EXPERIMENTS", "Experiment", "Found", "Input", *EXPERIMENTS]


class _Room(ModuleType):
    """A name of an experiment is its function, although Python sets the file of this name here once it is imported."""

    def __getattr__(self, name: str) -> Any:
        if name in EXPERIMENTS:
            return EXPERIMENTS[name].run
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in EXPERIMENTS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *EXPERIMENTS})


sys.modules[__name__].__class__ = _Room
