"""Datasets: ordered ids, one column of stimuli per modality, a revision, a fingerprint.

`Dataset` and its five sources (`from_hub`, `from_table`, `from_folder`, `from_arrays`, `toy`);
`open_dataset` and `DatasetConfig` read the `dataset:` block of a study file.
"""

from repalign.dataset._config import DatasetConfig, open_dataset
from repalign.dataset._core import Dataset, LeftOut
from repalign.dataset._distortions import DISTORTIONS

__all__ = ["DISTORTIONS", "Dataset", "DatasetConfig", "LeftOut", "open_dataset"]
