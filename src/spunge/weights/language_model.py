"""The base model as a handle, loaded when needed; task vectors are swapped in and out of one resident copy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import model_validator

from spunge import outside
from spunge.errors import ModelError, as_model_error, hub_refusal
from spunge.files import content_of, is_local, locate, refuse_special
from spunge.settings import Settings
from spunge.weights import seal

# A handle is part of a recipe, and reading a recipe must not cost the import of torch.
if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from spunge.weights.checkpoint import Checkpoint
    from spunge.weights.conversion import ParameterNames
    from spunge.weights.task_vector import TaskVector

T = TypeVar("T")
_WEIGHTS = seal.SEALED
_MOST_LAYERS = 2000
_NO_MODELS = {
    "recipe.yaml": "a run (`spunge export` writes its model)",
    "task_vector.safetensors": "a task vector (`spunge export --model BASE --task-vector` adds it to its base model)",
    "adapter_config.json": "an adapter (PEFT's `merge_and_unload` adds it to its base model)",
}
"""What directories are that hold such a file, and no configuration of a model."""
_BESIDES = tuple(pattern for pattern in _WEIGHTS if pattern != "*.safetensors")


class LanguageModel(Settings):
    """A model by name: a directory, `lab:…`, or a hub id with its revision."""

    id: str
    """A Hugging Face model directory, a hub id, or `lab:…`."""
    revision: str | None = None
    """The hub revision, best a commit: without one a run takes what the hub has, and refuses what changes meanwhile."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the weights are computed in; `auto` is the checkpoint's own."""
    trust_remote_code: bool = False
    """Run the model repository's own Python code: only for one you have read, with a revision."""

    @model_validator(mode="after")
    def _code_is_pinned(self) -> LanguageModel:
        check_code_is_pinned(self.id, self.revision, self.trust_remote_code)
        return self

    def directory(self, *, weights: bool = True) -> Path:
        """Returns the local directory, fetched from the hub when the id is no directory.

        Args:
            weights: Whether the weights are wanted too; else only configuration, tokenizer and index are fetched.

        Raises:
            ModelError: There is no such directory, or the hub does not have it or cannot be reached.
        """
        return self._local() or self._fetched(_WEIGHTS if weights else _BESIDES)

    def checkpoint(self, wanted: Callable[[Collection[str]], Collection[str]] | None = None) -> Checkpoint:
        """Opens the weights as files.

        Args:
            wanted: From all tensors' names, those that will be read: of a checkpoint in shards only the files that hold
                them are opened, or fetched from the hub. None: all.
        """
        from spunge.weights.checkpoint import SINGLE, Checkpoint, shard_names

        directory = self.directory(weights=wanted is None)
        shards = shard_names(directory)
        if wanted is None or shards is None:
            files = [SINGLE] if shards is None else sorted(set(shards.values()))
        else:
            files = sorted({shards[name] for name in wanted(shards.keys())})
        if wanted is not None and self._local() is None and self._fetched(files) != directory:
            raise ModelError(f"{self.id}: it changed on the hub meanwhile; name a revision")
        return Checkpoint.open(directory, files)

    def stored_names(self) -> Collection[str] | None:
        """Returns the names of the checkpoint's tensors, without a weight; None where only the hub's weights tell."""
        from spunge.weights.checkpoint import SINGLE, shard_names
        from spunge.weights.safetensors_files import read_header

        directory = self.directory(weights=False)
        if (listed := shard_names(directory)) is not None:
            return listed.keys()
        return read_header(directory / SINGLE).keys() if (directory / SINGLE).exists() else None

    def fingerprint(self) -> dict[str, str]:
        """Returns `fingerprint` with that of the weights; nothing for a model on the hub, which may be here in part."""
        return {} if self._local() is None else {"fingerprint": self.checkpoint().fingerprint()}

    def _local(self) -> Path | None:
        """Returns the directory that the id names, or None for a hub id."""
        path = locate(self.id)
        if path.is_dir():
            refuse_special(*path.iterdir())
            return path
        if path.is_file() and path.suffix.lower() == ".gguf":
            raise ModelError(f"{self.id}: a GGUF file: run `spunge import {self.id}` once, and name what it writes")
        if is_local(self.id):
            kind = "a file, and a model is a directory" if path.exists() else "no such model directory"
            raise ModelError(f"{self.id}: {kind}")
        return None

    def _fetched(self, files: Sequence[str]) -> Path:
        """Returns the hub's snapshot with at least the files of these names or patterns."""
        import huggingface_hub

        try:
            return Path(huggingface_hub.snapshot_download(self.id, revision=self.revision, allow_patterns=list(files)))
        except Exception as error:  # the hub client raises many kinds, none of which a user can tell apart
            refused = hub_refusal(error, self.id)
            raise ModelError(f"{self.id}: neither a local directory nor to be had from the hub: {refused}") from error

    def digest(self, *, weights: bool = True) -> str:
        """The sha256 over the weights, the configuration and the tokenizer, by file name; fetches no weights.

        Args:
            weights: Whether those of a local model must be there; a plan can do without.

        Raises:
            ModelError: They are not.
            ArtifactError: It is a model of ours, and damaged.
        """
        directory = self.directory(weights=False)
        known = self._hub_digests() if self._local() is None else None
        if known is not None and not known:
            raise ModelError(
                f"{self.id}: the hub has no safetensors weights of it, and pickles are not read: name a revision that "
                "has them (a conversion is often refs/pr/1); or, where you trust it, load it with transformers, "
                "save_pretrained it to a directory, and name that"
            )
        if known is None and weights:
            self.checkpoint()  # all shards must be there
            self.verify()
        hashes = known or {}
        for file in directory.iterdir():
            if file.name not in hashes and seal.is_sealed(file):
                hashes[file.name] = content_of(file)
        return hashlib.sha256("".join(f"{name}:{hashes[name]}\n" for name in sorted(hashes)).encode()).hexdigest()

    def verify(self, *, weights: bool = True) -> None:
        """Makes sure that a model directory of ours is what was written; of others' nothing is known.

        Args:
            weights: Whether those too, not configuration and tokenizer alone.

        Raises:
            ArtifactError: A file is damaged.
        """
        if (directory := self._local()) is not None:
            seal.verify(directory, weights=weights)

    def _hub_digests(self) -> dict[str, str] | None:
        """Returns the sha256 of every file of weights as the hub has it; None where it cannot be asked."""
        import huggingface_hub

        try:
            info = huggingface_hub.HfApi().model_info(self.id, revision=self.revision, files_metadata=True)
        except Exception:  # many kinds, none OSError for certain; the files themselves, if here, answer as well
            return None
        return {
            file.rfilename: file.lfs.sha256
            for file in info.siblings or ()
            if file.lfs is not None and file.rfilename.endswith(".safetensors") and "/" not in file.rfilename
        }

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

        no_bars()
        self.verify()
        directory = self.checkpoint().directory
        wanted = dtype or self.dtype
        with as_model_error(f"{self.id}: cannot be loaded as a causal language model"):
            model = self._auto_class(self.config()).from_pretrained(
                directory,
                dtype=wanted if wanted == "auto" else getattr(torch, wanted),
                use_safetensors=True,
                trust_remote_code=self.trust_remote_code,
                local_files_only=True,
                **options,
            )
        return model.to(torch.device(device)).eval()  # pyright: ignore[reportArgumentType]

    def config(self) -> PreTrainedConfig:
        """Reads the model's configuration.

        Raises:
            ModelError: There is none, or none that transformers can read.
            ArtifactError: It is a model of ours, and damaged.
        """
        from transformers import AutoConfig

        directory = self.directory(weights=False)
        if not (directory / "config.json").exists():
            told = next(
                (told for name, told in _NO_MODELS.items() if (directory / name).exists()), "no config.json in it"
            )
            raise ModelError(f"{self.id}: {told}: a model is a directory of config.json, safetensors and tokenizer")
        self.verify(weights=False)
        with as_model_error(f"{self.id}: no configuration that can be read"):
            _refuse_many_layers(directory)
            return AutoConfig.from_pretrained(
                directory, local_files_only=True, trust_remote_code=self.trust_remote_code
            )

    def outline(self) -> PreTrainedModel:
        """Builds the model from its configuration, without memory for its weights: its layers and their names.

        Raises:
            ModelError: The configuration is not of a causal language model that transformers can build.
        """
        import torch

        config = self.config()
        with as_model_error(f"{self.id}: cannot be built as a causal language model"), torch.device("meta"):
            return self._auto_class(config).from_config(config, trust_remote_code=self.trust_remote_code)

    def _auto_class(self, config: PreTrainedConfig) -> Any:
        """Returns the class of transformers that builds the model: with what sees beside the text, where it has that.

        Raises:
            ModelError: It has an encoder of text, whose part in what the decoder knows is nobody's to say.
        """
        from transformers import (
            MODEL_FOR_CAUSAL_LM_MAPPING,
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
        )

        if config.is_encoder_decoder:
            raise ModelError(
                f"{self.id}: {config.model_type} is an encoder with a decoder, and Spunge unlearns decoders alone: "
                "choose one"
            )
        sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
        return AutoModelForImageTextToText if sees else AutoModelForCausalLM

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer; a pad token that is missing, or has no row in the embeddings, becomes one that has.

        Pads are masked wherever they stand, so which token they are moves no result; but it must be one that the model
        has a row for, which the pad token of a vocabulary that was extended later need not be.

        Raises:
            ModelError: The directory holds no tokenizer.
            ArtifactError: It is a model of ours, and damaged.
        """
        from transformers import AutoTokenizer

        self.verify(weights=False)
        with as_model_error(f"{self.id}: no tokenizer that can be loaded"):
            tokenizer = AutoTokenizer.from_pretrained(
                self.directory(weights=False), trust_remote_code=self.trust_remote_code, local_files_only=True
            )
            tokenizer("a word")  # what its files say of lengths and sides is believed only when it is used
        rows = getattr(self.config().get_text_config(), "vocab_size", None) or len(tokenizer)
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0)
        pad = next(id for id in ids if isinstance(id, int) and id < rows)
        if pad != tokenizer.pad_token_id:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
        return tokenizer


def _refuse_many_layers(directory: Path) -> None:
    """Refuses a configuration whose layers would take hours to build, weights or not, so that a lie is no hang."""
    file = directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    parts = [config, *config.values()] if isinstance(config, dict) else []
    for part in parts:
        for name, value in part.items() if isinstance(part, dict) else ():
            if "layer" in name and isinstance(value, int) and value > _MOST_LAYERS:
                raise ModelError(f"{file}: {name} is {value}: no model has so many")


def check_code_is_pinned(id: str, revision: str | None, trust_remote_code: bool) -> None:
    """The one rule for code that comes with a model, a judge or a classifier: the user says so, and which they read.

    Raises:
        ValueError: A recipe's code may not run; or it is the hub's, in whatever revision the hub has.
    """
    if trust_remote_code:
        outside.refuse_code(f"trust_remote_code: the code of {id}")
    if trust_remote_code and revision is None and not locate(id).is_dir():
        raise ValueError("trust_remote_code: say which revision of the code you have read, as `revision`")


def no_bars() -> None:
    """Keeps transformers from drawing a bar for every model it reads or writes; downloads have their own."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def language_parameters(model: PreTrainedModel) -> frozenset[str]:
    """Returns the names of the parameters that read and write text: of a model that sees or hears too, not all."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if model.config.get_text_config() is model.config:
        return frozenset(names)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    parts = [f"{name}." for name, module in model.named_modules() if module is decoder or module is head]
    return frozenset(name for name in names if name.startswith(tuple(parts)))


def linear_names(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """Maps a checkpoint's names of the weights of linear layers to the model's own, which are what PEFT looks for.

    Without those that PEFT, on loading, would take for experts that older versions of transformers kept apart: the
    factors of a shared expert's `gate_proj` would end nowhere.
    """
    import torch
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    from spunge.weights.conversion import ParameterNames

    linear = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) or _is_conv1d(layer)]
    config = LoraConfig(target_modules=linear)
    convert_peft_config_for_transformers(config, model, None)
    known = set(config.target_modules or ())
    return {
        theirs: ours
        for ours, theirs in ParameterNames(model, stored).renamed.items()
        if ours.removesuffix(".weight") in known and ours.endswith(".weight")
    }


def _is_conv1d(layer: torch.nn.Module) -> bool:
    return type(layer).__name__ == "Conv1D"


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
        # One at a time, the old one let go of first: two of the size that just fits would not.
        if self._base is None or self._base[0] != handle:
            self.close()
            self._base = (handle, handle.load(device=self.device, dtype=self.dtype), handle.load_tokenizer())
        return self._base[1:]

    def other(self, handle: LanguageModel) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Returns a model beside the base, such as a judge, and its tokenizer; both stay loaded."""
        return self.cached(
            ("model", handle.model_dump_json()), lambda: (handle.load(device=self.device), handle.load_tokenizer())
        )

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
        if task_vector is None:
            yield self.base(handle)[0]
            return
        with self.scaled(handle, task_vector) as at:
            yield at(1.0)

    @contextmanager
    def scaled(self, handle: LanguageModel, task_vector: TaskVector) -> Iterator[Callable[[float], PreTrainedModel]]:
        """Yields what adds a task vector times a λ to the resident base; afterwards the base is restored.

        From one λ to the next the base is not restored between, since every weight that changes is written anew.
        """
        import torch

        model, _ = self.base(handle)
        checkpoint = handle.checkpoint()
        for name in task_vector:
            checkpoint.check(name, task_vector.shape(name))
        names = self.names(handle)
        values = model.state_dict(keep_vars=True)

        def fill(read: Callable[[str], torch.Tensor]) -> None:
            with torch.no_grad():
                for name, value in names.load(task_vector, read):
                    values[name].copy_(value)

        def at(scale: float) -> PreTrainedModel:
            vector = task_vector if scale == 1 else task_vector.scaled(scale)
            fill(lambda name: checkpoint.changed(vector, name) if name in vector else checkpoint.read(name))
            task_vector.verify()
            return model

        try:
            yield at
        # From the files, never by subtracting: (w + δ) − δ is not w in floating point, and every variant would leave a
        # trace.
        finally:
            fill(checkpoint.read)

    def names(self, handle: LanguageModel) -> ParameterNames:
        """Returns what the checkpoint's tensors are called in the resident base."""
        from spunge.weights.conversion import ParameterNames

        model, _ = self.base(handle)
        return self.cached(("names", handle), lambda: ParameterNames(model, handle.checkpoint().tensors))

    def close(self) -> None:
        """Lets go of the model and everything cached."""
        self._base = None
        self._cache.clear()
