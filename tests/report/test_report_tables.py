"""Tables, verdict, Markdown, model card and comparison of runs."""

import csv
import io
import json
import re

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from report_runs import HOSTILE, write_run
from ruamel.yaml import YAML

from spunge import report
from spunge.errors import ArtifactError
from spunge.report import paper, search
from spunge.report.findings import Findings
from spunge.report.insides import costs
from spunge.report.markdown import front_matter
from spunge.report.points import BAD, GOOD, UNSURE
from spunge.report.tables import Cell, Table, all_tables, escape_markdown, key_tables, signed, slug
from spunge.report.verdict import verdict


def judged(run):
    return verdict(Findings(report.build(run)))


def test_the_main_table_has_the_papers_shape(tmp_path):
    table = key_tables(Findings(report.build(write_run(tmp_path, kind="toxicity", groups=3, items=90))))[0]
    assert table.header[:3] == ["Model + method", "toxigen toxicity\u00a0↓", "toxigen PPL\u00a0↓"]
    assert "general acc.\u00a0↑" in table.header
    names = [row[0] for row in table.rows]
    assert names[:2] == ["lab:model", "+ RMU, joint"]
    assert "+ SPUNGE-RMU" in names
    assert names[-1] == "+ RMU, only muslim"


def test_one_seed_is_said_to_leave_the_variance_between_seeds_open(tmp_path):
    one, three = (
        key_tables(Findings(report.build(write_run(tmp_path, seeds=tuple(range(n)), name=f"{n} seeds"))))[0]
        for n in (1, 3)
    )
    assert "how far another seed would lie is unknown" in one.note
    assert "seed" not in three.note


def test_the_papers_figures_stand_beside_its_own_models_only(tmp_path):
    run = write_run(tmp_path, kind="toxicity", groups=3, items=60)
    assert "paper" not in {table.key for table in all_tables(Findings(report.build(run)))}
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["model"]["id"] = "HuggingFaceH4/zephyr-7b-beta"
    (run / "manifest.json").write_text(json.dumps(manifest))
    beside = {table.key: table for table in all_tables(Findings(report.build(run)))}["paper"]
    assert beside.header[:4] == ["Figure", *(f"base model: {what}" for what in ("here", "paper", "here − paper"))]
    assert [row[0] for row in beside.rows] == ["ToxiGen toxicity", "ToxiGen PPL"]
    assert beside.rows[0][2::3] == ["20.48", "14.61", "9.89"]
    for one in paper.beside(Findings(report.build(run))):
        cell = next(row for row in beside.cells if row[0].text == one.name)[beside.header.index("base model: here") + 2]
        assert one.variant != "base" or cell.value == pytest.approx(one.here - one.paper)


def test_the_average_of_the_ten_needs_all_ten(tmp_path):
    run = write_run(tmp_path, kind="toxicity", groups=3, items=60, name="zephyr-toxigen-rmu")
    items = pl.read_parquet(run / "items.parquet")
    suites = {"arc_challenge": "acc_norm", "hellaswag": "acc_norm", "gsm8k": "exact_match,strict-match"}
    suites |= dict.fromkeys(("arc_easy", "mmlu", "truthfulqa_mc2", "winogrande", "mathqa", "piqa", "pubmedqa"), "acc")
    toxic = items.filter((pl.col("suite") == "toxigen") & (pl.col("metric") == "toxic"))
    asked = [
        toxic.with_columns(suite=pl.lit(suite), task=pl.lit(suite), metric=pl.lit(m)) for suite, m in suites.items()
    ]
    manifest = json.loads((run / "manifest.json").read_text())
    plain = {**manifest["suites"][0], "method": "multiple_choice", "goal": "retain", "attacks": None}
    manifest["suites"] += [{**plain, "suite": suite, "headline": [metric]} for suite, metric in suites.items()]
    (run / "manifest.json").write_text(json.dumps(manifest))
    for several, wanted in ((asked, True), (asked[1:], False)):
        pl.concat([items, *several]).write_parquet(run / "items.parquet")
        found = {one.name: one for one in paper.beside(Findings(report.build(run))) if one.variant == "joint"}
        assert ("Average acc." in found) == wanted
        assert found["GSM8K"].paper == 34.64
    assert found["PIQA"].here == pytest.approx(found["ToxiGen toxicity"].here)


