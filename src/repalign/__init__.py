"""Representational alignment: do two models put the same things close together, and is that more than chance?

The public names, in the order of the flow; each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from repalign import text as _text

_PUBLIC = {
    "RepalignError": "errors",
    "RDM": "layers",
    "Kernel": "layers",
    "Dataset": "dataset",
    "ModelRecord": "models",
    "ModelEntry": "sources",
    "Model": "sources",
    "extract": "sources",
    "FeatureStore": "store",
    "MEASURES": "measures",
    "parse_measure": "measures",
    "MutualKNN": "measures",
    "CKA": "measures",
    "CKNNA": "measures",
    "SVCCA": "measures",
    "Preprocess": "comparison",
    "preset": "comparison",
    "Permutations": "null",
    "Cyclic": "null",
    "read_features": "features",
    "compare": "comparison",
    "pair": "comparison",
    "Alignment": "comparison",
    "Panel": "track",
    "Tracker": "track",
    "trend": "relate",
    "load_study": "study",
    "report": "report",
    "write_report": "report",
}

_ROOMS = (
    "aggregate", "comparison", "competence", "experiments", "features", "figures", "losses", "null", "prh", "relate", "study",
    "testing", "toyworld", "track",
)  # fmt: skip
__all__ = ["__version__", *_PUBLIC]
__version__: str

if TYPE_CHECKING:  # the same names for editors and type checkers, which run no `__getattr__`; a name `as` itself is a public one
    from . import aggregate, comparison, competence, experiments, features, figures, losses, null, prh, relate, study  # noqa: F401, I001
    from . import testing, toyworld, track  # noqa: F401
    from . import figures as plot  # noqa: F401
    from repalign.comparison import Alignment as Alignment, Preprocess as Preprocess
    from repalign.comparison import compare as compare, pair as pair, preset as preset
    from repalign.dataset import Dataset as Dataset
    from repalign.errors import RepalignError as RepalignError
    from repalign.features import read_features as read_features
    from repalign.layers import RDM as RDM, Kernel as Kernel
    from repalign.measures import CKA as CKA, CKNNA as CKNNA, MEASURES as MEASURES, SVCCA as SVCCA
    from repalign.measures import MutualKNN as MutualKNN, parse_measure as parse_measure
    from repalign.models import ModelRecord as ModelRecord
    from repalign.null import Cyclic as Cyclic, Permutations as Permutations
    from repalign.relate import trend as trend
    from repalign.report import report as report, write_report as write_report
    from repalign.sources import Model as Model, ModelEntry as ModelEntry, extract as extract
    from repalign.store import FeatureStore as FeatureStore
    from repalign.study import load_study as load_study
    from repalign.track import Panel as Panel, Tracker as Tracker
else:

    def __getattr__(name: str) -> Any:
        if name in (*_ROOMS, "plot"):  # `plot` is what many look for
            return import_module(f"repalign.{'figures' if name == 'plot' else name}")
        if name == "__version__":
            from repalign.errors import version_of

            globals()[name] = version_of("repalign") or "0.0.0"  # a source tree that is not installed
            return globals()[name]
        if name not in _PUBLIC:
            raise AttributeError(f"module 'repalign' has no attribute {name!r}")
        return getattr(import_module(f"repalign.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _html_of(alignment: Any) -> str:
    return import_module("repalign.report").notebook_html(alignment.table, alignment.run)


_text.html_of = _html_of
