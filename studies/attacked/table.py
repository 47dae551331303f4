"""Notes what attacks brought back in runs and audits, and writes the tables of docs/robustness.md from the notes.

python studies/attacked/table.py note RUN results/NAME.json    # of a run's or an audit's results.json
python studies/attacked/table.py table results/A.json results/B.json …
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BESIDE = ("base", "oracle")
"""The models that forgot nothing, and that never knew."""
LABELS = {"joint": "joint", "spunge": "merged", "merged": "merged"}
SHARES = ("recovered", "recovered_low", "recovered_high")
LEFT = ("left", "left_low", "left_high")


def noted(run: Path) -> dict[str, Any]:
    """What a run's results say of attacks on the base, the joint and the merged model, overall and by value."""
    results = json.loads((run / "report" / "results.json").read_text(encoding="utf-8"))
    attacks = [
        {key: row[key] for key in ("suite", "setting", "attribute_value", "variant", "n", "kept", "base", "unlearned",
                                   "attacked", *SHARES)}
        for row in results["attacks"] if row["variant"] in (*BESIDE, *LABELS)
    ]  # fmt: skip
    membership = [
        {key: row[key] for key in ("suite", "score", "attribute_value", "variant", "members", "outsiders", "auc",
                                   "auc_low", "auc_high", "tpr", "tpr_low", "tpr_high", *LEFT)}
        for row in results["membership"] if row["variant"] in (*BESIDE, *LABELS)
    ]  # fmt: skip
    scores = [
        {key: row[key] for key in ("suite", "variant", "metric", "value", "low", "high", "n")}
        for row in results["scores"]
        if row["attribute"] is None and row["metric"] in ("acc", "perplexity")
        and row["variant"] in (*BESIDE, *LABELS) and ": " not in row["suite"]
        and row["seed"] == (None if len(results["provenance"]["seeds"]) > 1 else 0)
    ]  # fmt: skip
    return _rounded({
        "method": results["provenance"]["method"], "seeds": results["provenance"]["seeds"], "scores": scores,
        "attacks": attacks, "membership": membership,
    })  # fmt: skip


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def written(note: dict[str, Any]) -> Iterator[str]:
    """A note as JSON, a row a line."""
    parts = [f"{json.dumps(key)}: {json.dumps(part)}" for key, part in note.items() if key in ("method", "seeds")]
    for key in ("scores", "attacks", "membership"):
        rows = ",\n  ".join(map(json.dumps, note[key]))
        parts.append(f"{json.dumps(key)}: [\n  {rows}\n ]" if rows else f"{json.dumps(key)}: []")
    yield "{\n " + ",\n ".join(parts) + "\n}\n"


def table(notes: Sequence[dict[str, Any]], value: str | None = None) -> list[str]:
    """A Markdown table: a row an attack and setting, a column a method and variant."""
    columns = [(note, variant) for note in notes for variant in LABELS if _has(note, variant)]
    heads = [f"{str(note['method'] or '').replace('_', ' ')} {LABELS[variant]}".strip() for note, variant in columns]
    first = notes[0]
    beside = [name for name in BESIDE if _has(first, name)]
    lines = [f"| attack | {' | '.join((*beside, *heads))} |", "|---" * (1 + len(beside) + len(columns)) + "|"]
    if "oracle" in beside:
        lines.append(_plainly(notes, columns, value))
    for row in first["attacks"]:
        if row["variant"] != "base" or row["attribute_value"] != value:
            continue
        name = f"{row['suite'].partition(': ')[2].replace('_', ' ')}, {row['setting']}"
        levels = " | ".join(_level(first, row, variant, "attacked") for variant in beside)
        cells = [
            _cell(next((one for one in note["attacks"] if _same(one, row, variant, "setting")), None), SHARES)
            for note, variant in columns
        ]
        lines.append(f"| {name} | {levels} | " + " | ".join(cells) + " |")
    for row in first["membership"]:
        if row["variant"] != "base" or row["attribute_value"] != value:
            continue
        cells = [
            _cell(next((one for one in note["membership"] if _same(one, row, variant, "score")), None), LEFT)
            for note, variant in columns
        ]
        areas = [
            f"AUC {100 * one['auc']:.0f}"
            for variant in beside for one in first["membership"] if _same(one, row, variant, "score")
        ]  # fmt: skip
        name = f"membership, {row['score'].replace('_', ' ')}"
        lines.append(f"| {name} | {' | '.join(areas)} | " + " | ".join(cells) + " |")
    return lines


def _plainly(notes: Sequence[dict[str, Any]], columns: Sequence[tuple[dict[str, Any], str]], value: str | None) -> str:
    """The row of no attack: what is left above the oracle, which a recovery holds too."""

    def row(note: dict[str, Any], variant: str) -> dict[str, Any]:
        rows = (one for one in note["attacks"] if (one["variant"], one["attribute_value"]) == (variant, value))
        return next(one for one in rows if one["n"] == max(each["n"] for each in note["attacks"]) or value is not None)

    levels = [_level(notes[0], row(notes[0], name), name, "unlearned") for name in BESIDE]
    left = []
    for note, variant in columns:
        base, never, mine = (row(note, name)["unlearned"] for name in (*BESIDE, variant))
        left.append(f"{round(100 * (mine - never) / (base - never))}".replace("-", "−"))
    return f"| none | {' | '.join(levels)} | {' | '.join(left)} |"


def _level(note: dict[str, Any], row: dict[str, Any], variant: str, what: str) -> str:
    """What a model scores, in per cent where it is a share."""
    level = next(one[what] for one in note["attacks"] if _same(one, row, variant, "setting"))
    return f"{level if level > 1 else 100 * level:.0f}"


def _has(note: dict[str, Any], variant: str) -> bool:
    return any(row["variant"] == variant for row in note["attacks"])


def _same(one: dict[str, Any], row: dict[str, Any], variant: str, what: str) -> bool:
    keys = ("suite", "attribute_value", what)
    return one["variant"] == variant and all(one[key] == row[key] for key in keys)


def _cell(row: dict[str, Any] | None, names: Sequence[str]) -> str:
    if row is None or row[names[0]] is None:
        return "—"
    value, low, high = (f"{round(100 * row[name])}".replace("-", "−") for name in names)
    return f"{value} [{low}, {high}]"


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    note = commands.add_parser("note")
    note.add_argument("run", type=Path)
    note.add_argument("out", type=Path)
    show = commands.add_parser("table")
    show.add_argument("notes", type=Path, nargs="+")
    show.add_argument("--value", help="of the attribute; left out: overall")
    arguments = parser.parse_args()
    if arguments.command == "note":
        arguments.out.write_text("".join(written(noted(arguments.run))), encoding="utf-8")
    else:
        notes = [json.loads(file.read_text(encoding="utf-8")) for file in arguments.notes]
        print("\n".join(table(notes, arguments.value)))


if __name__ == "__main__":
    main()
