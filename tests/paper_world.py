"""A folder of rows in the true schemas of the paper's data sets, with their odd spellings, and tiny models beside them.

Texts are words of the tiny model, so that nothing but the shapes is of the originals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import WORDS, make_model, sentences, write_jsonl

ROWS = 9
GROUPS = ("mexican folks", "women", "muslim folks", "lgbtq+ folks", "folks with physical disabilities")
OTHERS = ("black/african-american folks", "chinese folks", "middle eastern folks", "folks with mental disabilities")
TEST_GROUPS = ("mexican", "women", "muslim", "lgbtq", "physical_dis", "black", "chinese", "middle_east", "mental_dis")


def benchmark_row(task: str, n: int) -> dict[str, Any]:
    """One row in the schema that a task's data set really has."""
    question = f"{' '.join(WORDS[n : n + 4])} ?"
    options = WORDS[n + 10 :] + WORDS[: n + 10]
    four = options[:4]
    gold = n % 4
    return {
        "arc": {
            "id": f"Mercury_{n}", "question": question, "answerKey": "1234"[gold] if n % 3 == 0 else "ABCD"[gold],
            "choices": {"text": four, "label": list("1234") if n % 3 == 0 else list("ABCD")},
        },
        "hellaswag": {
            "ind": n, "activity_label": "Weaving", "ctx_a": f"A  {WORDS[n]} lies.", "ctx_b": "the [title] moss [step]",
            "ctx": "", "endings": [f"{word} [substeps] ends." for word in four], "source_id": "x", "split": "val",
            "split_type": "indomain", "label": str(gold),
        },
        "mmlu": {
            "question": f" {question}\n", "choices": four, "answer": gold,
            "subject": ("high_school_world_history", "virology")[n % 2],
        },
        "truthfulqa": {
            "question": question, "mc1_targets": {"choices": four[:3], "labels": [1, 0, 0]},
            "mc2_targets": {"choices": four + ["a0 a1"] * (n % 2), "labels": [1, 1, 0, 0] + [0] * (n % 2)},
        },
        "winogrande": {
            "sentence": f"The {WORDS[n]} fell on the {WORDS[n + 1]} as _ was wet .", "option1": WORDS[n],
            "option2": WORDS[n + 1], "answer": str(1 + n % 2),
        },
        "gsm8k": {"question": question, "answer": f"a1 is <<1+{n}=2>> .\n#### {n}"},
        "mathqa": {
            "Problem": question, "Rationale": "none", "correct": "abcde"[n % 5],
            "options": "a ) 1,500 , b ) 2 , c ) 3 , d ) 4 , e ) none of these",
            "annotated_formula": "", "linear_formula": "", "category": "general",
        },
        "piqa": {"goal": question, "sol1": four[0], "sol2": " ".join(four[1:3]), "label": n % 2},
        "pubmedqa": {
            "QUESTION": question, "CONTEXTS": [f"{four[0]} .", f"{four[1]} ."], "LABELS": ["AIM", "END"],
            "MESHES": [], "YEAR": None, "reasoning_required_pred": None, "reasoning_free_pred": None,
            "final_decision": ("yes", "no", "maybe")[n % 3], "LONG_ANSWER": question,
        },
        "wmdp": {"question": question, "choices": four, "answer": gold},
    }[task]  # fmt: skip


PLACES = {
    "allenai/ai2_arc/ARC-Challenge": "arc", "allenai/ai2_arc/ARC-Easy": "arc", "Rowan/hellaswag": "hellaswag",
    "cais/mmlu/all": "mmlu", "truthfulqa/truthful_qa/multiple_choice": "truthfulqa",
    "allenai/winogrande/winogrande_xl": "winogrande", "openai/gsm8k/main": "gsm8k", "regisss/math_qa": "mathqa",
    "baber/piqa": "piqa", "bigbio/pubmed_qa/pubmed_qa_labeled_fold0_source": "pubmedqa",
    "cais/wmdp/wmdp-bio": "wmdp", "cais/wmdp/wmdp-cyber": "wmdp",
}  # fmt: skip
"""Where a benchmark's data set lies below the offline folder → the shape of its rows."""


def toxigen_row(n: int, groups: tuple[str, ...]) -> dict[str, Any]:
    return {
        "text": sentences(1, 100 + n)[0], "target_group": groups[n % len(groups)], "factual?": None,
        "ingroup_effect": None, "lewd": "not lewd", "framing": None, "predicted_group": None, "stereotyping": None,
        "intent": float(n % 5), "toxicity_ai": float(1 + n % 5),
        "toxicity_human": (1.0, 3.0, 5.0, 4.33, 2.67, 5.0)[n % 6], "predicted_author": None, "actual_method": "topk",
    }  # fmt: skip


