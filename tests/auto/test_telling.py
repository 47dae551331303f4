"""What a search says at its end: what to take, that nothing worked, what was nearest; page and menu as well."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer

from spunge.auto import page, telling
from spunge.auto.session import Session
from spunge.auto.trials import Reading
from spunge.cli import menu
from spunge.errors import RecipeError


def judged(arm: str, forgotten: float, low: float, damage: float) -> dict[str, Any]:
    choice = {
        "arm": arm, "number": 2, "rung": 1, "method": "npo", "settings": {},
        "merge": "ties 1" if arm == "merged" else "",
        "rows": 400, "scale": 0.8, "damage": 0.029, "met": True, "forgotten": forgotten, "broken": 0.0,
    }  # fmt: skip
    test = {
        "forgotten": forgotten, "low": low, "high": 2 * forgotten - low, "items": 113, "broken": 0.05, "lost": 0.0,
        "scores": {"acc": [0.9, 0.4]}, "damage": damage, "kept": [0.8, 0.79],
    }  # fmt: skip
    return {"choice": choice, "test": test}


RESULT: dict[str, Any] = {
    "wish": {"model": "models/<b>base</b>", "damage": 0.03, "methods": ["npo"]},
    "plan": ["To forget: 200 texts.", "Split by group into 2: a 100, b 100."],
    "arms": {"joint": judged("joint", 0.4, 0.3, 0.031), "merged": judged("merged", 0.5, 0.42, 0.028)},
    "comparison": {"difference": 0.1, "low": 0.02, "high": 0.18, "damage": 0.03, "joint": 0.4, "merged": 0.5,
                   "damages": {"joint": 0.0295, "merged": 0.0291}},
    "choice": "merged",
    "worked": True,
    "nearest": None,
    "front": {
        "joint": [asdict(Reading("joint", 2, 1, "", share, share, 0.03 * share, True, share)) for share in (1.0, 3.0)],
        "merged": [asdict(Reading("merged", 1, 1, "sum", 1.0, 0.4, 0.03, True, 0.2))],
    },
    "trials": {"joint": 9, "merged": 9},
    "time": {
        "seconds": 600.0, "cut_share": 0.25,
        "rungs": [
            {"rung": 0, "rows": 133, "trials": 18, "seconds": 200.0, "cut": 150.0, "failed": 1, "saved": 800.0},
            {"rung": 1, "rows": 400, "trials": 6, "seconds": 400.0, "cut": 0.0, "failed": 0, "saved": 0.0},
        ],
    },
}  # fmt: skip


def changed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(RESULT), **changes}


def test_it_says_what_to_take_and_who_forgot_more():
    lines = telling.verdict(RESULT, "questions", 0.03)
    assert lines[0].startswith("Take the merged model, npo, trial 2, merged by ties 1, λ 0.8: on 113 items")
    assert "0.500 (0.420 to 0.580) of p(right answer) is forgotten, at a damage of 0.028" in lines[0]
    assert "the merged model forgot more" in lines[1]
    assert "79 %; the base model 80 %" in lines[2]


def test_what_cannot_be_told_apart_is_not():
    apart = {**RESULT["comparison"], "low": -0.02}
    assert "the two cannot be told apart" in telling.verdict(changed(comparison=apart), "questions", 0.03)[1]


@pytest.mark.parametrize("done", [0.004, None])
def test_who_cannot_be_taken_to_the_same_damage_is_not_compared(done: float | None):
    apart = {**RESULT["comparison"], "damages": {"joint": done, "merged": 0.0295}}
    line = telling.verdict(changed(comparison=apart), "questions", 0.03)[1]
    assert line.startswith(
        "Merged and joint cannot be compared at the same damage: λ takes joint unlearning to no damage"
    )
    assert "forgot more" not in line


def test_a_choice_that_writes_no_language_where_it_is_judged_is_told():
    broken = changed()
    broken["arms"]["merged"]["test"]["broken"] = 0.25
    assert "25 % more completions than the base model's are no language (0 % where" in " ".join(
        telling.verdict(broken, "questions", 0.03)
    )
    assert "no language" not in " ".join(telling.verdict(RESULT, "questions", 0.03))


def test_nothing_worked_is_said_with_the_nearest_named_as_such():
    near = asdict(Reading("joint", 3, 1, "", 3.0, 1.0, 0.09, True, 0.6))
    arms = {"merged": judged("merged", 0.01, -0.02, 0.028)}
    lines = telling.verdict(changed(worked=False, arms=arms, comparison=None, nearest=near), "texts", 0.03)
    assert lines[0].startswith("Nothing worked within the budget: what is forgotten cannot be told from nothing.")
    assert "The nearest that forgets more is beyond the budget" in lines[1]
    assert "--damage 0.09 would allow it" in lines[1]


def test_an_unmet_budget_and_a_useless_model_are_named():
    unmet = judged("joint", 0.5, 0.4, 0.3)
    unmet["choice"]["met"] = False
    none = changed(worked=False, choice="joint", comparison=None)
    lines = telling.verdict({**none, "arms": {"joint": unmet}}, "texts", 0.03)
    assert "none keeps to a damage of 0.03" in lines[0]
    useless = judged("joint", 0.5, 0.4, 0.03)
    useless["choice"]["broken"] = 0.9
    lines = telling.verdict({**none, "arms": {"joint": useless}}, "texts", 0.03)
    assert "no longer writes language" in lines[0]


def test_a_choice_that_forgets_what_must_stay_as_well_did_not_work():
    spoilt = judged("joint", 0.5, 0.4, 0.03)
    spoilt["test"]["lost"] = 0.6
    near = asdict(Reading("joint", 3, 1, "", 3.0, 1.0, 0.09, True, 0.6))
    none = changed(worked=False, choice="joint", comparison=None, arms={"joint": spoilt}, nearest=near)
    lines = telling.verdict(none, "questions", 0.03)
    assert "what is forgotten is not clearly more than went of what must stay (0.600)" in lines[0]
    assert "A smaller --damage" in lines[1]
    assert "beyond the budget" not in " ".join(lines)


def test_a_front_shows_what_was_lost_where_it_was_asked():
    assert "lost ↓" not in telling.front_table(RESULT, "questions").header
    points = [asdict(Reading("joint", 2, 1, "", 1.0, 1.0, 0.03, True, 0.5, lost=0.125))]
    table = telling.front_table(changed(front={"joint": points, "merged": []}), "questions")
    assert table.header[-1] == "lost ↓"
    assert "0.125" in table.to_markdown()


def test_without_any_model_it_says_how_many_failed():
    [line] = telling.verdict(changed(worked=False, choice=None, arms={}, comparison=None), "texts", 0.03)
    assert line == "Nothing worked: none of the trials came to a model that could be asked (1 failed)."


def test_the_time_says_what_was_cut_and_what_it_saved():
    line = telling.times(RESULT)
    assert line.startswith("25% of 10 min 00 s went into trials that were cut.")
    assert "133 rows: 18 trials in 3 min 20 s, which at the top would have taken 13 min 20 s more" in line


def test_the_page_holds_both_fronts_and_escapes_names(tmp_path: Path):
    figures = {"seconds": 3.0, "failed": None, "forgotten": 0.1, "damage": 0.02}
    trials = [{"arm": "joint", "number": 0, "rung": 0, "told": "npo <i>", **figures}]
    text = page.write(RESULT, trials, "questions", tmp_path / "index.html").read_text()
    assert text.count("<svg") == 1
    assert "mathdefault" not in text  # what a tick says is no formula
    assert "What to take" in text
    assert "<b>base</b>" not in text
    assert "npo <i>" not in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")
    nothing = changed(worked=False, choice=None, arms={}, comparison=None, front={})
    assert "Nothing worked" in page.write(nothing, [], "texts", tmp_path / "none.html").read_text()


def test_the_card_says_where_its_figures_come_from():
    card = telling.card(RESULT, RESULT["wish"], "questions", "the model answers 90% of 80 questions (25% by chance)")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "## Judged on the test part" in card
    assert "reproduce.json" in card


def test_the_card_of_a_point_taken_by_hand_says_so_first():
    point = {"method": "rmu", **RESULT["front"]["joint"][1]}
    card = telling.card(RESULT, RESULT["wish"], "questions", "known", point)
    assert card.index("This is joint unlearning, rmu, trial 2, λ 3: a point of the front") < card.index(
        "Take the merged"
    )
    assert "it was not judged on others" in card


def test_an_earlier_choice_is_not_taken_for_this_one(tmp_path: Path):
    session = cast("Session", SimpleNamespace(out=tmp_path))
    assert not Session.holds(session, RESULT)
    record = {"arm": "merged", "merge": "ties 1", "scale": 0.8, "setting": {"number": 2}, "rung": {"number": 1}}
    (tmp_path / "reproduce.json").write_text(json.dumps(record))
    assert Session.holds(session, RESULT)
    (tmp_path / "reproduce.json").write_text(json.dumps({**record, "setting": {"number": 1}}))
    assert not Session.holds(session, RESULT)


def test_the_menu_takes_points_exports_and_survives_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done: list[Any] = []

    def point(result: Any, number: int | None = None) -> Any:
        if number == 99:
            raise RecipeError("99: the front has the points 1 to 6")
        done.append(("point", number))
        return {}, None

    def export(result: Any, number: int | None, out: Path) -> Path:
        done.append(("export", number, out))
        return out

    talk = SimpleNamespace(answers=lambda text: (f"base {text}", "nothing"))
    session = SimpleNamespace(
        out=tmp_path, point=point, export=export, chat=lambda result, number, device: talk,
        recipe=lambda chosen: "name: x\n", asking=SimpleNamespace(kind="texts"),
        attacked=lambda result, number, name: (0.5, 0.1),
    )  # fmt: skip
    words = ["p", 99, "p", 2, "e", str(tmp_path / "m"), "c", "hello", "", "a", "relearning"]
    said = iter([*words, "r", str(tmp_path / "r.yaml"), "x", "q"])
    monkeypatch.setattr(typer, "prompt", lambda *words, **options: next(said))
    menu.offer(cast("Session", session), RESULT)
    assert done == [("point", 2), ("export", 2, tmp_path / "m"), ("point", 2)]
    assert (tmp_path / "r.yaml").read_text() == "name: x\n"
    assert next(said, None) is None
