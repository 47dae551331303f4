"""The base model as a handle, loaded when needed; task vectors are swapped in and out of one resident copy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from spunge.data import locate
from spunge.errors import ModelError
from spunge.settings import Settings

# A handle is part of a recipe, and reading a recipe must not cost the import of torch.
if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from spunge.checkpoint import Checkpoint
    from spunge.task_vector import TaskVector

T = TypeVar("T")
_WEIGHTS = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


class LanguageModel(Settings):
    """A model by name: a directory, `lab:…`, or a hub id with its revision."""

    id: str
    """A Hugging Face model directory, a hub id, or `lab:…`."""
    revision: str | None = None
    """The hub revision; pinned to a commit on first use."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the weights are computed in; `auto` is the checkpoint's own."""
    trust_remote_code: bool = False
    """Run the model repository's own Python code: only for one you have read, with a revision."""

    def directory(self) -> Path:
        """Returns the local directory, fetched from the hub when the id is no directory.

        Raises:
            ModelError: There is no such directory, or the hub does not have it or cannot be reached.
        """
        path = locate(self.id)
        if path.is_dir():
            return path
        if self.id.startswith((".", "/", "~", "lab:")) or self.id.count("/") > 1 or path.exists():
            raise ModelError(f"{self.id}: no such model directory")
        import huggingface_hub

        try:
            return Path(
                huggingface_hub.snapshot_download(self.id, revision=self.revision, allow_patterns=list(_WEIGHTS))
            )
        except Exception as error:  # the hub client raises many kinds, none of which a user can tell apart
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ModelError(
                f"{self.id}: neither a local directory nor to be had from the hub ({reason}); "
                "give a local path, or check the name and the network"
            ) from error

    def checkpoint(self) -> Checkpoint:
        """Opens the weights as files."""
        from spunge.checkpoint import Checkpoint

        return Checkpoint.open(self.directory())

    def digest(self) -> str:
        """The sha256 over the weights, the configuration and the tokenizer, by file name."""
        total = hashlib.sha256()
        for file in sorted(self.directory().iterdir()):
            if any(file.match(pattern) for pattern in _WEIGHTS) and file.is_file():
                with file.open("rb") as stream:
                    total.update(f"{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()

    def load(self, *, device: str = "cpu", dtype: str | None = None, **options: Any) -> PreTrainedModel:
        """Loads the whole model for inference.

        Args:
            device: Where to put it.
            dtype: Overrides the handle's own.
            **options: Passed on to transformers, such as `num_hidden_layers`.

        Raises:
            ModelError: The directory does not hold a causal language model that transformers can load.
        """
        import torch
        from transformers import AutoModelForCausalLM

        no_loading_bars()
        directory = self.checkpoint().directory
        wanted = dtype or self.dtype
        try:
            model = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=wanted if wanted == "auto" else getattr(torch, wanted),
                use_safetensors=True,
                trust_remote_code=self.trust_remote_code,
                local_files_only=True,
                **options,
            )
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise ModelError(f"{self.id}: cannot be loaded as a causal language model: {reason}") from error
        return model.to(torch.device(device)).eval()  # pyright: ignore[reportArgumentType]

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer; a missing pad token becomes the end-of-text token.

        Raises:
            ModelError: The directory holds no tokenizer.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.directory(), trust_remote_code=self.trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise ModelError(f"{self.id}: no tokenizer that can be loaded: {reason}") from error
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
        return tokenizer


def no_loading_bars() -> None:
    """Keeps transformers from drawing a bar for every model it reads from the disk; downloads have their own."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def checkpoint_names(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, str]:
    """Maps the loaded model's parameter names to the checkpoint's; a parameter stored elsewhere (tied) is left out.

    Some checkpoints were saved without the causal-LM prefix (`h.0…` for `transformer.h.0…`).
    """
    prefix = model.base_model_prefix + "."
    names = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        for candidate in (name, name.removeprefix(prefix), prefix + name):
            if candidate in checkpoint.places:
                names[name] = candidate
                break
    return names


class Resident:
    """What tasks on one device share: at most one loaded base model, and whatever is derived from it."""

    def __init__(self, device: str = "cpu", dtype: str | None = None, *, shared: bool = True) -> None:
        self.device = device
        self.dtype = dtype
        self.shared = shared
        """Whether tasks follow one another here, so that what one keeps may spare the next its computation."""
        self._base: tuple[LanguageModel, PreTrainedModel, PreTrainedTokenizerBase] | None = None
        self._cache: dict[Hashable, Any] = {}

    def base(self, handle: LanguageModel) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Returns the loaded base model and its tokenizer, loading them the first time."""
        if self._base is None or self._base[0] != handle:
            self.close()
            self._base = (handle, handle.load(device=self.device, dtype=self.dtype), handle.load_tokenizer())
        return self._base[1:]

    def cached(self, key: Hashable, build: Callable[[], T]) -> T:
        """Returns what `build` made the first time this key was asked for."""
        if key not in self._cache:
            self._cache[key] = build()
        return self._cache[key]

    @contextmanager
    def variant(self, handle: LanguageModel, task_vector: TaskVector | None) -> Iterator[PreTrainedModel]:
        """Adds a task vector to the resident base, and afterwards restores the base from its files.

        The weights equal those that `checkpoint.export` writes, bit for bit.
        """
        model, _ = self.base(handle)
        if task_vector is None:
            yield model
            return
        checkpoint = handle.checkpoint()
        stored = {theirs: ours for ours, theirs in checkpoint_names(model, checkpoint).items()}
        parameters = dict(model.named_parameters(remove_duplicate=False))
        try:
            for name in task_vector:
                changed = checkpoint.changed(task_vector, name)
                _copy(parameters, stored, name, changed)
            yield model
        finally:
            for name in task_vector:
                if name in stored:
                    _copy(parameters, stored, name, checkpoint.read(name))

    def close(self) -> None:
        """Lets go of the model and everything cached."""
        self._base = None
        self._cache.clear()


def _copy(parameters: dict[str, Any], stored: dict[str, str], name: str, value: torch.Tensor) -> None:
    if name not in stored:
        raise ModelError(f"{name}: in the checkpoint, but the loaded model keeps it under another name")
    import torch

    with torch.no_grad():
        parameters[stored[name]].copy_(value)
