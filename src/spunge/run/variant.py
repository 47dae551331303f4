"""What the stages work on: the base model with its digest, and the variants that are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spunge.run.identity import digest
from spunge.run.store import Artifact
from spunge.variants import SUBSET
from spunge.weights.language_model import LanguageModel

if TYPE_CHECKING:
    from spunge.weights.task_vector import TaskVector


@dataclass(frozen=True)
class Variant:
    """The base model, or the base plus a task vector."""

    name: str
    kind: str
    seed: int
    artifact: Artifact | None = None
    scale: float = 1.0
    """What its task vector, which holds its own sign, is multiplied by."""
    negated: bool = False
    """Whether the method learns what must go: its task vectors are kept with a scale of −1."""

    @property
    def subset(self) -> str | None:
        """The subset that this variant unlearned, if it is of one."""
        return self.name.removeprefix(SUBSET) if self.kind == "subset" else None

    @property
    def identity(self) -> list[Any]:
        """What its weights depend on, the base apart: the scale as it is towards what was learnt."""
        return [] if self.artifact is None else [self.artifact.key, -self.scale if self.negated else self.scale]

    def change(self) -> TaskVector | None:
        """Reads what it adds to the base model; None for the base itself."""
        from spunge.weights.task_vector import TaskVector

        return None if self.artifact is None else TaskVector.load(self.artifact.path).scaled(self.scale)


@dataclass(frozen=True)
class Published(Variant):
    """A model as somebody published it: a checkpoint, an adapter or a task vector of the base model."""

    model: LanguageModel | None = None
    base: LanguageModel | None = None

    @classmethod
    def of(
        cls, name: str, kind: str, model: LanguageModel, base: Base, seed: int = 0, *, scale: float = 1.0
    ) -> Published:  # fmt: skip
        """Returns a published model as a variant; of one on the hub nothing is fetched before it is asked."""
        known = Artifact(Path(model.id), {"key": digest(model, weights=False)})
        return cls(name, kind, seed, known, scale, model=model, base=base.model)

    def change(self) -> TaskVector | None:
        """Reads what it adds to the base model.

        Raises:
            SpungeError: It is no model, or not one of this base.
        """
        from spunge import merging

        assert self.model is not None
        assert self.base is not None
        checkpoint = self.base.checkpoint()
        opened = merging.open_variant(self.model.directory(), checkpoint)
        merging.check_base({self.name: opened}, checkpoint)
        return opened.scaled(self.scale)


@dataclass(frozen=True)
class Base:
    """The base model with its digest, read once."""

    model: LanguageModel
    weights: bool = True
    """Whether they must be there: False for a plan, which reads the configuration alone."""

    @property
    def digest(self) -> str:
        """Of weights, configuration and tokenizer."""
        return digest(self.model, weights=self.weights)

    @property
    def identity(self) -> dict[str, Any]:
        """What results depend on."""
        return {"digest": self.digest, "dtype": self.model.dtype}


class VariantTask:
    """What the tasks that do something to one variant have in common."""

    variant: Variant
    base: Base

    @property
    def name(self) -> str:
        """The variant's."""
        return self.variant.name

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.variant.seed

    @property
    def weights(self) -> dict[str, Any]:
        """What tells the variant's weights from others'; its name does not."""
        return {"base": self.base.identity, "weights": self.variant.identity}
