"""What a reader sees first beside the verdict: what was done to what, and what there is to trust it by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML, YAMLError

from spunge.report import damage
from spunge.report.findings import Findings
from spunge.report.points import BAD, GOOD, UNSURE
from spunge.report.tables import METHODS
from spunge.variants import RIVALS, ROLES


@dataclass(frozen=True)
class Fact:
    """One thing to trust a verdict by, or not to."""

    name: str
    text: str
    status: str = GOOD


def setting(findings: Findings) -> str:
    """Returns in a sentence what was done to what: method, model, data, rows and what was asked."""
    if findings.runs:
        return f"{len(findings.runs)} runs, on the items that all of them were asked."
    if findings.audited:
        models = ", ".join(findings.audited)
        return f"An audit of {models}, beside the base model {findings.results['provenance']['model']['id']}."
    results = findings.results
    recipe, split = read_recipe(results["provenance"]["recipe"]), results["split"]
    method = str(results["provenance"]["method"] or "unlearning")
    rows = f"{split['rows']:,} rows" if split["rows"] else "the forget set"
    data = ", ".join(_sources(recipe, "forget"))
    parts = [f"{METHODS.get(method, method.replace('_', ' '))} on {results['provenance']['model']['id']}"]
    parts.append(f"{rows}{f' of {data}' if data else ''} must go")
    if split["subsets"]:
        parts.append(f"split by {split['attribute']} into {len(split['subsets'])}, unlearned apart")
    merge = recipe.get("merge")
    if isinstance(merge, Mapping) and merge.get("method"):
        parts.append(f"merged by {str(merge['method']).upper()}")
    return "; ".join(parts) + "."


def trust(findings: Findings) -> list[Fact]:
    """Returns the strip of trust: seeds, items, controls, damage, data seen in training, warnings."""
    provenance = findings.results["provenance"]
    seeds, warnings = len(provenance["seeds"]), len(provenance["warnings"])
    facts = [Fact("Seeds", str(seeds), GOOD if seeds > 2 else UNSURE), _items(findings)]
    if not (findings.runs or findings.audited):
        facts += [_controls(findings), _damage(findings)]
    overlaps = {suite: counts for suite, counts in provenance.get("seen", {}).items() if counts[0]}
    seen = ", ".join(f"{few} of {all_items} on {suite}" for suite, (few, all_items) in overlaps.items())
    facts.append(Fact("Items seen in training", seen or "none noticed", BAD if overlaps else GOOD))
    facts.append(Fact("Warnings", str(warnings) if warnings else "none", UNSURE if warnings else GOOD))
    return facts


def _items(findings: Findings) -> Fact:
    counts = [score.n for column in findings.columns for name in findings.main_variants[:1]
              if (score := findings.score(name, column))]  # fmt: skip
    if not counts:
        return Fact("Items", "none", BAD)
    few, many = min(counts), max(counts)
    return Fact("Items a suite", f"{few:,}" if few == many else f"{few:,} to {many:,}", GOOD if few >= 100 else UNSURE)


def _controls(findings: Findings) -> Fact:
    brief = {rival: ROLES[rival].brief or ROLES[rival].label for rival in RIVALS}
    run = [brief[rival] for rival in RIVALS if rival in findings.main_variants and rival not in findings.twins]
    left = [brief[rival] for rival in RIVALS if rival not in findings.main_variants]
    text = "; ".join([
        ", ".join(run) or "none",
        *(f"{brief[later]} is the same model as {brief[earlier]}" for later, earlier in findings.twins.items()),
        *([f"not run: {', '.join(left)}"] if left else []),
    ])  # fmt: skip
    return Fact("Controls", text, GOOD if len(run) > 1 else UNSURE)


def _damage(findings: Findings) -> Fact:
    if findings.damage is None:
        return Fact("Same damage to the rest", "not measured", UNSURE)
    spent = damage.by_variant(findings)
    reached = all(one.status == "matched" for one in spent)
    text = f"{damage.budget(findings)}{'' if reached else ', not by all'}"
    return Fact("Same damage to the rest", text, GOOD if reached and spent else UNSURE)


def read_recipe(text: str) -> Mapping[str, Any]:
    """Returns a recipe as plain values; empty where there is none to read."""
    try:
        recipe = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return {}
    return recipe if isinstance(recipe, Mapping) else {}


def _sources(recipe: Mapping[str, Any], name: str) -> list[str]:
    section = recipe.get(name)
    sources = section.get("sources") if isinstance(section, Mapping) else None
    paths = [source.get("path") for source in sources or [] if isinstance(source, Mapping)]
    return [str(path).rsplit("/", 1)[-1] for path in paths if path]