def test_every_cell_of_the_papers_tables_is_there():
    tables = {name: table["rows"] for name, table in paper.published()["tables"].items()}
    assert {name: (len(rows), {len(row) for row in rows.values()}) for name, rows in tables.items()} == {
        **{name: (3, {3}) for name in ("1a", "1b", "1c", "2", "6")},
        **{name: (3, {11}) for name in ("3", "4", "5", "7")},
    }
    for name in ("3", "4", "5", "7"):  # the averages hold what the cells were read as; Table 4's own sum differs
        for variant, row in tables[name].items():
            ten = [value for column, value in row.items() if column != "Average"]
            assert sum(ten) / 10 == pytest.approx(row["Average"], abs=0.02), (name, variant)


def test_a_clear_gain_is_called_one(tmp_path):
    found = judged(write_run(tmp_path, items=1600, gain=0.3))
    assert re.match(
        r"SPUNGE forgot (nearly all|most) of what it should \(.*?\), and kept the rest within 5\s%\.", found.headline
    )
    assert "it forgot more than joint unlearning, by" in found.headline
    assert re.search(
        r"better than joint unlearning with as many steps \(by .*?\); better than a random", found.headline
    )
    assert [one.word for one in found.contests] == ["better"] * 3
    assert all("[" in point.figures for point in found.points)


def test_no_gain_is_called_none(tmp_path):
    found = judged(write_run(tmp_path, items=400, gain=0.0))
    assert "it is not told apart from joint unlearning (about" in found.headline
    assert "items would tell" in found.headline
    assert found.contests[0].word == "not told apart"


def test_a_loss_is_called_one(tmp_path):
    found = judged(write_run(tmp_path, items=1600, gain=-0.3))
    assert "joint unlearning forgot more, by" in found.headline
    assert BAD in {point.status for point in found.points}


@pytest.mark.parametrize(("gain", "amount"), [(0.4, "nearly all"), (0.0, "most"), (-0.4, "some")])
def test_how_much_was_forgotten_is_said(tmp_path, gain, amount):
    found = judged(write_run(tmp_path, items=2000, gain=gain))
    assert found.headline.startswith(f"SPUNGE forgot {amount} of what it should")
    share = re.search(r"(\d+).% of what the base model had beyond guessing is left", found.points[0].text)
    assert share
    assert abs(int(share[1]) / 100 - (0.4 - gain)) < 0.1


def test_a_loss_beyond_chance_is_named_even_where_its_size_is_not_settled(tmp_path):
    run = write_run(tmp_path, items=400)
    items = pl.read_parquet(run / "items.parquet")
    own = (pl.col("suite") == "general") & (pl.col("metric") == "acc") & pl.col("variant").is_in(["base", "spunge"])
    # 14 of 200 answers lost: 7 points, with an interval that reaches below and beyond the margin of 5 %.
    number = pl.col("item").rank("dense").over("variant", "seed", "suite", "metric")
    right = (pl.col("variant") == "base") | (number > 14)
    items = items.with_columns(value=pl.when(own).then(right.cast(pl.Float64)).otherwise(pl.col("value")))
    items.write_parquet(run / "items.parquet")
    found = judged(run)
    point = next(point for point in found.points if "general" in point.text)
    assert point.status == UNSURE
    assert "got worse" in point.text
    assert "Whether enough of the rest stayed is not settled" in found.headline


def test_a_rival_that_forgot_more_is_named_even_where_joint_did_not(tmp_path):
    run = write_run(tmp_path, items=800, gain=0.0)
    items = pl.read_parquet(run / "items.parquet")
    own = (pl.col("variant") == "joint_equal_steps") & (pl.col("metric") == "acc") & (pl.col("suite") == "hazards")
    items = items.with_columns(value=pl.when(own).then(0.0).otherwise(pl.col("value")))
    items.write_parquet(run / "items.parquet")
    assert "worse than joint unlearning with as many steps" in judged(run).headline


def test_many_subsets_have_a_table_of_their_own(tmp_path):
    tables = {
        table.key: table for table in all_tables(Findings(report.build(write_run(tmp_path, groups=13, items=52))))
    }
    assert not any("only" in row[0] for row in tables["main"].rows)
    assert len(tables["each"].rows) == 13


def test_a_model_that_did_not_forget_is_not_praised(tmp_path):
    found = judged(write_run(tmp_path, items=400, gain=-0.6))
    assert "SPUNGE forgot nothing measurable (at most" in found.headline
    assert found.points[0].status == UNSURE


