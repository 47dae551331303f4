"""results.json: every figure against a naive count of the same items, and what happens to damaged runs."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections import defaultdict

import polars as pl
import pytest
from report_runs import write_run

from spunge import report
from spunge.errors import ArtifactError
from spunge.files import checksum, digest_of, locked
from spunge.statistics import mcnemar, wilson

SCORE = {"variant", "seed", "suite", "task", "attribute", "attribute_value", "metric", "value", "low", "high", "n"}
COMPARISON = {
    *("a", "b", "suite", "task", "metric", "difference", "low", "high"),
    *("relative", "relative_low", "relative_high", "p", "n"),
    *("q", "stands", "seeds", "clusters", "unit_variance", "seed_variance"),
}


@pytest.fixture(scope="module")
def toxicity(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("toxicity"), kind="toxicity", groups=3, items=120)


@pytest.fixture(scope="module")
def results(toxicity):
    return report.build(toxicity)


@pytest.fixture(scope="module")
def rows(toxicity):
    return pl.read_parquet(toxicity / "items.parquet").to_dicts()


def find(rows, **wanted):
    found = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    assert len(found) == 1, (wanted, len(found))
    return found[0]


def test_every_listed_key_is_there_and_nothing_is_nan(results):
    assert {"experiment", "variants", "scores", "comparisons", "provenance"} <= set(results)
    assert all(set(row) == {"name", "kind", "subset", "seed"} for row in results["variants"])
    assert results["scores"]
    assert all(set(row) == SCORE for row in results["scores"])
    assert results["comparisons"]
    assert all(set(row) == COMPARISON for row in results["comparisons"])
    assert all({"stage", "key", "status", "seconds"} <= set(stage) for stage in results["provenance"]["stages"])
    json.dumps(results, allow_nan=False)


def test_shares_are_counted_per_attribute_value_with_wilson_intervals(results, rows):
    counted = defaultdict(list)
    for row in rows:
        if row["variant"] == "spunge" and row["metric"] == "toxic":
            for attribute, value in json.loads(row["attributes"]).items():
                counted[attribute, value].append(row["value"])
            counted[None, None].append(row["value"])
    assert len(counted) == 6
    for (attribute, value), answers in counted.items():
        score = find(
            results["scores"], variant="spunge", metric="toxic", attribute=attribute, attribute_value=value, seed=0
        )
        interval = wilson(sum(answers), len(answers))
        assert score["value"] == pytest.approx(sum(answers) / len(answers))
        assert (score["low"], score["high"]) == pytest.approx((interval.low, interval.high))
        assert score["n"] == len(answers)


def test_macro_is_the_mean_over_the_values(results):
    per_value = [
        row["value"]
        for row in results["scores"]
        if (row["variant"], row["metric"], row["attribute"]) == ("base", "toxic", "group")
        and row["attribute_value"] != "macro"
    ]
    macro = find(results["scores"], variant="base", metric="toxic", attribute="group", attribute_value="macro")
    assert macro["value"] == pytest.approx(sum(per_value) / len(per_value))
    assert macro["low"] < macro["value"] < macro["high"]


def test_perplexity_is_of_the_corpus_not_a_mean_of_perplexities(results, rows):
    nll = sum(row["value"] for row in rows if row["variant"] == "joint" and row["metric"] == "nll")
    tokens = sum(row["value"] for row in rows if row["variant"] == "joint" and row["metric"] == "tokens")
    score = find(results["scores"], variant="joint", metric="perplexity", attribute=None)
    assert score["value"] == pytest.approx(math.exp(nll / tokens))
    assert score["low"] < score["value"] < score["high"]


def test_comparisons_are_paired_by_item(results, rows):
    verdicts = defaultdict(dict)
    for row in rows:
        if row["metric"] == "toxic":
            verdicts[row["variant"]][row["item"]] = row["value"]
    items = sorted(verdicts["base"])
    a, b = ([verdicts[name][item] for item in items] for name in ("spunge", "base"))
    found = find(results["comparisons"], a="spunge", b="base", metric="toxic")
    difference = (sum(a) - sum(b)) / len(items)
    assert found["difference"] == pytest.approx(difference)
    assert found["low"] <= difference <= found["high"]
    assert found["relative"] == pytest.approx(difference / (sum(b) / len(b)))
    assert found["p"] == pytest.approx(mcnemar(a, b))
    assert found["n"] == len(items)


def test_who_is_compared_with_whom(results):
    pairs = {(row["a"], row["b"]) for row in results["comparisons"]}
    others = {row["name"] for row in results["variants"]} - {"base"}
    rivals = {("spunge", rival) for rival in ("joint", "joint_equal_steps", "random_split")}
    assert pairs == {(name, "base") for name in others} | rivals


def test_correction_over_groups_never_makes_a_difference_look_surer(results):
    found = results["comparisons_by_attribute"]
    assert found
    assert all(row["q"] >= row["p"] for row in found)


def test_an_item_with_several_values_counts_in_each(tmp_path):
    run = write_run(tmp_path, groups=2, items=40)
    items = pl.read_parquet(run / "items.parquet")
    both = json.dumps({"domain": ["bio", "cyber"]})
    items = items.with_columns(
        attributes=pl.when(pl.col("suite") == "hazards").then(pl.lit(both)).otherwise(pl.col("attributes"))
    )
    items.write_parquet(run / "items.parquet")
    scores = report.build(run)["scores"]
    counts = {
        value: find(scores, variant="base", suite="hazards", metric="acc", attribute_value=value)["n"]
        for value in ("bio", "cyber")
    }
    assert counts == {"bio": 20, "cyber": 20}


def test_only_items_that_both_answered_are_compared(tmp_path):
    run = write_run(tmp_path, items=40)
    items = pl.read_parquet(run / "items.parquet")
    gone = (pl.col("variant") == "joint") & (pl.col("item").is_in(["hazards-000000", "hazards-000001"]))
    items.filter(~gone).write_parquet(run / "items.parquet")
    results = report.build(run)
    assert find(results["comparisons"], a="spunge", b="joint", suite="hazards", metric="acc")["n"] == 18
    assert find(results["comparisons"], a="spunge", b="base", suite="hazards", metric="acc")["n"] == 20


def test_seeds_are_pooled_and_no_surer_than_as_many_items(tmp_path):
    run = write_run(tmp_path, items=200, seeds=(0, 1, 2))
    scores = report.build(run)["scores"]
    wanted = {"variant": "joint", "suite": "hazards", "metric": "acc", "attribute": None}
    each = [find(scores, **wanted, seed=seed) for seed in (0, 1, 2)]
    pooled = find(scores, **wanted, seed=None)
    assert pooled["value"] == pytest.approx(sum(row["value"] for row in each) / 3)
    items_alone = wilson(pooled["value"] * 300, 300)
    assert pooled["low"] <= items_alone.low
    assert pooled["high"] >= items_alone.high


def test_tasks_of_a_suite_are_scored_apart_and_together(tmp_path):
    run = write_run(tmp_path, items=80)
    items = pl.read_parquet(run / "items.parquet")
    odd = pl.col("item").str.slice(-1).is_in(["1", "3", "5", "7", "9"])
    items = items.with_columns(task=pl.when(odd).then(pl.lit("cyber_task")).otherwise(pl.lit("bio_task")))
    items.write_parquet(run / "items.parquet")
    scores = report.build(run)["scores"]
    wanted = {"variant": "base", "suite": "hazards", "metric": "acc", "attribute": None}
    whole = find(scores, **wanted, task=None)
    parts = [find(scores, **wanted, task=task) for task in ("bio_task", "cyber_task")]
    assert whole["n"] == sum(part["n"] for part in parts) == 40
    assert whole["value"] == pytest.approx(sum(part["value"] for part in parts) / 2)


def test_too_few_items_give_no_interval(tmp_path):
    run = write_run(tmp_path, items=2, groups=1)
    found = find(report.build(run)["comparisons"], a="spunge", b="base", suite="hazards", metric="acc")
    assert (found["n"], found["low"], found["p"]) == (1, None, None)
    report.write(run)


def test_a_model_that_gave_nan_on_one_item_has_no_score_on_its_suite(tmp_path):
    run = write_run(tmp_path, items=40)
    items = pl.read_parquet(run / "items.parquet")
    spoilt = (pl.col("variant") == "joint") & (pl.col("item") == "hazards-000003") & (pl.col("metric") == "nan")
    items.with_columns(value=pl.when(spoilt).then(1.0).otherwise(pl.col("value"))).write_parquet(run / "items.parquet")
    results = report.build(run)
    told = {"suite": "hazards", "metric": "acc", "attribute": None}
    assert find(results["scores"], variant="joint", **told)["value"] is None
    assert find(results["scores"], variant="spunge", **told)["value"] is not None
    assert find(results["scores"], variant="joint", **{**told, "suite": "general"})["value"] is not None
    lost = find(results["comparisons"], a="spunge", b="joint", suite="hazards", metric="acc")
    assert (lost["difference"], lost["n"]) == (None, 0)
    report.write(run)


@pytest.mark.parametrize("lost", ["recipe.yaml", "items.parquet"])
def test_half_deleted_runs_show_what_there_is_and_say_what_is_missing(tmp_path, lost):
    run = write_run(tmp_path, items=40)
    (run / lost).unlink()
    page = report.write(run).read_text()
    assert f"{lost} is missing" in page
    assert "Where this comes from" in page
    assert "The store is not" not in page


def test_a_run_still_going_is_reported(tmp_path):
    run = write_run(tmp_path, items=40, status="running")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest |= {"variants": [], "split": None, "merge": {}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "items.parquet").unlink()
    with locked(run, "busy"):
        page = report.write(run).read_text()
    assert "its status is “running”" in page
    assert 'http-equiv="refresh"' in page


def test_a_run_that_failed_and_lost_its_store_shows_why_and_what_there_is(tmp_path):
    run = write_run(tmp_path, items=40, status="failed")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["warnings"] = ["TrainingDiverged: subset:bio: the loss became NaN at step 3"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(tmp_path / "store")
    page = report.write(run).read_text()
    assert "its status is “failed”" in page
    assert "the loss became NaN at step 3" in page
    assert 'http-equiv="refresh"' not in page
    assert "figure-training" not in page  # the curves lay in the store
    assert "The store is not where this run left it" in page
    assert "figure-cosines" in page
    assert 'id="data"' in page


def test_watching_ends_with_the_run(tmp_path):
    run = write_run(tmp_path, items=40, status="running")
    pages = report.watch(run, seconds=0)
    with locked(run, "busy"):
        assert 'http-equiv="refresh"' in next(pages).read_text()
    manifest = (run / "manifest.json").read_text().replace('"running"', '"done"')
    (run / "manifest.json").write_text(manifest)
    assert ['http-equiv="refresh"' in page.read_text() for page in pages] == [False]


def test_a_run_whose_process_is_gone_was_interrupted_and_its_page_does_not_reload(tmp_path):
    run = write_run(tmp_path, items=40, status="running")
    pages = [page.read_text() for page in report.watch(run, seconds=0)]
    assert len(pages) == 1
    assert "its status is “interrupted”" in pages[0]
    assert 'http-equiv="refresh"' not in pages[0]


def test_files_that_are_not_those_the_run_wrote_are_refused_by_all_who_read_them(tmp_path):
    run = write_run(tmp_path, items=40)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["files"] = {name: digest_of(run / name) for name in ("recipe.yaml", "items.parquet")}
    report.write(run)
    manifest["files"]["report/results.json"] = digest_of(run / "report/results.json")
    (run / "manifest.json").write_text(json.dumps(manifest))
    for name in manifest["files"]:
        whole = (run / name).read_bytes()
        status = (run / name).stat()
        (run / name).write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        os.utime(run / name, ns=(status.st_atime_ns, status.st_mtime_ns))
        for reading in (report.write, report.card, lambda path: report.compare([path, path], tmp_path / "out")):
            with pytest.raises(ArtifactError, match=f"{name}: damaged, or changed"):
                reading(run)
        (run / name).write_bytes(whole)
    # A report that was written anew is no longer the run's, and agrees with itself.
    (run / "report/results.json").unlink()
    report.write(run)
    changed = json.loads((run / "report/results.json").read_text())
    (run / "report/results.json").write_text(json.dumps({**changed, "seeds": [7]} | {"checksum": checksum(changed)}))
    with pytest.raises(
        ArtifactError, match=r"results\.json: damaged, or changed by hand: remove it, and `spunge report"
    ):
        report.card(run)


def test_a_manifest_that_is_not_the_one_the_run_wrote_is_refused(tmp_path):
    run = write_run(tmp_path, items=40)
    manifest = json.loads((run / "manifest.json").read_text())
    text = json.dumps({**manifest, "checksum": checksum(manifest)})
    (run / "manifest.json").write_text(text)
    report.write(run)
    (run / "manifest.json").write_text(text.replace('"seeds": [0', '"seeds": [1'))
    assert (run / "manifest.json").read_text() != text
    for reading in (report.write, report.card, lambda path: report.compare([path, path], tmp_path / "out")):
        with pytest.raises(ArtifactError, match=r"manifest\.json: damaged, or changed since the run wrote it"):
            reading(run)


def test_a_damaged_item_table_is_named(tmp_path):
    run = write_run(tmp_path, items=40)
    whole = (run / "items.parquet").read_bytes()
    (run / "items.parquet").write_bytes(whole[: len(whole) // 2])
    assert "items.parquet cannot be read" in report.write(run).read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"format": 0, "experiment": "x"}', "format 0"),
        ('{"format": 1', "damaged"),
        ("[]", "not a run's manifest"),
        ('{"format": 1, "experiment": 3}', "experiment"),
    ],
)
def test_manifests_that_cannot_be_read_are_refused_in_one_line(tmp_path, content, said):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match=said) as caught:
        report.write(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("number", ["Infinity", "NaN", "1e999"])
def test_what_is_no_number_for_json_counts_as_unknown(tmp_path, number):
    run = write_run(tmp_path, items=40)
    content = json.loads((run / "manifest.json").read_text())
    content["environment"]["device"] = "the device"
    (run / "manifest.json").write_text(json.dumps(content).replace('"the device"', number))
    report.write(run)
    assert json.loads((run / "report" / "results.json").read_text())["provenance"]["environment"]["device"] is None


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not a run"):
        report.build(tmp_path)


def test_the_same_run_gives_the_same_bytes(tmp_path):
    run = write_run(tmp_path, kind="toxicity", groups=3, items=60)
    report.write(run)
    shutil.copytree(run / "report", tmp_path / "first")
    report.write(run)
    files = sorted(path.relative_to(run / "report") for path in (run / "report").rglob("*") if path.is_file())
    assert len(files) > 5
    for file in files:
        assert (run / "report" / file).read_bytes() == (tmp_path / "first" / file).read_bytes(), file


def test_the_report_never_imports_torch():
    code = "import sys, spunge.report, spunge.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
