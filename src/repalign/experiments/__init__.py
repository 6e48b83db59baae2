"""Measuring systems beside the comparison of models, a file each: what a model or two hold, asked in another way.

Each has a row of `EXPERIMENTS`, which makes it a command, a kind of study and a name of this room. Nothing else knows it.
"""

from __future__ import annotations

from repalign.experiments.base import Experiment, Found, Input
from repalign.experiments.brain import brain
from repalign.experiments.closeness import closeness
from repalign.experiments.compress import compress
from repalign.experiments.concepts import concepts
from repalign.experiments.direction import direction
from repalign.experiments.disentangle import disentangle
from repalign.experiments.migrate import migrate
from repalign.experiments.perceive import perceive
from repalign.experiments.self_consuming import self_consuming
from repalign.experiments.sparse_codes import universality
from repalign.experiments.stages import stages
from repalign.experiments.stitch import stitch
from repalign.experiments.superposition import superposition
from repalign.experiments.track import track
from repalign.experiments.translate import translate
from repalign.experiments.unpaired import unpaired

EXPERIMENTS: dict[str, Experiment] = {
    "brain": Experiment(
        brain, "Closeness of models to the brain", "repalign brain brain.npz models.npz --subjects sessions.csv --measure tau_a",
        "RDMs or features in files: seconds at n = 92, with Kendall's tau a minute or two",
    ),
    "closeness": Experiment(
        closeness, "Closeness in distribution, d_LLV", "repalign closeness f.npy g.npy other-f.npy other-g.npy --out closeness",
        "the files; the search for two labels grows with the cube of their number",
    ),
    "compress": Experiment(
        compress, "What compression costs", "repalign compress vectors.parquet --queries queries.parquet --k 10 --out compress",
        "an exact search for each form of the vectors: seconds at n = 10,000",
    ),
    "concepts": Experiment(
        concepts, "Directions of concepts", "repalign concepts hf:HuggingFaceTB/SmolLM2-135M --metric causal",
        "the output matrix of each language model; no text but contexts goes through one: a minute",
    ),
    "direction": Experiment(
        direction, "Both directions, and what chance gives to each", "repalign direction a.npy b.npy --measure 'CycleKNN(k=10)'",
        "relabellings of n² numbers: half a minute at n = 1,000",
    ),
    "disentangle": Experiment(
        disentangle, "Components of two models, after PCA and after ICA", "repalign disentangle image.npy text.npy --k 8 --k 16",
        "FastICA some twenty times for each k: half a minute at n = 500",
    ),
    "migrate": Experiment(
        migrate, "Must I re-embed?", "repalign migrate old.npy new_sample.npy --queries-old q_old.npy --queries-new q_new.npy",
        "an exact search for each adapter and number of anchors: seconds at n = 10,000",
    ),
    "perceive": Experiment(
        perceive, "What accuracy loses without each modality", "repalign perceive labels.csv photos.npy captions.npy --test 0.5",
        "a logistic regression and n² predictions: seconds at n = 1,000",
    ),
    "self_consuming": Experiment(
        self_consuming, "Models that learn from their own samples", "repalign self-consuming --shares 0 --shares 0.1 --shares 0.5",
        "no data and no model: about ten seconds on one core",
    ),
    "stages": Experiment(
        stages, "What each block does", "repalign stages hf:HuggingFaceTB/SmolLM2-135M texts.jsonl --n 100 --out stages",
        "a pass over the stimuli for each block of the model, and one of its head",
    ),
    "stitch": Experiment(
        stitch, "One model's first half and another's second", "repalign stitch torch:./nets.py:small torch:./nets.py:large photos "
        "--cuts layer1 --cuts layer2 --out stitch", "two trainings of an affine map at each cut, on the images to fit",
    ),
    "superposition": Experiment(
        superposition, "More features than dimensions", "repalign superposition --widths 5 --sparsity 0 --sparsity 0.9",
        "no data and no model: about twenty seconds on one core",
    ),
    "track": Experiment(
        track, "Alignment over training", "repalign track out/checkpoint-2 out/checkpoint-4 --references photos.npz --data a.csv",
        "the stimuli through every checkpoint; kept in the store, if one is named",
    ),
    "universality": Experiment(
        universality, "Sparse features of two models", "repalign universality image.npy text.npy --k 24 --atoms 48",
        "a dictionary for each start of each model: seconds at n = 500",
    ),
    "translate": Experiment(
        translate, "How many pairs join two models", "repalign translate image.npy text.npy --out translate",
        "two maps for each number of pairs and draw: about a minute at n = 500",
    ),
    "unpaired": Experiment(
        unpaired, "Joined without pairs?", "repalign unpaired old.npy new_of_other_texts.npy --adapter adapter.safetensors",
        "60 clusterings of up to 10,000 vectors of each model: some ten seconds at n = 2,000",
    ),
}  # fmt: skip

__all__ = ["EXPERIMENTS", "Experiment", "Found", "Input", *EXPERIMENTS]
