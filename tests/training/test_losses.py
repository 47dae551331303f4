"""Every loss against a formula written again in numpy, in float64, one token at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spunge.training import losses

LENGTHS = [3, 3, 1]
"""The tokens that count of three sequences; what follows walks through them one behind another."""
B, N, V = 3, 7, 7


def example(seed=0, dtype=torch.float64):
    """Logits, base logits and labels of three sequences, of which one counts a single token."""
    draw = torch.Generator().manual_seed(seed)
    logits, base = (3 * torch.randn(N, V, generator=draw, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(0, V, (N,), generator=draw)
    return logits.to(dtype), base.to(dtype), labels


def softmax(row):
    powers = np.exp(np.asarray(row, dtype=np.float64) - np.max(row))
    return powers / powers.sum()


def tokens(logits, labels):
    """Yields every token: which sequence, which token, the logits, the label."""
    sequences = [b for b, length in enumerate(LENGTHS) for _ in range(length)]
    for n, b in enumerate(sequences):
        yield b, n, logits[n].detach().double().numpy(), int(labels[n])


def nlls(logits, labels):
    rows = [[] for _ in range(B)]
    for b, _, row, label in tokens(logits, labels):
        rows[b].append(-math.log(softmax(row)[label]))
    return rows


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def expected_cross_entropy(logits, base, labels):
    return np.mean([nll for row in nlls(logits, labels) for nll in row])


def expected_kl(logits, base, labels):
    values = []
    for _, n, row, _ in tokens(logits, labels):
        p, q = softmax(base[n].double().numpy()), softmax(row)
        values.append(sum(p[v] * math.log(p[v] / q[v]) for v in range(V)))
    return np.mean(values)


def expected_npo(logits, base, labels):
    values = []
    for ours, theirs in zip(nlls(logits, labels), nlls(base, labels), strict=True):
        log_ratio = -sum(ours) + sum(theirs)
        values.append(-(2 / 0.1) * math.log(sigmoid(-0.1 * log_ratio)))
    return np.mean(values)


def expected_simnpo(logits, base, labels):
    return np.mean([-(2 / 4.5) * math.log(sigmoid(4.5 * (np.mean(row) - 0.3))) for row in nlls(logits, labels)])


def expected_undial(logits, base, labels):
    values = []
    for _, n, row, label in tokens(logits, labels):
        lowered = base[n].double().numpy().copy()
        lowered[label] -= 10
        values.append(-sum(softmax(lowered)[v] * math.log(softmax(row)[v]) for v in range(V)))
    return np.mean(values)


def expected_ce_u(logits, base, labels):
    values = []
    for _, _, row, label in tokens(logits, labels):
        others = [v for v in range(V) if v != label]
        target = softmax(row[others])
        values.append(-sum(p * math.log(softmax(row)[v]) for p, v in zip(target, others, strict=True)))
    return np.mean(values)


def expected_wga(logits, base, labels):
    return -np.mean([math.exp(-nll) ** 0.7 * nll for row in nlls(logits, labels) for nll in row])


def expected_satimp(logits, base, labels):
    values = [(math.exp(-nll), nll) for row in nlls(logits, labels) for nll in row]
    return -np.mean([p**5 * (1 - p) * nll for p, nll in values])


def expected_dpo(logits, base, labels):
    other = labels.roll(1, 0)
    values = []
    for sums in zip(
        *(nlls(z, y) for z, y in ((logits, other), (base, other), (logits, labels), (base, labels))), strict=True
    ):
        win, base_win, lose, base_lose = (-sum(row) for row in sums)
        values.append(-(2 / 0.1) * math.log(sigmoid(0.1 * ((win - base_win) - (lose - base_lose)))))
    return np.mean(values)


def sums(logits, labels):
    return losses.sequence_log_probs(logits, labels, LENGTHS)


LOSSES = {
    "cross_entropy": (lambda z, base, y: losses.cross_entropy(z, y), expected_cross_entropy),
    "kl_to_base": (lambda z, base, y: losses.kl_to_base(z, base), expected_kl),
    "npo": (lambda z, base, y: losses.npo(sums(z, y), sums(base, y), beta=0.1), expected_npo),
    "simnpo": (lambda z, base, y: losses.simnpo(z, y, LENGTHS, beta=4.5, delta=0.3), expected_simnpo),
    "dpo": (
        lambda z, base, y: losses.dpo(
            sums(z, y), sums(base, y), sums(z, y.roll(1, 0)), sums(base, y.roll(1, 0)), beta=0.1
        ),
        expected_dpo,
    ),
    "undial": (lambda z, base, y: losses.undial(z, base, y, beta=10.0), expected_undial),
    "ce_u": (lambda z, base, y: losses.ce_u(z, y), expected_ce_u),
    "wga": (lambda z, base, y: losses.wga(z, y, beta=0.7), expected_wga),
    "satimp": (lambda z, base, y: losses.satimp(z, y, beta1=5.0, beta2=1.0), expected_satimp),
}
DETACHED = {"ce_u", "wga", "satimp"}


def call(name, logits, base, labels):
    return LOSSES[name][0](logits, base, labels)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_formula(name, seed):
    logits, base, labels = example(seed)
    assert float(call(name, logits, base, labels)) == pytest.approx(LOSSES[name][1](logits, base, labels), rel=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_are_widened(name):
    logits, base, labels = example(dtype=torch.bfloat16)
    loss = call(name, logits, base, labels)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(LOSSES[name][1](logits.double(), base.double(), labels), rel=1e-4)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - DETACHED))
def test_gradients_are_those_of_finite_differences(name):
    logits, base, labels = example()
    assert torch.autograd.gradcheck(lambda z: call(name, z, base, labels), (logits.requires_grad_(),))


@pytest.mark.parametrize("name", sorted(DETACHED))
def test_detached_weights_are_constants_to_the_gradient(name):
    logits, _, labels = example()
    probs = logits.softmax(-1)
    of_label = probs.gather(-1, labels[..., None]).squeeze(-1)
    if name == "ce_u":
        target = probs.scatter(-1, labels[..., None], 0)
        target = target / target.sum(-1, keepdim=True)
    else:
        weight = of_label**0.7 if name == "wga" else of_label**5 * (1 - of_label)
        target = -weight[..., None] * torch.nn.functional.one_hot(labels, V)

    def frozen(z):
        return -(target * z.log_softmax(-1)).sum(-1).mean()

    logits.requires_grad_()
    assert torch.autograd.gradcheck(frozen, (logits,))
    (ours,) = torch.autograd.grad(call(name, logits, None, labels), logits)
    (theirs,) = torch.autograd.grad(frozen(logits), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_npo_becomes_gradient_ascent_as_beta_vanishes():
    logits, base, labels = example()
    logits.requires_grad_()
    (npo,) = torch.autograd.grad(losses.npo(sums(logits, labels), sums(base, labels), beta=1e-7), logits)
    (ascent,) = torch.autograd.grad(sums(logits, labels).mean(), logits)
    torch.testing.assert_close(npo, ascent, rtol=1e-5, atol=1e-9)


def test_at_the_base_itself_kl_vanishes_and_npo_is_known():
    logits, _, labels = example()
    assert float(losses.kl_to_base(logits, logits)) == pytest.approx(0, abs=1e-15)
    at_base = sums(logits, labels)
    assert float(losses.npo(at_base, at_base, beta=0.1)) == pytest.approx(20 * math.log(2))


def states(seed=0, layers=2, width=4):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0]], dtype=torch.bool)
    return *(torch.randn(layers, 2, 4, width, generator=draw, dtype=torch.float64) for _ in range(2)), mask


def test_circuit_breaker_losses_are_their_formulas():
    ours, base, mask = states()
    cosines, distances = [], []
    for layer in range(2):
        for b, t in mask.nonzero().tolist():
            h, h0 = ours[layer, b, t].numpy(), base[layer, b, t].numpy()
            cosines.append(max(0.0, h @ h0 / math.sqrt((h @ h) * (h0 @ h0))))
            distances.append(math.sqrt(((h - h0) ** 2).sum()))
    assert float(losses.rerouting(ours, base, mask)) == pytest.approx(np.mean(cosines))
    assert float(losses.state_distance(ours, base, mask)) == pytest.approx(np.mean(distances))
    ours.requires_grad_()
    for loss in (losses.rerouting, losses.state_distance):
        assert torch.autograd.gradcheck(lambda h, loss=loss: loss(h, base, mask), (ours,))


def test_the_distance_from_oneself_has_a_gradient_of_zero():
    ours, _, mask = states()
    ours.requires_grad_()
    (gradient,) = torch.autograd.grad(losses.state_distance(ours, ours.detach().clone(), mask), ours)
    assert not gradient.any()


gradients = st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=12).map(lambda v: torch.tensor(v).double())


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_pcgrad_never_turns_against_retain(data):
    forget = data.draw(gradients)
    retain = data.draw(st.lists(st.floats(-5, 5, width=32), min_size=len(forget), max_size=len(forget)))
    retain = torch.tensor(retain).double()
    joined = losses.pcgrad(forget, retain)
    dot = float(forget @ retain)
    if dot >= 0:
        assert torch.equal(joined, forget + retain)
    else:
        projected = forget - dot / float(retain @ retain) * retain if float(retain @ retain) else forget
        torch.testing.assert_close(joined, projected + retain, rtol=1e-9, atol=1e-9)
        assert float(joined @ retain) >= float(retain @ retain) * (1 - 1e-9) - 1e-9


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_sago_has_no_entry_against_retain(data):
    forget = data.draw(gradients)
    retain = data.draw(st.lists(st.floats(-5, 5, width=32), min_size=len(forget), max_size=len(forget)))
    joined = losses.sago(forget, torch.tensor(retain).double())
    for f, r, j in zip(forget.tolist(), retain, joined.tolist(), strict=True):
        assert j == (f if f == 0 or r == 0 or (f > 0) == (r > 0) else r)
        assert j * r >= 0


def test_tiny_gradients_keep_their_signs():
    tiny = torch.tensor([1e-30])
    assert losses.sago(-tiny, tiny) == tiny  # the product would be zero in float32
