"""A study of the theory: worlds with a known co-occurrence, and what contrastive learners make of them."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from repalign.errors import choose
from repalign.study import Drawn, OnPlan, Outcome, Plan, Study, StudyBlock, Where
from repalign.text import Progress, silent

SECONDS = 10  # of one experiment on one core, about


class TheoryConfig(StudyBlock):
    """A study of worlds with a known co-occurrence (see `repalign.prh.theory`).

    Parameters
    ----------
    experiment : theory.
    only : Experiments by name; all by default.
    seed : Of the experiments.
    """

    experiment: Literal["theory"]
    only: list[str] | None = Field(default=None, min_length=1)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class TheoryStudy(Study):
    """Experiments of `repalign.prh.theory`, each a table and a figure."""

    @classmethod
    def load(cls, path: Path, data: dict[str, Any], where: Where) -> TheoryStudy:
        config = where.validate(TheoryConfig, data)
        known = _experiments()
        for i, name in enumerate(config.only or ()):
            with where.at("only", i):
                choose("experiment", name, known, f"no experiment is called {name!r}")
        return cls(path, config)

    @property
    def chosen(self) -> list[str]:
        return list(self.config.only or _experiments())

    def plan(self, progress: Progress = silent) -> Plan:  # noqa: ARG002
        names = self.chosen
        return Plan((
            f"{len(names)} experiments on worlds with a known co-occurrence: {', '.join(names)}",
            f"about {SECONDS * len(names)} seconds on one core, under 1 GiB of memory, no download",
            f"tables and figures in {self.folder}",
        ))  # fmt: skip

    def run(self, *, progress: Progress = silent, executor: Executor | None = None, on_plan: OnPlan = None) -> Outcome:
        del executor  # one process does it
        from repalign.prh.theory.figures import draw

        if on_plan is not None:
            on_plan(self.plan())
        known, drawn = _experiments(), []
        for name in self.chosen:
            found = known[name](seed=self.config.seed, progress=progress)
            table = found.table.to_string(index=False, float_format="{:.3g}".format)
            drawn.append(Drawn(name, found.claim, draw(found), found.table, table))
        return self.show(drawn, Outcome(), ("tables and figures", self.results), self.report, {})

    def mock(self, progress: Progress = silent) -> TheoryStudy:  # noqa: ARG002
        """The quickest experiment alone: nothing here is downloaded or large."""
        config = self.config.model_copy(update={"name": f"{self.name}-mock", "out": None, "only": [self.chosen[0]]})
        return replace(self, config=config)


def _experiments() -> dict[str, Any]:
    from repalign.prh.theory.experiments import EXPERIMENTS

    return {f.__name__: f for f in EXPERIMENTS}
