"""A recipe: one run of training as a row of data, and the name that follows from it.

A name is `modality-network-objective`, as in `vision-cnn16-supervised` or `language-conv24-next`; the number is the
network's width. What differs from the usual way of training stands behind it: `-hue+height` (the attributes that
supervision names), `-detail3` (how many attributes each training caption names), `-decay0.3`, `-noise0.3`, `-seed1`
(another training of the same model). Seeds follow from the name, so a row may be added and no other changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repalign.toyworld import captions

VISION, LANGUAGE = "image", "text"  # modalities, by the dataset's columns
WEIGHT_DECAY = 0.01
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Recipe:
    """One model: what it is and how it comes about."""

    name: str
    modality: str
    family: str  # of the network
    width: int
    objective: str
    steps: int = 0
    rate: float = 0.0  # largest learning rate
    checkpoints: tuple[int, ...] = ()  # the steps whose weights are kept besides the last
    captions: int = 0  # how many are counted, for a model that only counts
    cost: float = 0.5  # core-seconds for training and scoring, about: what a progress bar goes by
    tasks: tuple[str, ...] = ()  # the attributes that supervision names; () stands for all five
    detail: int | None = None  # how many attributes each training caption names; None: the usual mixture
    decay: float = WEIGHT_DECAY  # decoupled, of AdamW: weights shrink by rate * decay in each step
    noise: float = 0.0  # on the weights while gradients are taken, in units of each tensor's root mean square

    @property
    def names(self) -> tuple[str, ...]:
        """The models that one run gives: the final one, and its checkpoints."""
        return (self.name, *(f"{self.name}-step{step}" for step in self.checkpoints))

    def factors(self, step: int) -> dict[str, float | str]:
        """What was done to the model, as numbers and words that alignment can be related to.

        * `run`: the training that it comes from; checkpoints of one run share it.
        * `width` and `training_steps`: of a network, 0 steps where it is untrained.
        * `weight_decay` and `weight_noise`: of a trained network.
        * `tasks`: how many attributes supervision names, of 5; only for supervised vision.
        * `caption_detail`: how many attributes a training caption names, of 10, on average; only for language.
        """
        out: dict[str, float | str] = {"run": self.name}
        if self.steps or self.objective == UNTRAINED:
            out |= {"width": float(self.width), "training_steps": float(step)}
        if self.steps:
            out |= {"weight_decay": self.decay, "weight_noise": self.noise}
            if self.objective == "supervised":
                out["tasks"] = float(len(self.tasks or captions.KINDS))
            if self.modality == LANGUAGE:
                out["caption_detail"] = captions.MIXED_DETAIL if self.detail is None else float(self.detail)
        return out


def name_of(
    modality: str,
    family: str,
    width: int,
    objective: str,
    *,
    tasks: Sequence[str] = (),
    detail: int | None = None,
    decay: float = WEIGHT_DECAY,
    noise: float = 0.0,
    seed: int = 0,
) -> str:
    """The name of a run, which says all that differs from the usual."""
    parts = ["vision" if modality == VISION else "language", f"{family}{width}", objective]
    parts += ["+".join(tasks)] if tasks else []
    parts += [f"detail{detail}"] if detail is not None else []
    parts += [f"decay{decay:g}"] if decay != WEIGHT_DECAY else []
    parts += [f"noise{noise:g}"] if noise else []
    parts += [f"seed{seed}"] if seed else []
    return "-".join(parts)