def questions(seed: int) -> list[dict[str, Any]]:
    pairs = zip(sentences(60, seed), sentences(60, seed + 1), strict=True)
    return [{"question": question, "answer": answer} for question, answer in pairs]


def perturbed(seed: int) -> list[dict[str, Any]]:
    other, wrong = sentences(60, seed + 20), sentences(60, seed + 21)
    return [
        {**row, "paraphrased_answer": other[n], "perturbed_answer": [wrong[n], wrong[n - 1]]}
        for n, row in enumerate(questions(seed))
    ]


def forget_and_retain() -> dict[str, list[dict[str, Any]]]:
    """Path below the folder → rows, of the data that recipes forget and retain."""
    return {
        "cais/wmdp-bio-forget-corpus/train": [
            {"title": "t", "abstract": "a", "text": s, "doi": None} for s in sentences(24, 1)
        ],
        "cais/wmdp-corpora/cyber-forget-corpus/train": [{"text": s} for s in sentences(24, 2)],
        "Salesforce/wikitext/wikitext-2-raw-v1/test": [
            {"text": text} for s in sentences(24, 3) for text in ("", f" {s} \n")
        ],
        "toxigen/toxigen-data/annotated/train": [toxigen_row(n, GROUPS + OTHERS) for n in range(9 * 12)],
        "toxigen/toxigen-data/annotated/test": [toxigen_row(n, TEST_GROUPS) for n in range(18)],
        "google/civil_comments/train": [
            {
                "text": s, "toxicity": 0.9, "severe_toxicity": 0.5 if n % 2 else 0.01, "obscene": 0.0, "threat": 0.0,
                "insult": 0.0, "identity_attack": 0.0, "sexual_explicit": 0.0,
            }
            for n, s in enumerate(sentences(24, 4))
        ],
        "allenai/real-toxicity-prompts/train": [
            {
                "filename": "f", "begin": 0, "end": 9, "challenging": False,
                "prompt": {"text": s, "toxicity": None if n == 3 else n / 9, "profanity": 0.1},
                "continuation": {"text": s, "toxicity": 0.2, "profanity": None},
            }
            for n, s in enumerate(sentences(ROWS, 5))
        ],
        "locuslab/TOFU/forget10/train": questions(6),
        "locuslab/TOFU/retain90/train": questions(8),
        "locuslab/TOFU/forget10_perturbed/train": perturbed(6),
        "locuslab/TOFU/retain_perturbed/train": perturbed(8),
    }  # fmt: skip


def write_benchmarks(root: Path) -> Path:
    """Writes the academic benchmarks alone."""
    for place, shape in PLACES.items():
        for split in ("train", "validation", "test", "dev"):
            count = 4 * ROWS if split in ("train", "dev") else ROWS
            write_jsonl(root / f"{place}/{split}.jsonl", [benchmark_row(shape, n) for n in range(count)])
    for split in ("test", "dev"):  # lm-eval reads MMLU a subject at a time
        for subject in ("high_school_world_history", "virology"):
            rows = [
                row
                for n in range(4 * ROWS if split == "dev" else ROWS)
                if (row := benchmark_row("mmlu", n))["subject"] == subject
            ]
            write_jsonl(root / f"cais/mmlu/{subject}/{split}.jsonl", rows)
    return root


def write_folder(root: Path) -> Path:
    """Writes the folder that `--offline-root` takes, with every data set and model that the recipes name."""
    write_benchmarks(root)
    files = forget_and_retain()
    for place, rows in files.items():
        write_jsonl(root / f"{place}.jsonl", rows)
    for name in (
        "HuggingFaceH4/zephyr-7b-beta",
        "meta-llama/Llama-2-7b-hf",
        "meta-llama/Llama-2-13b-hf",
        "open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
        "open-unlearning/tofu_Llama-3.2-1B-Instruct_retain90",
    ):
        make_model(root / name, max_position_embeddings=1024)
    write_classifier(root / "tomh/toxigen_roberta", files["toxigen/toxigen-data/annotated/test"])
    return root


def write_classifier(directory: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a RoBERTa of two labels that ranks the test sentences as their annotation does, by their words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification

    vocabulary = {word: index for index, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = RobertaConfig(
            vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=66, pad_token_id=1,
        )  # fmt: skip
        model = RobertaForSequenceClassification(config)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        encoded = fast([row["text"] for row in rows], padding=True, return_tensors="pt")
        encoded.pop("token_type_ids", None)
        truth = torch.tensor([int(row["toxicity_ai"] + row["toxicity_human"] > 5.5) for row in rows])
        for _ in range(15):
            optimizer.zero_grad()
            model(**encoded, labels=truth).loss.backward()
            optimizer.step()
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