def test_a_model_that_always_says_the_same_letter_is_found_out(tmp_path):
    run = write_run(tmp_path, items=200)
    items = pl.read_parquet(run / "items.parquet")
    one = (pl.col("variant") == "spunge") & (pl.col("metric") == "chosen")
    items.with_columns(value=pl.when(one).then(0.0).otherwise(pl.col("value"))).write_parquet(run / "items.parquet")
    points = judged(run).points
    assert any(point.status == BAD and "always the same answer" in point.text for point in points)


def test_items_that_could_not_be_scored_are_counted(tmp_path):
    run = write_run(tmp_path, items=40)
    assert not any("NaN" in point.text for point in judged(run).points)
    items = pl.read_parquet(run / "items.parquet")
    suite = items["suite"][0]
    lost = items.filter((pl.col("suite") == suite) & (pl.col("variant") == "spunge"))["item"].unique().sort()[:3]
    spoilt = (pl.col("variant") == "spunge") & pl.col("item").is_in(lost.to_list()) & (pl.col("metric") == "nan")
    changed = pl.when(spoilt).then(1.0).otherwise(pl.col("value")).alias("value")
    items.with_columns(changed).write_parquet(run / "items.parquet")
    (point,) = (point for point in judged(run).points if "NaN" in point.text)
    assert point.status == BAD
    assert point.text.startswith(f"On “{suite}”, SPUNGE could not be scored")
    assert point.figures.replace("\u00a0", " ").startswith("3 of ")


def test_without_spunge_there_is_no_verdict(tmp_path):
    run = write_run(tmp_path, items=40)
    items = pl.read_parquet(run / "items.parquet")
    items.filter(pl.col("variant") != "spunge").write_parquet(run / "items.parquet")
    assert judged(run).headline.startswith("No verdict yet")


def test_few_items_settle_nothing(tmp_path):
    statuses = {point.status for point in judged(write_run(tmp_path, items=12)).points}
    assert GOOD not in statuses


def test_an_attack_is_reported_as_what_it_brought_back(tmp_path):
    run = write_run(tmp_path, items=800, attacked=True)
    results = report.build(run)
    tables = {table.key: table for table in all_tables(Findings(results))}
    assert not any("quantised" in name for name in tables["main"].header)
    found = {
        (row["setting"], row["attribute_value"]): row
        for row in results["attacks"]
        if row["variant"] == "spunge" and row["attribute"] in (None, "domain")
    }
    assert found["0 steps", None]["recovered"] == 0
    assert found["int4", None]["recovered_low"] < 0.3 < found["int4", None]["recovered_high"]
    items = pl.read_parquet(run / "items.parquet").filter(metric="acc").with_columns(pl.col("task").str.split(" @ "))
    of = {
        name: items.filter(variant=variant, suite=suite).filter(pl.col("task").list.last().is_in([suite, "30 steps"]))
        for name, (variant, suite) in {
            "base": ("base", "hazards"),
            "unlearned": ("spunge", "hazards"),
            "attacked": ("spunge", "relearned"),
        }.items()
    }
    bio = {
        name: float(np.mean(table.filter(pl.col("attributes").str.contains('"bio"'))["value"].to_list()))
        for name, table in of.items()
    }
    expected = (bio["attacked"] - bio["unlearned"]) / (bio["base"] - bio["unlearned"])
    assert found["30 steps", "bio"]["recovered"] == pytest.approx(expected)
    assert judged(run).sentences[-1] == "An attack brought part of what was forgotten back."
    shown = {row[0] for row in tables["recovery"].rows}
    assert {"quantised: int8", "relearned: 30 steps"} <= shown


def test_nothing_comes_back_where_nothing_was_lost(tmp_path):
    run = write_run(tmp_path, items=200, attacked=True, gain=-0.6)
    rows = [row for row in report.build(run)["attacks"] if row["variant"] in ("base", "spunge")]
    assert {row["recovered"] for row in rows if row["attribute"] is None} == {None}


def hostile_table():
    rows = [[Cell(name), Cell("1.0", 1.0, 0.5, 1.5, "[0.5, 1.5]")] for name in HOSTILE]
    return Table("x", HOSTILE[0], "", ["name", "a | b"], rows)


def test_csv_keeps_every_character_and_the_intervals():
    read = list(csv.reader(io.StringIO(hostile_table().to_csv(), newline="")))
    assert read[0] == ["name", "a | b", "a | b low", "a | b high"]
    assert [row[0].removeprefix("'") for row in read[1:]] == list(HOSTILE)  # before a formula
    assert read[1][1:] == ["1.0", "0.5", "1.5"]


