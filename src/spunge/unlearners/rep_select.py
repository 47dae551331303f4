"""RepSelect: one edit along the forget set's whitened gradient, as long as a budget of damage allows.

arXiv 2606.17168 (2026), in its adaptive form. An adapter first learns the forget set by plain gradient
descent; with it in place the gradients of −NLL with respect to the MLPs' own weights are summed over the forget set;
their leading directions, which all texts share, are brought down (`training/whitening.py`); and the weights move
against the result, so far that the KL divergence from the base model on the retain set comes to the budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from spunge.interfaces import Forecast, Unlearner, Work, require_retain
from spunge.settings import SearchRange
from spunge.training.settings import Lora, Tuning

if TYPE_CHECKING:
    from torch import Tensor

    from spunge.rows.sources import Corpus
    from spunge.weights.language_model import LanguageModel
    from spunge.weights.task_vector import TaskVector


class RepSelect(Unlearner):
    """Moves MLP weights up the forget set's loss, in the directions that other texts share least."""

    method: Literal["rep_select"] = "rep_select"
    lora: Lora = Lora(dropout=0.0, target_modules="all-linear")
    """The adapter that learns the forget set before its gradient is taken; it is thrown away."""
    lora_learning_rate: Annotated[float, SearchRange(0.005, 0.5, log=True, first=0.01)] = Field(default=0.01, gt=0)
    """The step of its plain gradient descent, one pass over the forget set. Of the two settings worth a search this is
    one: 0.005 to 0.5."""
    components: int = Field(default=512, ge=1)
    """How many leading directions of each matrix's gradient are brought down to the least of them."""
    parameters: tuple[str, ...] = ("mlp",)
    """The matrices that move, by parts of their names."""
    budget: float = Field(default=0.03, gt=0)
    """The KL divergence per token from the base model, in nats, that the edit may do to the retain set. Where `damage`
    brings all variants to one budget anyway, this is where its λ of 1 lies."""
    tokens: int = Field(default=1024, ge=1)
    """How many tokens of the retain set it is measured on, in texts of 128."""
    batch_size: int = Field(default=4, ge=1)
    """Forget rows in one pass."""
    max_length: int = Field(default=512, ge=2)
    """The tokens of a row beyond this many are cut off."""

    @property
    def needs_retain(self) -> bool:
        """Always: the step is as long as it allows."""
        return True

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns the edit.

        Raises:
            DataError: There is no retain set.
            RecipeError: `parameters` names no matrix of the model, or nothing of it moves any prediction.
            TrainingDiverged: The adapter's loss became NaN or infinite.
        """
        from spunge.training.whitening import whitened

        require_retain(self, retain)
        assert retain is not None
        direction = {name: whitened(value, self.components) for name, value in self._gradient(base, forget, work)}
        return self._stepped(direction, base, retain, work)

    def _gradient(self, base: LanguageModel, forget: Corpus, work: Work) -> list[tuple[str, Tensor]]:
        """The gradient of the forget set's NLL with the adapter in place, matrix by matrix."""
        import torch

        from spunge.errors import RecipeError
        from spunge.seeding import seeded
        from spunge.training import sharding
        from spunge.training.rows import plan
        from spunge.training.trainee import borrow
        from spunge.training.tuned import chosen_weights
        from spunge.training.whitening import descend, summed_gradient

        if sharding.size() > 1:
            raise RecipeError("rep_select: is computed in one process; start it without torchrun")
        model, _ = work.resident.base(base)
        chosen = chosen_weights(model, work.resident.names(base), self.parameters)
        matrices = {name: weight for name, weight in chosen.items() if weight.ndim == 2}
        if not matrices:
            raise RecipeError(f"parameters: {', '.join(self.parameters)} names no matrix of the model")
        with borrow(self._tuning, base, work) as trainee, seeded(work.seed, work.device):
            rows = trainee.encode(forget)
            [*steps] = plan([rows], self._tuning, torch.Generator().manual_seed(work.seed))
            batches = [indices for (step,) in steps for indices in step]
            descend(trainee, rows, batches, self.lora_learning_rate)
            return [*summed_gradient(trainee, matrices, rows, batches, work.progress).items()]

    def _stepped(self, direction: dict[str, Tensor], base: LanguageModel, retain: Corpus, work: Work) -> TaskVector:
        """The direction as long as the budget allows."""
        from spunge.asking.divergence import WHOLE, kl_per_token, predict, whole_texts
        from spunge.asking.encoding import context_window
        from spunge.errors import RecipeError
        from spunge.matching import match
        from spunge.training.tuned import changes
        from spunge.weights.task_vector import TaskVector

        model, tokenizer = work.resident.base(base)
        names, weights = work.resident.names(base), dict(model.named_parameters())
        reach = sum(float(weights[name].detach().double().square().sum()) for name in direction) ** 0.5
        norm = sum(float(value.double().square().sum()) for value in direction.values()) ** 0.5
        if not norm:
            raise RecipeError("rep_select: the forget set has no gradient in these matrices: choose other `parameters`")
        # A thousandth of the weights' own length is where the search begins.
        unit = TaskVector(changes(names, ((name, value * (1e-3 * reach / norm)) for name, value in direction.items())))
        texts = whole_texts(
            tokenizer, retain.texts, tokens=self.tokens, length=min(WHOLE, context_window(model, tokenizer))
        )
        work.scratch.mkdir(parents=True, exist_ok=True)
        before = predict(model, texts, work.scratch)
        asked = 0
        with work.resident.scaled(base, unit) as at:

            def damage_at(scale: float) -> float:
                nonlocal asked
                damage = kl_per_token(before, at(scale))
                asked += 1
                work.progress("step", asked, asked, scale=scale, damage=damage)
                return damage

            [spent], _ = match(damage_at, [self.budget], longest=1e4)
        edit = {name: unit.delta(name) * spent.scale for name in unit}
        return TaskVector(edit, provenance={"damage": spent.damage, "budget": self.budget, "questions": asked})

    @property
    def _tuning(self) -> Tuning:
        return Tuning(lora=self.lora, batch_size=self.batch_size, max_length=self.max_length)

    def forecast(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> Forecast:
        """Says what two passes over the forget set, the decompositions and some readings of the retain set take.

        Raises:
            DataError: There is no retain set.
            RecipeError: `parameters` names no weight of the model.
        """
        from spunge.training.forecast import forecast_training
        from spunge.training.tuned import matching_parameters
        from spunge.weights.shape import shape_of

        require_retain(self, retain)
        shape, passes = shape_of(base), forecast_training(self._tuning, base, forget, None)
        outline = base.outline()
        named = map(outline.get_parameter, matching_parameters(outline, self.parameters))
        moved = [weight.numel() for weight in named if weight.ndim == 2]
        reading = 16.0 * shape.inner * self.tokens
        return Forecast(
            memory=None if passes.memory is None else passes.memory + 8 * sum(moved),
            disk=4 * sum(moved),
            operations=None if passes.operations is None else 2.5 * passes.operations + reading,
            calls=2 * passes.calls,
            changed=sum(moved),
        )
