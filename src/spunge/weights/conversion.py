"""A checkpoint's tensors and the loaded model's parameters, turned into each other: they differ in name and in shape.

transformers renames tensors when it loads them, and fuses some: a mixture's experts lie in a checkpoint as three
matrices each, and in the model as two tensors of all. What it does is written in its conversion mapping, which is
followed here for names first, and for values only where a task vector has some: in memory then is what loading an
export would give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from spunge.errors import ModelError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter


@dataclass(frozen=True, eq=False)
class Fusion:
    """Tensors of a checkpoint that become parameters of the model together, by some operations of transformers."""

    converter: WeightConverter
    target: str
    """The parameter that the operations are named by: the first of several."""
    sources: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The checkpoint's name → the pattern it matched, and its name after renaming; in the order of loading."""

    @property
    def parameters(self) -> list[str]:
        """The names of all parameters that are made together."""
        first, *others = self.converter.target_patterns
        return [self.target, *(self.target.replace(first, other) for other in others)]

    def load(self, tensors: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
        """Returns the model's parameters that these tensors of the checkpoint, all of them, become."""
        converter = deepcopy(self.converter)
        for name, (pattern, _) in self.sources.items():
            converter.add_tensor(self.target, name, pattern, cast("Any", tensors[name]))
        return _single(converter.convert(self.target, model=model, config=model.config))

    def store(self, parameters: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
        """Returns the tensors of the checkpoint that these parameters, all of them, came from.

        Raises:
            ModelError: The operations have no reverse.
        """
        try:
            reverse: Any = self.converter.reverse_transform()
            first = None
            for name, value in parameters.items():
                renamed, pattern = reverse.rename_source_key(name)
                first = first or renamed
                reverse.add_tensor(renamed, name, pattern, value)
            split = _single(reverse.convert(first, model=model, config=model.config))
        except (ValueError, RuntimeError, KeyError, IndexError, TypeError, NotImplementedError, StopIteration) as error:
            raise _irreversible(self.target, error) from error
        # The reverse gives names as they are after the renaming on loading, some of them without the model's prefix.
        prefix = model.base_model_prefix + "."
        names = {renamed.removeprefix(prefix): name for name, (_, renamed) in self.sources.items()}
        if {name.removeprefix(prefix) for name in split} != names.keys():
            raise _irreversible(self.target)
        return {names[name.removeprefix(prefix)]: value for name, value in split.items()}


class ParameterNames:
    """What the tensors of one checkpoint are called in one loaded model, and what they become there.

    Args:
        model: The model as transformers builds it; it may be without memory for its weights.
        stored: The names of the checkpoint's tensors.
    """

    def __init__(self, model: PreTrainedModel, stored: Iterable[str]) -> None:
        self._model = model
        # Taken now: once an adapter is put in, the model's own names are others.
        self._shapes = {name: value.shape for name, value in model.state_dict(keep_vars=True).items()}
        self.renamed: dict[str, str] = {}
        """The model's name → the checkpoint's, of parameters that are one tensor there. A tied parameter is here under
        the name that the checkpoint has it by, or under several."""
        self.fused: dict[str, Fusion] = {}
        """The checkpoint's name → what it is fused into."""
        self.unread: set[str] = set()
        """The checkpoint's names of tensors that the model does not read."""
        self._follow(stored)
        self.stored = {theirs: ours for ours, theirs in self.renamed.items()}
        """The checkpoint's name → the model's, of parameters that are one tensor there."""
        self._made = {name: fusion for fusion in self.fused.values() for name in fusion.parameters}

    @property
    def unfused(self) -> dict[str, str]:
        """The model's name → the checkpoint's; of what is fused, the name that it has before, within the model."""
        prefix = self._model.base_model_prefix + "."
        names = dict(self.renamed)
        for name, fusion in self.fused.items():
            before = fusion.sources[name][1]
            start = prefix if fusion.target.startswith(prefix) and not before.startswith(prefix) else ""
            names[start + before] = name
        return names

    def _follow(self, stored: Iterable[str]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            apply_renamings,
            dot_natural_key,
            rename_source_key,
        )

        # A loaded model notes which conversions took part; an outline has only the mapping, where most match nothing.
        transforms = get_model_conversion_mapping(self._model)
        renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
        converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        parameters, prefix = self._shapes, self._model.base_model_prefix
        fusions: dict[str, Fusion] = {}
        # In transformers' own order, in which experts are stacked.
        for name in sorted(stored, key=dot_natural_key):
            ours, pattern = rename_source_key(name, renamings, converters, prefix, parameters)
            if ours not in parameters and name in parameters:
                ours, pattern = rename_source_key(name, [], [], prefix, parameters)
            if ours not in parameters:
                self.unread.add(name)
            elif pattern is None:
                self.renamed[ours] = name
            else:
                fusion = fusions.setdefault(ours, Fusion(by_pattern[pattern], ours))
                fusion.sources[name] = (pattern, apply_renamings(name, renamings))
                self.fused[name] = fusion

    def parameters(self, names: Iterable[str]) -> set[str]:
        """Returns the model's parameters that depend on some of the checkpoint's tensors, by the model's names."""
        made = {part for name in names if name in self.fused for part in self.fused[name].parameters}
        return made | {self.stored[name] for name in names if name in self.stored}

    def load(self, names: Iterable[str], read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields the model's parameters that depend on some of the checkpoint's tensors, by the model's names.

        Args:
            names: The checkpoint's names; those that the model does not read are passed over, as on loading.
            read: Returns a tensor of the checkpoint, also of those that are fused with the ones named.
        """
        targets: dict[str, Fusion] = {}
        for name in names:
            if name in self.stored:
                yield self.stored[name], read(name)
            elif name in self.fused:
                targets[self.fused[name].target] = self.fused[name]
        for fusion in targets.values():
            yield from fusion.load({name: read(name) for name in fusion.sources}, self._model).items()

    def store(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the checkpoint's tensors that some of the model's parameters are, by the checkpoint's names.

        For differences only: of a fusion of which some parameters are not there, these are taken for zero.

        Raises:
            ModelError: The checkpoint does not hold one of them, or in a form that cannot be converted back to.
        """
        stored = {self.renamed[name]: value for name, value in parameters.items() if name in self.renamed}
        rest = {name: value for name, value in parameters.items() if name not in self.renamed}
        while rest:
            fusion = self._fusion_of(next(iter(rest)))
            fused = {
                name: rest.pop(name) if name in rest else torch.zeros(self._shapes[name]) for name in fusion.parameters
            }
            split = fusion.store(fused, self._model)
            # What does not come back as it was would be exported as something that was never trained.
            again = fusion.load(split, self._model)
            if again.keys() != fused.keys() or not all(_equal(again[name], fused[name]) for name in fused):
                raise _irreversible(fusion.target)
            stored.update({name: value.contiguous() for name, value in split.items()})
        return stored

    def holds(self, name: str) -> bool:
        """Whether a parameter of the model comes from the checkpoint under this name: a tied one may not."""
        return name in self.renamed or name in self._made

    def check(self, name: str) -> None:
        """Refuses a parameter of the model whose change could not be stored; reads no weights.

        Raises:
            ModelError: As by `store`.
        """
        if name not in self.renamed:
            fusion = self._fusion_of(name)
            fusion.store(
                {ours: torch.empty(self._shapes[ours], device="meta") for ours in fusion.parameters}, self._model
            )

    def _fusion_of(self, name: str) -> Fusion:
        if name not in self._made:
            raise ModelError(
                f"{type(self._model).__name__}: the checkpoint does not hold {name}; choose other parameters"
            )
        return self._made[name]


def _single(converted: Mapping[str, Any]) -> dict[str, Tensor]:
    """The operations of transformers leave some tensors in lists of one."""
    return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same; NaN, as a training that diverged leaves it, is the same as NaN."""
    return torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num())


def _irreversible(name: str, error: Exception | None = None) -> ModelError:
    reason = "" if error is None else f" ({first_line(error)})"
    return ModelError(
        f"{name}: the checkpoint keeps it in a form that transformers cannot convert back to{reason}; choose other "
        "parameters"
    )