FORMULA = tuple("=+-@\t\r\uff1d\uff0b\uff0d\uff20")
CELLS = st.text(max_size=12) | st.text(st.sampled_from("=+-@;|, \t\r\n'\"a1\uff1d"), max_size=8)


@example(["+ RMU, joint", "=cmd|' /C calc'!A0", "a;=1+1", "\t=1", " @SUM(A1)", "\n-1", "\r\n+1", "\uff1d1"])
@given(st.lists(CELLS, max_size=8))
def test_no_cell_is_a_formula_to_a_spreadsheet_and_numbers_stay_numbers(names):
    rows = [[Cell(name), Cell("▼ −0.5", -0.5, -1.0, 0.0, "[−1.0, 0.0]")] for name in names]
    table = Table("x", "x", "", ["=name", "+ RMU"], rows)
    written = table.to_csv()
    read = list(csv.reader(io.StringIO(written, newline="")))
    assert [row[1:] for row in read[1:]] == [["-0.5", "-1.0", "0.0"]] * len(names)
    for row, name in zip(read[1:], names, strict=True):
        assert row[0].replace("'", "") == name.replace("'", "")
    texts = [row[0] for row in read] + read[0]
    texts += [part for text in texts for part in re.split("[;\t\r\n]", text)]  # as other locales part cells
    assert not [text for text in texts if text.strip(" ").startswith(FORMULA)]
    cells = [re.split(r"(?<!\\)\|", line)[1].strip() for line in table.to_markdown().splitlines()]
    del cells[1]  # the line of dashes
    assert not [cell for cell in cells if cell.startswith(FORMULA)]


def test_markdown_keeps_its_columns_whatever_the_names():
    lines = hostile_table().to_markdown().splitlines()
    assert len(lines) == 2 + len(HOSTILE)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
    assert not any("<script" in line.replace("\\<", "") for line in lines)


def test_latex_escapes_what_is_special():
    table = hostile_table().to_latex()
    body = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert len(body) == 1 + len(HOSTILE)
    assert all(len(re.findall(r"(?<!\\)&", line)) == 1 for line in body)
    assert r"\$x\_\{\$ \textbackslash{}frac \% \# \textasciitilde{} \textasciicircum{} \{" in table


@pytest.mark.parametrize(("value", "text"), [(0.04, "0.0"), (-0.04, "0.0"), (-1.25, "−1.2"), (3.0, "+3.0")])
def test_signs(value, text):
    assert signed(value, 1) == text


def test_slugs_are_safe_and_tell_names_apart():
    slugs = {slug("by", "suite", name) for name in HOSTILE}
    assert len(slugs) == len(HOSTILE)
    assert all(re.fullmatch(r"[a-z0-9-]+", each) for each in slugs)


def test_results_md_and_card_carry_the_verdict(tmp_path):
    run = write_run(tmp_path, kind="toxicity", groups=3, items=60, hostile=True)
    report.write(run)
    headline = escape_markdown(judged(run).headline)
    assert headline in (run / "report" / "results.md").read_text()
    card = report.card(run)
    assert card.split("---")[2].splitlines()[6] == f"**{headline}**"
    assert "- Warning: subset 'tiny' has 3 rows and was left out" in card
    assert "Against unlearning one subset after the other: not run" in card
    assert len((run / "report" / "results.md").read_text().splitlines()) < 60  # a page
    front = YAML(typ="safe", pure=True).load(card.split("---")[1])
    assert front == {"library_name": "transformers", "tags": ["unlearning", "spunge"]}  # the hub has no lab:model
    assert "## Limits" in card


def test_a_card_says_what_loads_the_files_and_names_a_base_that_the_hub_can_have():
    adapter = front_matter("owner/model", "adapter")
    assert YAML(typ="safe", pure=True).load(adapter.split("---")[1]) == {
        "base_model": "owner/model", "library_name": "peft", "tags": ["unlearning", "spunge"],
    }  # fmt: skip
    assert 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("owner/model"), DIRECTORY)' in adapter
    assert "base_model:" not in front_matter("./model", "task-vector")
    assert 'from_pretrained(spunge.load("lab:model").directory())' in front_matter("lab:model", "adapter")


