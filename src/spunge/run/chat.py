"""What a base model and an unlearned one say to the same prompts, side by side."""

from __future__ import annotations

from dataclasses import dataclass, field

from spunge import merging
from spunge.asking.batching import Batching
from spunge.asking.completions import complete
from spunge.asking.encoding import context_window, encode, end_tokens
from spunge.asking.generation import room_for_prompts
from spunge.errors import PredictsNothing
from spunge.merging import Part
from spunge.training.rows import openings
from spunge.weights.language_model import Resident
from spunge.weights.task_vector import TaskVector


@dataclass
class Chat:
    """Puts prompts to the base model of a run and to one of its variants; neither remembers the prompt before."""

    part: Part
    """The variant."""
    resident: Resident
    """Where the base model lies: once, as the variant is what is added to it for an answer."""
    system: str | None = None
    """What both are told before a prompt."""
    max_new_tokens: int = 100
    """Where an answer ends at the latest."""
    _vector: TaskVector = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checkpoint = self.part.model.checkpoint()
        self._vector = merging.open_variant(self.part, checkpoint)
        merging.check_base({str(self.part): self._vector}, checkpoint)

    def answers(self, prompt: str) -> tuple[str, str]:
        """Returns what the base model says, and what the variant does, greedily.

        Raises:
            DataError: The prompt does not fit the model.
        """
        return self._answer(prompt, None), self._answer(prompt, self._vector)

    def _answer(self, prompt: str, vector: TaskVector | None) -> str:
        _, tokenizer = self.resident.base(self.part.model)
        (text,) = openings(tokenizer, [prompt], [self.system])
        if tokenizer.chat_template:
            ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        else:
            (ids,) = encode(tokenizer, [text])
        with self.resident.variant(self.part.model, vector) as model:
            room = room_for_prompts(context_window(model, tokenizer), self.max_new_tokens)
            stop = end_tokens(model, tokenizer)
            try:
                (said,) = complete(model, [ids[-room:]], Batching(1), max_new_tokens=self.max_new_tokens, stop=stop)
            except PredictsNothing as error:
                return f"({error})"
        return str(tokenizer.decode(list(said), skip_special_tokens=True)).strip()
