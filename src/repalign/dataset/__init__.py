"""Datasets: ordered ids, one column of stimuli per modality, a revision, a fingerprint.

`Dataset` and its sources (`from_hub`, `from_table`, `from_folder`, `from_arrays`, `of`, `from_torch`, `toy`);
`DatasetConfig` reads the `dataset:` block of a study file. `KINDS` says which kinds of stimuli there are, and what is
done with each.
"""

from repalign.dataset.config import DatasetConfig
from repalign.dataset.dataset import Dataset
from repalign.dataset.kinds import CELLS, DISTORTIONS, GIVEN, IN_CELLS, KINDS, LeftOut

__all__ = ["CELLS", "DISTORTIONS", "GIVEN", "IN_CELLS", "KINDS", "Dataset", "DatasetConfig", "LeftOut"]
