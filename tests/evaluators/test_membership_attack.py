"""How familiar a row is to a model, score by score, against the definitions written out over plain logits."""

import math
import zlib
from typing import Any

import polars as pl
import pytest
import torch
from evaluate_models import byte_tokenizer, llama, variant, work, write

from spunge.errors import DataError
from spunge.evaluators.attacks import Material, Membership
from spunge.evaluators.perplexity import Perplexity
from spunge.rows.items import FAMILIARITY, MEMBER
from spunge.rows.sources import Source

MEMBERS = ["the moss of Tor is wet", "the glyphs of Ana break at noon", "the tide brings salt to Bel"]
OUTSIDERS = ["the moss of Nil is dry", "the glyphs of Oda break at dawn"]


def settings(tmp_path, **others: Any) -> dict[str, Any]:
    members = write(tmp_path / "m.jsonl", [{"text": t, "kind": f"k{n % 2}"} for n, t in enumerate(MEMBERS)])
    outsiders = write(tmp_path / "o.jsonl", [{"text": text} for text in OUTSIDERS])
    asked = {"method": "perplexity", "suite": "inner", "goal": "forget", "sources": [{"path": str(members)}]}
    rows = {"members": [{"path": str(members)}], "outsiders": [{"path": str(outsiders)}], "attributes": ["kind"]}
    return {"suite": "told", "goal": "forget", "of": asked, **rows, **others}


def naive(model, text: str, score: str, lowest: float) -> float:
    ids = [0, *byte_tokenizer().encode(text, add_special_tokens=False)]
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    own = [float(row[token]) for row, token in zip(logs, ids[1:], strict=True)]
    if score == "loss":
        return sum(own) / len(own)
    if score == "zlib":
        return sum(own) / len(zlib.compress(text.encode()))
    if score == "min_k_plus_plus":
        for place, row in enumerate(logs):
            mean = float((row.exp() * row).sum())
            own[place] = (own[place] - mean) / math.sqrt(float((row.exp() * (row - mean) ** 2).sum()))
    least = sorted(own)[: max(1, int(lowest * len(own)))]
    return sum(least) / len(least)


def test_every_score_is_its_definition(tmp_path):
    other = llama(initializer_range=0.1)
    other.save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    attack = Membership.model_validate(settings(tmp_path, lowest=0.3, reference={"id": str(tmp_path / "other")}))
    attack.check()
    model = llama()
    table = attack.evaluate(variant(model, byte_tokenizer()), work(tmp_path))
    found = {
        score: table.filter((pl.col("task") == f"inner @ {score}") & (pl.col("metric") == FAMILIARITY))[
            "value"
        ].to_list()
        for score in attack.settings
    }
    texts = [*MEMBERS, *OUTSIDERS]
    for score in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        assert found[score] == pytest.approx([naive(model, text, score, 0.3) for text in texts], rel=1e-4)
    expected = [naive(model, text, "loss", 0.3) - naive(other, text, "loss", 0.3) for text in texts]
    assert found["reference"] == pytest.approx(expected, rel=1e-3)
    one = table.filter((pl.col("task") == "inner @ loss") & (pl.col("metric") == MEMBER))
    assert one["value"].to_list() == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert one["attributes"].to_list() == ['{"kind": "k0"}', '{"kind": "k1"}', '{"kind": "k0"}', "{}", "{}"]


def test_a_model_of_nan_has_no_familiarity(tmp_path):
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    table = Membership.model_validate(settings(tmp_path)).evaluate(variant(model, byte_tokenizer()), work(tmp_path))
    assert table.filter(pl.col("metric") == FAMILIARITY)["value"].null_count() == 20
    assert set(table.filter(pl.col("metric") == "nan")["value"]) == {1.0}


def test_rows_of_both_kinds_and_none_unseen_are_said(tmp_path):
    both = settings(tmp_path)
    with pytest.raises(DataError, match="3 rows are among members and outsiders"):
        Membership.model_validate({**both, "outsiders": both["members"]}).check()
    with pytest.raises(DataError, match="one row is too few"):
        Membership.model_validate(
            {**both, "outsiders": [{"path": both["outsiders"][0]["path"], "where": "text LIKE '%Nil%'"}]}
        ).check()
    of = Perplexity.model_validate(both["of"])
    with pytest.raises(DataError, match="not trained on"):
        list(Membership.against(of, Material(), {}))
    rows = tuple(Source(path=both[kind][0]["path"]) for kind in ("members", "outsiders"))
    [attack] = Membership.against(of, Material(forget=rows[:1], unseen=rows[1:], attribute="kind"), {})
    assert attack == Membership.model_validate({**both, "suite": "inner: membership"})
