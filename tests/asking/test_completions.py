"""A greedy completion in a batch is the one that is written alone, token by token."""

import pytest
import torch
from evaluate_models import MODELS

from spunge.asking.batching import Batching
from spunge.asking.completions import complete


@pytest.mark.parametrize("name", MODELS)
def test_completions_equal_those_written_alone_token_by_token(name):
    model = MODELS[name]
    prompts = [(0, *range(5, 5 + length)) for length in (1, 7, 3, 12, 2)]
    stop = {7, 11, 42, 100, 150, 200, 250}
    written = complete(model, prompts, Batching(3), max_new_tokens=12, stop=stop)
    for prompt, completion in zip(prompts, written, strict=True):
        expected: list[int] = []
        while len(expected) < 12 and not (expected and expected[-1] in stop):
            logits = model(input_ids=torch.tensor([[*prompt, *expected]]), use_cache=False).logits
            expected.append(int(logits[0, -1].argmax()))
        assert list(completion) == expected
