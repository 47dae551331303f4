"""What can be done with which architecture: tiny random models of each are taken through everything, cell by cell.

    python benchmarks/models.py table [--only llama,olmoe] [--real DIR …]     # docs/models.md holds its output

DIR are models in float32, as `benchmarks/real_models.py` fetches them.

A cell is `yes`, `refused` with the line that a user would read, or `NO` with what went wrong. The last is a fault.
"""

from __future__ import annotations

import argparse
import gc
import json
import string
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from spunge import merging
from spunge.errors import SpungeError
from spunge.interfaces import Work, scale_of
from spunge.mergers import Ties
from spunge.rows.sources import Corpus
from spunge.training.tuned import linear_modules
from spunge.unlearners import NPO, RMU, TaskVectorNegation
from spunge.weights import adapter
from spunge.weights.checkpoint import Checkpoint, export
from spunge.weights.language_model import LanguageModel, Resident, linear_names
from spunge.weights.task_vector import TaskVector

LETTERS = [*string.ascii_lowercase, *string.ascii_uppercase[:20], "Ġ", *string.digits, *".,!"]
VOCABULARY = ["<pad>", "<bos>", "<eos>", "<unk>", *LETTERS]

TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
MIXTURE = {**TEXT, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHARED = {**MIXTURE, "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1}
DEEPSEEK = {
    **TEXT, "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "kv_lora_rank": 8,
    "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "head_dim": 4,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}  # fmt: skip
GPT = {"vocab_size": 64, "n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
       "eos_token_id": 2}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip
QWEN_VISION = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}


@dataclass(frozen=True)
class Architecture:
    """One row of the table."""

    kind: str
    """What it is an example of."""
    settings: Mapping[str, Any]
    """Of its configuration."""
    model_type: str = ""
    """What transformers calls it, where that is not its name in the table."""


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("dense", TEXT),
    "llama, tied": Architecture("tied", {**TEXT, "tie_word_embeddings": True}, "llama"),
    "llama, pad beyond rows": Architecture("pad beyond rows", {**TEXT, "pad_token_id": None}, "llama"),
    "mistral": Architecture("dense", {**TEXT, "sliding_window": 8}),
    "ministral": Architecture("dense", {**TEXT, "sliding_window": 8, "layer_types": None}),
    "qwen2": Architecture("dense", TEXT),
    "qwen3": Architecture("dense", TEXT),
    "gemma": Architecture("tied", TEXT),
    "gemma2": Architecture("tied", {**TEXT, "sliding_window": 8}),
    "gemma3_text": Architecture("tied", {**TEXT, "sliding_window": 8}),
    "phi": Architecture("dense", TEXT),
    "phi3": Architecture("dense", TEXT),
    "olmo2": Architecture("dense", TEXT),
    "olmo3": Architecture("dense", {**TEXT, "sliding_window": 8}),
    "granite": Architecture("dense", TEXT),
    "smollm3": Architecture("tied", TEXT),
    "glm4": Architecture("dense", TEXT),
    "cohere2": Architecture("tied", {**TEXT, "sliding_window": 8}),
    "starcoder2": Architecture("dense", TEXT),
    "stablelm": Architecture("dense", TEXT),
    "nemotron": Architecture("dense", TEXT),
    "exaone4": Architecture("dense", {**TEXT, "sliding_window": 8}),
    "gpt2": Architecture("tied", GPT),
    "gpt_neo": Architecture("tied", {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_layers": 3, "num_heads": 4,
        "attention_types": [[["global"], 3]], "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    }),
    "gpt_neox": Architecture("dense", TEXT),
    "gptj": Architecture("dense", {**GPT, "rotary_dim": 4}),
    "falcon": Architecture("tied", {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "bos_token_id": 1,
        "eos_token_id": 2,
    }),
    "opt": Architecture("tied", {**TEXT, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": Architecture("tied", {"vocab_size": 64, "hidden_size": 32, "n_layer": 3, "n_head": 4, "pad_token_id": 0,
                                   "bos_token_id": 1, "eos_token_id": 2}),
    "mpt": Architecture("tied", {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 64}),
    "olmoe": Architecture("experts", {**MIXTURE, "intermediate_size": 16}),
    "mixtral": Architecture("experts", MIXTURE),
    "phimoe": Architecture("experts", MIXTURE),
    "qwen2_moe": Architecture("experts", SHARED),
    "qwen3_moe": Architecture("experts", SHARED),
    "qwen3_next": Architecture("experts, hybrid", {**SHARED, **LINEAR}),
    "qwen3_5_moe_text": Architecture("experts, hybrid", {**SHARED, **LINEAR}),
    "deepseek_v2": Architecture("experts", {**DEEPSEEK, "topk_method": "greedy"}),
    "deepseek_v3": Architecture("experts", DEEPSEEK),
    "granitemoe": Architecture("experts", MIXTURE),
    "gpt_oss": Architecture("experts", {**MIXTURE, "sliding_window": 8}),
    "granitemoehybrid": Architecture("experts, hybrid", {
        **MIXTURE, **MAMBA, "shared_intermediate_size": 16, "layer_types": ["mamba", "mamba", "attention"],
    }),
    "bamba": Architecture("hybrid", {**TEXT, **MAMBA, "attn_layer_indices": [2]}),
    "falcon_h1": Architecture("hybrid", {**TEXT, **MAMBA, "mamba_d_ssm": 64}),
    "jamba": Architecture("hybrid", {**MIXTURE, "attn_layer_offset": 2, "attn_layer_period": 3,
                                     "use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4}),
    "lfm2": Architecture("hybrid", {**TEXT, "block_ff_dim": 48, "layer_types": ["conv", "conv", "full_attention"]}),
    "mamba": Architecture("recurrent", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4}),
    "gemma3": Architecture("multimodal", {
        "text_config": {**TEXT, "sliding_window": 8}, "vision_config": VISION, "mm_tokens_per_image": 4,
    }),
    "mistral3": Architecture("multimodal", {
        "text_config": {**TEXT, "model_type": "mistral"}, "vision_config": {**VISION, "model_type": "pixtral"},
        "image_token_index": 3,
    }),
    "llava": Architecture("multimodal", {
        "text_config": {**TEXT, "model_type": "llama"}, "vision_config": {**VISION, "model_type": "clip_vision_model"},
        "image_token_index": 3,
    }),
    "qwen2_vl": Architecture("multimodal", {
        "text_config": {**TEXT, **ROPE}, "vision_config": {**QWEN_VISION, "embed_dim": 32, "hidden_size": 32},
    }),
    "qwen2_5_vl": Architecture("multimodal", {
        "text_config": {**TEXT, **ROPE},
        "vision_config": {**QWEN_VISION, "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 32,
                          "fullatt_block_indexes": [1]},
    }),
    "t5": Architecture("encoder–decoder", {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2,
                                           "num_heads": 4, "decoder_start_token_id": 0}),
    "bart": Architecture("encoder–decoder", {
        "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    }),
}  # fmt: skip

CELLS = ("RMU", "TVN", "NPO", "evaluated", "exported", "adapter in", "adapter out", "merge of two")
IDS = torch.tensor([[1, *range(4, 18)], [1, *range(30, 44)]])
"""[2, 15], what every variant is asked: no token ends a text, and none is padding."""


class Wrong(Exception):
    """A cell's result is not what it should be, though nothing was raised."""


class Unreached(Exception):
    """A cell that needs what an earlier one refused."""


@dataclass
class Trial:
    """One model on its way through the cells."""

    base: LanguageModel
    folder: Path
    resident: Resident = field(default_factory=Resident)
    vectors: dict[str, TaskVector] = field(default_factory=dict)
    """What RMU, TVN and NPO gave, as far as they gave something."""
    layers: int = 2
    """RMU steers the output of the last of so many."""

    def work(self, name: str) -> Work:
        """Returns a place to work in."""
        output, scratch = (self.folder / f"{name}.{kind}" for kind in ("output", "scratch"))
        output.mkdir(parents=True)
        scratch.mkdir()
        return Work(self.resident, output, scratch, 0)


def texts(seed: int) -> Corpus:
    """Returns eight rows of ten letters."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(26, (8, 10), generator=generator).tolist()
    return Corpus(pl.DataFrame({"text": ["".join(LETTERS[letter] for letter in row) for row in rows]}))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Returns what a loaded model answers."""
    return model(input_ids=IDS, use_cache=False).logits.clone()


def rmu(trial: Trial) -> None:
    """Steers two layers."""
    method = RMU(layer=trial.layers - 1, alpha=1, steering_coefficient=5, learning_rate=1e-2, batch_size=2, max_steps=3)
    trial.vectors["RMU"] = method.unlearn(trial.base, texts(0), texts(1), trial.work("rmu"))


def tvn(trial: Trial) -> None:
    """Trains an adapter on all linear layers, and takes it away."""
    lora = {"rank": 2, "alpha": 4, "dropout": 0, "target_modules": "all-linear"}
    method = TaskVectorNegation.model_validate({"lora": lora, "learning_rate": 1e-2, "batch_size": 4, "max_steps": 3})
    trained = method.unlearn(trial.base, texts(0), None, trial.work("tvn"))
    trial.vectors["TVN"] = trained.scaled(scale_of(method))


def npo(trial: Trial) -> None:
    """Trains all weights."""
    method = NPO.model_validate({"lora": None, "learning_rate": 1e-3, "batch_size": 4, "max_steps": 3})
    trial.vectors["NPO"] = method.unlearn(trial.base, texts(0), texts(1), trial.work("npo"))


def evaluated(trial: Trial) -> None:
    """Puts every task vector into the loaded base and takes it out again."""
    if not trial.vectors:
        raise Unreached
    before = logits(trial.resident.base(trial.base)[0])
    for name, vector in trial.vectors.items():
        with trial.resident.variant(trial.base, vector) as model:
            if torch.equal(logits(model), before):
                raise Wrong(f"{name}: in memory it answers as the base does")
        if not torch.equal(logits(trial.resident.base(trial.base)[0]), before):
            raise Wrong(f"{name}: the base is not itself again")


def exported(trial: Trial) -> None:
    """Writes every variant as a checkpoint, and asks transformers to load it."""
    if not trial.vectors:
        raise Unreached
    source = Checkpoint.open(trial.base.directory())
    for name, vector in trial.vectors.items():
        out = export(source.directory, vector, trial.folder / f"exported.{name}")
        again = LanguageModel(id=str(out)).load()
        with trial.resident.variant(trial.base, vector) as model:
            if not torch.equal(logits(model), logits(again)):
                raise Wrong(f"{name}: what is exported answers other than what is in memory")
        written = Checkpoint.open(out)
        changed = [tensor for tensor in source.tensors if source.digest(tensor) != written.digest(tensor)]
        if stray := [tensor for tensor in changed if tensor not in vector]:
            raise Wrong(f"{name}: {stray[0]} changed, and should not have")


def adapter_in(trial: Trial) -> None:
    """Reads an adapter that PEFT made, and compares with what PEFT merges."""
    import peft

    base = trial.base.load(dtype="float32")
    head = base.get_output_embeddings()
    targets = [name for name, module in linear_modules(base).items() if module is not head]
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(1)
    tuned = peft.get_peft_model(base, config)
    tuned.save_pretrained(str(trial.folder / "adapter"))
    merged = logits(tuned.merge_and_unload())
    vector = adapter.read(trial.folder / "adapter", trial.base.checkpoint())
    before = logits(trial.resident.base(trial.base)[0])
    with trial.resident.variant(trial.base, vector) as model:
        close(logits(model), merged, before)


def adapter_out(trial: Trial) -> None:
    """Writes what TVN trained as an adapter, and has PEFT load it."""
    import peft

    if "TVN" not in trial.vectors:
        raise Unreached
    names = linear_names(trial.base.outline(), trial.base.checkpoint().tensors)
    out = adapter.save(trial.vectors["TVN"], trial.folder / "adapter out", base=trial.base.id, names=names)
    loaded = logits(peft.PeftModel.from_pretrained(trial.base.load(dtype="float32"), str(out)).eval())
    before = logits(trial.resident.base(trial.base)[0])
    with trial.resident.variant(trial.base, trial.vectors["TVN"]) as model:
        close(logits(model), loaded, before)


def merge_of_two(trial: Trial) -> None:
    """Merges two task vectors into a checkpoint, and asks transformers to load it."""
    two = dict(list(trial.vectors.items())[:2])
    if not two:
        raise Unreached
    checkpoint = trial.base.checkpoint()
    merging.write(Ties(density=0.5), two, trial.folder / "merged", base=checkpoint)
    merged = merging.merge(Ties(density=0.5), two, base=checkpoint).task_vector
    again = LanguageModel(id=str(trial.folder / "merged")).load()
    with trial.resident.variant(trial.base, merged) as model:
        if not torch.equal(logits(model), logits(again)):
            raise Wrong("what is written answers other than what is merged in memory")


STEPS: dict[str, Callable[[Trial], None]] = dict(
    zip(CELLS, (rmu, tvn, npo, evaluated, exported, adapter_in, adapter_out, merge_of_two), strict=True)
)


def close(ours: Tensor, theirs: Tensor, before: Tensor) -> None:
    """Refuses two answers that differ by more than a thousandth of what the change changes."""
    moved, apart = float((theirs - before).abs().max()), float((ours - theirs).abs().max())
    if not moved or apart > 1e-3 * moved:
        raise Wrong(f"differs from PEFT's by {apart:.1e}, where the change is {moved:.1e}")


def build(architecture: Architecture, name: str, directory: Path) -> None:
    """Saves a random model; its weights are large enough for every one of them to matter."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

    config = AutoConfig.for_model(architecture.model_type or name, **architecture.settings)
    torch.manual_seed(0)
    kinds = {"multimodal": AutoModelForImageTextToText, "encoder–decoder": AutoModelForSeq2SeqLM}
    model = kinds.get(architecture.kind, AutoModelForCausalLM).from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    model.save_pretrained(str(directory))
    words = tokenizer()
    if architecture.kind == "pad beyond rows":
        words.add_special_tokens({"pad_token": "<a new pad>"})
    words.save_pretrained(str(directory))


def tokenizer() -> Any:
    """Returns a tokenizer of sixty letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # Of bytes, as transformers' own classes for some of these architectures take no words.
    words = Tokenizer(models.BPE({letter: index for index, letter in enumerate(VOCABULARY)}, [], unk_token="<unk>"))
    setattr(words, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False))  # noqa: B010
    single = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    setattr(words, "post_processor", single)  # noqa: B010
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def cell(step: Callable[[Trial], None], trial: Trial) -> str:
    """Takes a model one step further, and says how it went."""
    try:
        step(trial)
    except SpungeError as refused:
        return f"refused: {str(refused).replace(str(trial.folder), '…').replace(trial.base.id, 'MODEL')}"
    except Unreached:
        return "–"
    except Wrong as wrong:
        return f"NO: {wrong}"
    except Exception as error:  # a traceback to a user, whatever it is
        return f"NO: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return "yes"


def row(name: str, directory: Path | None, layers: int) -> dict[str, str]:
    """Takes one model through all cells: one that is built, or one that is there."""
    with tempfile.TemporaryDirectory() as folder:
        if directory is None:
            directory = Path(folder) / "model"
            try:
                build(ARCHITECTURES[name], name, directory)
            except Exception as error:  # the table goes on without it
                return {"": f"NO: cannot be built: {type(error).__name__}: {str(error)[:200]}"}
        trial = Trial(LanguageModel(id=str(directory)), Path(folder) / "trial", layers=layers)
        return {title: cell(step, trial) for title, step in STEPS.items()}


def table(names: list[str], real: list[Path]) -> bool:
    """Prints the table in markdown, and whether every cell is as it should be."""
    rows = {}
    for name in names:
        rows[name, ARCHITECTURES[name].kind] = row(name, None, 2)
        print(f"{name}: {json.dumps(rows[name, ARCHITECTURES[name].kind], ensure_ascii=False)}", file=sys.stderr)
    for directory in real:
        if any(stored.dtype != torch.float32 for stored in Checkpoint.open(directory).tensors.values()):
            # Rounded weights are further from what PEFT merges in float32 than an adapter cell allows.
            sys.exit(
                f"{directory}: not in float32, in which alone a change can be compared with PEFT's to a thousandth"
            )
        rows[directory.name, "real"] = row(directory.name, directory, 4)
        gc.collect()
        print(f"{directory.name}: {rows[directory.name, 'real']}", file=sys.stderr)
    notes: dict[str, int] = {}

    def shown(value: str) -> str:
        verdict, _, reason = value.partition(": ")
        return f"{verdict} [{notes.setdefault(reason, len(notes) + 1)}]" if reason else verdict

    print(f"| architecture | kind | {' | '.join(CELLS)} |\n|{'---|' * (len(CELLS) + 2)}")
    for (name, kind), cells in rows.items():
        values = [shown(cells.get(title, next(iter(cells.values())))) for title in CELLS]
        print(f"| {' | '.join((name, kind, *values))} |")
    print()
    for reason, number in notes.items():
        print(f"{number}. {reason}")
    return not any(value.startswith("NO") for cells in rows.values() for value in cells.values())


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    tables = commands.add_parser("table", help="print the table")
    tables.add_argument("--only", default=",".join(ARCHITECTURES), help="architectures, by their names in the table")
    tables.add_argument("--real", type=Path, nargs="*", default=[], help="directories of real models")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    only = [name.strip() for name in arguments.only.split(";" if ";" in arguments.only else ",") if name.strip()]
    if arguments.only == ",".join(ARCHITECTURES):
        only = list(ARCHITECTURES)
    sys.exit(0 if table(only, arguments.real) else 1)


if __name__ == "__main__":
    main()
