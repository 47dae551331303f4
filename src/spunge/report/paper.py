"""The figures that the paper printed (its Tables 1 and 2), to stand beside a run of the same model and method."""

from __future__ import annotations

from spunge.report.findings import Column

TOXICITY, PERPLEXITY, AVERAGE = "ToxiGen toxicity", "ToxiGen PPL", "Average acc."
BIO, CYBER, MMLU = "WMDP-Bio", "WMDP-Cyber", "MMLU"

Figures = dict[str, dict[str, float]]


def _row(toxicity: float, perplexity: float, average: float) -> dict[str, float]:
    return {TOXICITY: toxicity, PERPLEXITY: perplexity, AVERAGE: average}


def _hazard(bio: float, cyber: float, mmlu: float) -> dict[str, float]:
    return {BIO: bio, CYBER: cyber, MMLU: mmlu}


_ZEPHYR, _LLAMA = _row(20.48, 7.62, 65.72), _row(15.95, 5.97, 56.29)

_PUBLISHED: dict[tuple[str, str], Figures] = {
    ("zephyr-7b-beta", "rmu"): {
        "base": _ZEPHYR | _hazard(63.55, 43.63, 58.15),
        "joint": _row(14.61, 8.05, 65.92) | _hazard(31.26, 27.62, 56.48),
        "spunge": _row(9.89, 8.03, 65.97) | _hazard(27.57, 26.47, 55.83),
    },
    ("zephyr-7b-beta", "task_vector_negation"): {
        "base": _ZEPHYR,
        "joint": _row(5.65, 8.36, 65.67),
        "spunge": _row(3.88, 8.66, 65.53),
    },
    ("llama-2-7b", "task_vector_negation"): {
        "base": _LLAMA,
        "joint": _row(4.26, 8.42, 56.35),
        "spunge": _row(2.96, 7.88, 55.72),
    },
}


def figures(model: str, method: str | None) -> Figures:
    """Returns variant → name → figure for a model and method of the paper; nothing for any other."""
    short = model.rstrip("/").rsplit("/", 1)[-1].lower().removesuffix("-hf")
    return _PUBLISHED.get((short, method or ""), {"base": {}})


def name_of(column: Column) -> str | None:
    """Returns the paper's name of a column, None if the paper has none such."""
    where = f"{column.suite} {column.task or ''}".lower()
    if "toxigen" in where:
        return {"toxic": TOXICITY, "perplexity": PERPLEXITY}.get(column.metric)
    if column.metric != "acc":
        return None
    if "wmdp" in where:
        return BIO if "bio" in where else CYBER if "cyber" in where else None
    return MMLU if "mmlu" in where else None
