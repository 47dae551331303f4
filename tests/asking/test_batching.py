"""What a killed attempt had answered is not asked again."""

import pytest
from evaluate_models import MODELS

from spunge.asking.batching import Batching
from spunge.asking.completions import complete
from spunge.asking.encoding import Request
from spunge.asking.likelihoods import loglikelihoods, token_scores


class Killed(Exception):
    """What stands for a kill."""


@pytest.mark.parametrize("ask", [loglikelihoods, token_scores, complete])
@pytest.mark.parametrize("name", ["llama", "mistral, window 400"])
def test_a_killed_attempt_is_continued_to_the_same_numbers(name, ask, tmp_path, request):
    model, asked = MODELS[name], []
    request.addfinalizer(model.register_forward_pre_hook(lambda *call: asked.append(1)).remove)
    requests = [Request((0, *range(5, 6 + n % 7)), tuple(range(9, 10 + n))) for n in range(12)]
    questions = [request.context for request in requests] if ask is complete else requests
    options = {"max_new_tokens": 3, "stop": {7}} if ask is complete else {}
    expected = ask(model, questions, Batching(2), **options)
    whole = len(asked)

    def killed_after(batches):
        def progress(what, done, total, /, **figures):
            if done >= 2 * batches:
                raise Killed

        return progress

    for batches in (1, 3):
        with pytest.raises(Killed):
            ask(model, questions, Batching(2, killed_after(batches), tmp_path), **options)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + b'[[0.5, "torn')
    asked.clear()
    assert ask(model, questions, Batching(2, scratch=tmp_path), **options) == expected
    assert 0 < len(asked) <= 2 * whole // 3  # half of the batches, and what is tried out first
    asked.clear()
    assert ask(model, questions, Batching(2, scratch=tmp_path), **options) == expected
    assert len(asked) <= 1  # the shared beginning
    assert ask(model, questions[1:], Batching(2, scratch=tmp_path), **options) != expected
    assert len(list(tmp_path.iterdir())) == 2
