"""Which base model task vectors were made from, and whether it is one and the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spunge.errors import IncompatibleTaskVectors

if TYPE_CHECKING:
    from spunge.weights.checkpoint import Checkpoint
    from spunge.weights.task_vector import TaskVector


def common_base(task_vectors: Iterable[TaskVector]) -> dict[str, Any] | None:
    """Returns the base that task vectors of one base name, with the digests that each knows; None where none names it.

    Whether it is one base says `check_base`.
    """
    bases = [base for each in task_vectors if isinstance(base := each.provenance.get("base"), Mapping)]
    if not bases:
        return None
    tensors = {name: digest for base in bases for name, digest in (base.get("tensors") or {}).items()}
    return {**bases[0], "tensors": tensors}


def check_base(variants: Mapping[str, TaskVector], base: Checkpoint | None) -> None:
    """Raises IncompatibleTaskVectors unless all variants were made from the same base tensors."""
    fingerprints: dict[str, str] = {}
    digests: dict[str, tuple[str, str]] = {}
    undigested: dict[tuple[Any, Any], str] = {}
    for variant, task_vector in variants.items():
        made_from = task_vector.provenance.get("base")
        if not isinstance(made_from, Mapping):
            continue
        tensors = made_from.get("tensors") or {}
        for name, digest in tensors.items():
            other, seen = digests.setdefault(name, (variant, digest))
            if seen != digest:
                raise IncompatibleTaskVectors(f"{name}: {other} and {variant} were made from different base models")
        if isinstance(whole := made_from.get("fingerprint"), str):
            fingerprints.setdefault(whole, variant)
        elif not tensors:
            # The same model may lie under several paths, so only the last part of its name is compared.
            undigested[Path(str(made_from.get("id"))).name, made_from.get("revision")] = variant
    if len(fingerprints) > 1:
        first, second = list(fingerprints.values())[:2]
        raise IncompatibleTaskVectors(
            f"{first} and {second} were made from different base models, though what they change is the same in both"
        )
    if len(undigested) > 1:
        (one, first), (two, second) = list(undigested.items())[:2]
        raise IncompatibleTaskVectors(
            f"{first} and {second} were made from different base models: {_at(*one)} and {_at(*two)}"
        )
    if base is not None:
        for name, (variant, digest) in digests.items():
            if name not in base.tensors or base.digest(name) != digest:
                raise IncompatibleTaskVectors(
                    f"{name}: {variant} was made from another base model than {base.directory}"
                )
        for whole, variant in fingerprints.items():
            if base.fingerprint() != whole:
                raise IncompatibleTaskVectors(
                    f"{variant} was made from another base model than {base.directory}, though what it changes is the "
                    "same in both"
                )


def unlike_base(variants: Mapping[str, TaskVector], base: Checkpoint | None) -> list[str]:
    """Returns a warning of each variant that knows its base model by name alone, and by another than `base`'s."""
    if base is None:
        return []
    # The hub's cache keeps org/name as models--org--name.
    paths = (base.directory.absolute(), base.directory.resolve())
    names = {part.rsplit("--", 1)[-1] for path in paths for part in path.parts}
    warnings = []
    for variant, task_vector in variants.items():
        made_from = task_vector.provenance.get("base")
        if not isinstance(made_from, Mapping) or made_from.get("tensors") or made_from.get("fingerprint"):
            continue
        named = made_from.get("id")
        if named and re.split("[/:]", str(named).rstrip("/"))[-1] not in names:
            warnings.append(
                f"{variant}: was made from {named}, and the base given is {base.directory}: only their shapes could be "
                "compared"
            )
    return warnings


def _at(name: Any, revision: Any) -> str:
    return str(name) if revision is None else f"{name}@{revision}"