def test_compared_runs_are_matched_by_item(tmp_path):
    first = write_run(tmp_path / "a", items=200, name="weak")
    second = write_run(tmp_path / "b", items=160, name="strong", gain=0.4, noise=3)
    page = report.compare([first, second], tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"base", "weak", "strong", "weak: joint"} <= {row["name"] for row in results["variants"]}
    found = [row for row in results["comparisons"] if (row["a"], row["b"]) == ("strong", "weak")]
    assert {row["n"] for row in found} == {80}
    assert "40 items are not in every run" in page.read_text()


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / side, items=40) for side in "ab"]
    report.compare(runs, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["runs"] == [
        "synthetic-knowledge",
        "synthetic-knowledge (2)",
    ]


def test_a_comparison_is_written_over_one_of_the_same_runs_alone(tmp_path):
    runs = [write_run(tmp_path, items=40, name=name) for name in ("a", "b", "c")]
    out = tmp_path / "out"
    assert report.compare(runs[:2], out) == report.compare(runs[:2], out)
    before = (out / "index.html").read_bytes()
    with pytest.raises(ArtifactError, match="holds the comparison of a and b; give another --out"):
        report.compare(runs, out)
    with pytest.raises(ArtifactError, match="is no comparison"):
        report.compare(runs, runs[0])
    assert (out / "index.html").read_bytes() == before
    report.compare(runs, out, replace=True)
    assert (out / "index.html").read_bytes() != before


def test_runs_without_a_common_item_are_refused(tmp_path):
    first = write_run(tmp_path / "a", kind="knowledge", items=40)
    second = write_run(tmp_path / "b", kind="knowledge", items=40)
    items = pl.read_parquet(second / "items.parquet").with_columns(item=pl.lit("other-") + pl.col("item"))
    items.write_parquet(second / "items.parquet")
    with pytest.raises(ArtifactError, match="no item in common"):
        report.compare([first, second], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_search_that_settings_come_from_has_its_table(tmp_path):
    run = write_run(tmp_path, groups=2, items=40)
    report.write(run)
    assert "How layer" not in report.write(run).read_text()
    manifest = json.loads((run / "manifest.json").read_text())
    trial = {"layer": 3, "ratio": 2.0, "alpha": 10.0, "steering_coefficient": 6.25, "forget_cosine": 0.125}
    trial |= {"retain_cosine": 0.75, "score": 0.625}
    manifest["search"] = [trial, {**trial, "steering_coefficient": None, "score": -1.0}]
    (run / "manifest.json").write_text(json.dumps(manifest))
    page = report.write(run).read_text()
    assert "How layer, c and α were found" in page
    (found,) = search.tables(Findings(report.build(run)))
    assert found.rows == [
        ["3", "2", "6.25", "10", "0.125", "0.75", "0.625"],
        ["3", "2", "–", "10", "0.125", "0.75", "-1"],
    ]


def test_a_sweep_shows_every_setting_and_the_picked_one(tmp_path):
    run = write_run(tmp_path, items=200)
    manifest = json.loads((run / "manifest.json").read_text())
    points = [
        {"variant": name, "seed": 0, "settings": {"merge.density": density}, "forget": density,
         "retain": 0.9 + density / 9, "suites": {}, "picked": density == 0.2, "front": density < 0.6}
        for name in ("spunge", "random_split") for density in (0.2, 0.5, 0.8)
    ]  # fmt: skip
    manifest["sweep"] = {"axes": {"merge.density": [0.2, 0.5, 0.8]}, "rule": "the best", "validation_share": 0.2,
                         "suites": {}, "points": points}  # fmt: skip
    (run / "manifest.json").write_text(json.dumps(manifest))
    page = report.write(run)
    assert "figure-sweep" in page.read_text()
    found = next(table for table in all_tables(Findings(report.build(run))) if table.key == "sweep")
    assert found.rows[0] == ["SPUNGE", "0.2", "20.0 %", "92.2 %", "picked"]
    assert [row[-1] for row in found.rows] == ["picked", "on the front", ""] * 2


def test_the_merges_of_a_sweep_share_a_bar(tmp_path):
    run = write_run(tmp_path, items=40)
    manifest = json.loads((run / "manifest.json").read_text())
    one = next(stage for stage in manifest["stages"] if stage["stage"] == "merge" and stage["name"] == "spunge")
    manifest["stages"].remove(one)
    manifest["stages"] += [
        {**one, "name": f"spunge (density=0.2, lambda={step})", "key": f"{step:032}"} for step in range(50)
    ]
    (run / "manifest.json").write_text(json.dumps(manifest))
    findings = Findings(report.build(run))
    drawn = costs(findings)
    assert drawn is not None
    assert drawn.svg.count("merge: SPUNGE") == 1
    assert "density" not in drawn.svg
    stages = next(table for table in all_tables(findings) if table.key == "stages")
    assert sum("density" in row[0] for row in stages.rows) == 50
