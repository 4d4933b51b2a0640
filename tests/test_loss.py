"""The losses against the originals' values and gradients, in one process and in two, and what each makes of a batch."""

import json
from dataclasses import replace

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.functional import cosine_similarity, normalize

from clap.config import LOSSES, ConfigError, TrainConfig, check
from clap.loss import compute, contrastive, kappa_weights, nt_xent, positives, sigmoid, triplet_max, triplet_weighted
from clap.model import Embeddings

PLAIN = TrainConfig(targets="plain", scales="one")  # as LAION-CLAP trains
FIELDS = ("audio", "text", "audio_mlp", "text_mlp", "scale_a", "scale_t", "bias")


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "golden/e_cliploss.json").read_text())


def embeddings(inputs, scale=1 / 0.07, rows=slice(None)):
    """What a model gives of the golden inputs, as leaves; golden MLP losses have a scale_t of 10."""
    parts = {key: torch.tensor(inputs[key])[rows].requires_grad_() for key in FIELDS[:4]}
    numbers = [torch.tensor(x, requires_grad=True) for x in (scale, 10.0, -10.0)]
    return Embeddings(**parts, scale_a=numbers[0], scale_t=numbers[1], bias=numbers[2])


def identities(n):
    """Captions and clips, of which some are the same."""
    return torch.arange(n) % (n - 2), torch.arange(n)


def assert_near(ours, expected, tolerance=3e-6):
    torch.testing.assert_close(ours, torch.as_tensor(expected, dtype=ours.dtype), atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("scale", ["1.0000", "14.2857", "100.0000"])
@pytest.mark.parametrize("loss", ["softmax", "mlp"])
def test_values_and_gradients_equal_the_original(golden, loss, scale):
    expected = golden[f"single.scale{scale}.mlp{int(loss == 'mlp')}"]
    out = embeddings(golden["inputs"], 1 / 0.07 if scale == "14.2857" else float(scale))
    value = compute(replace(PLAIN, loss=loss), out, *identities(8))
    value.backward()
    assert value.item() == pytest.approx(expected["loss"], abs=3e-6)
    assert_near(out.audio.grad, expected["g_audio"])
    assert_near(out.text.grad, expected["g_text"])
    assert out.scale_a.grad.item() == pytest.approx(expected["g_scale"], abs=3e-6)


def test_kappa_weights_pairs_as_the_original(golden):
    out = embeddings(golden["inputs"])
    value = compute(replace(PLAIN, loss="mlp", kappa=1.0), out, *identities(8))
    assert value.item() == pytest.approx(golden["single.kappa1.mlp1"]["loss"], abs=3e-6)


def test_kappa_in_a_plain_loss_crosses_the_weights_over(golden):
    """There is no value of the original's: it crashes there (golden: UnboundLocalError)."""
    assert "UnboundLocalError" in golden["single.kappa1.mlp0"]
    out, y = embeddings(golden["inputs"]), torch.arange(8)
    crossed = [((x @ x.T).sum(1) / (0.5 * 8)).exp().detach() for x in (out.text, out.audio)]
    logits = out.scale_a * out.audio @ out.text.T
    entropy = torch.nn.functional.cross_entropy
    expected = (entropy(logits, y, weight=crossed[0]) + entropy(logits.T, y, weight=crossed[1])) / 2
    assert_near(compute(replace(PLAIN, kappa=0.5), out, *identities(8)), expected)
    assert kappa_weights(out.audio, 0.5).requires_grad is False


# ---- one process with a batch of eight, and two with four each


def settings():
    """Every loss, and kappa; both ways to gather."""
    each = [TrainConfig(loss=loss) for loss in LOSSES] + [TrainConfig(kappa=0.5), TrainConfig(loss="mlp", kappa=0.5)]
    each += [PLAIN, replace(PLAIN, loss="mlp")]
    return [replace(config, gather=how) for how in ("local", "global") for config in each]


def gradients(config, out, captions, clips):
    """Loss, and its gradient for every part of `out` that has one."""
    value = compute(config, out, captions, clips)
    value.backward()
    return value.item(), {name: getattr(out, name).grad for name in FIELDS if getattr(out, name).grad is not None}


def process(rank, folder, inputs):
    """One of two processes: its half of the batch under every setting."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = slice(4 * rank, 4 * rank + 4)
    mine = [ids[rows] for ids in identities(8)]
    done = [gradients(config, embeddings(inputs, rows=rows), *mine) for config in settings()]
    torch.save(done, f"{folder}/{rank}")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(golden, tmp_path_factory):
    """(loss, gradients) of both processes by setting."""
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(process, (str(folder), golden["inputs"]), nprocs=2)
    return dict(zip(settings(), zip(*(torch.load(folder / str(rank)) for rank in (0, 1)), strict=True), strict=True))


@pytest.mark.parametrize("config", settings(), ids=lambda c: f"{c.loss}-{c.gather}-{c.targets}-{c.kappa}")
def test_two_processes_together_do_what_one_does_with_the_whole_batch(two, golden, config):
    value, whole = gradients(config, embeddings(golden["inputs"]), *identities(8))
    (first, here), (second, there) = two[config]
    assert (first + second) / 2 == pytest.approx(value, abs=3e-6)
    assert whole.keys() == here.keys() == there.keys()
    for name, gradient in whole.items():  # of rows, half from each process; of the rest, the mean of both
        join = torch.cat if gradient.ndim else sum
        assert_near(join([here[name], there[name]]) / 2, gradient)


@pytest.mark.parametrize("how", ["local", "global"])
@pytest.mark.parametrize("loss", ["softmax", "mlp"])
def test_two_processes_equal_two_of_the_original(two, golden, loss, how):
    expected = golden[f"ranks2.local{int(how == 'local')}.gwg1.mlp{int(loss == 'mlp')}"]
    for rank, (value, gradient) in enumerate(two[replace(PLAIN, loss=loss, gather=how)]):
        assert value == pytest.approx(expected["loss"][rank], abs=3e-6)
        assert_near(gradient["audio"], expected["g_audio"][rank])
        assert_near(gradient["text"], expected["g_text"][rank])


def test_without_gradients_through_the_gather_the_original_points_elsewhere(two, golden):
    theirs = torch.tensor(golden["ranks2.local1.gwg0.mlp0"]["g_audio"]).flatten()
    ours = torch.cat([gradient["audio"].flatten() for _, gradient in two[PLAIN]])
    assert cosine_similarity(ours, theirs, dim=0) < 0.95


# ---- one by one


def pair(n=6, d=4):
    torch.manual_seed(0)
    return [normalize(torch.randn(n, d), dim=1) for _ in range(2)]


def sides(audio, text):
    return audio @ text.T, text @ audio.T


EYE, OWN = torch.eye(6, dtype=torch.bool), torch.arange(6)


def test_each_direction_has_its_own_scale():
    to_text, to_audio = sides(*pair())
    scales = [torch.tensor(s, requires_grad=True) for s in (5.0, 9.0)]
    entropy = torch.nn.functional.cross_entropy
    value = contrastive(to_text, to_audio, *scales, EYE)
    value.backward()
    assert_near(value, (entropy(5 * to_text, OWN) + entropy(9 * to_audio, OWN)) / 2)
    assert all(s.grad.abs() > 0 for s in scales)


def test_with_one_scale_the_other_is_not_touched(golden):
    out = embeddings(golden["inputs"])
    compute(replace(PLAIN, scales="one"), out, *identities(8)).backward()
    assert out.scale_t.grad is None and out.scale_a.grad.abs() > 0


def test_same_caption_or_same_clip_is_positive():
    captions, clips = torch.tensor([7, 7, 8, 9]), torch.tensor([1, 2, 3, 3])
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = expected[2, 3] = expected[3, 2] = True
    assert (positives(captions, clips) == expected).all()


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "mlp"])
def test_identical_captions_do_not_repel(loss):
    audio, text = pair(2)
    leaf = text[:1].expand(2, -1).clone().requires_grad_()
    one = torch.tensor(10.0)
    out = Embeddings(audio[:1].expand(2, -1).clone(), leaf, one, one, bias=torch.tensor(0.0))
    same, differ = torch.zeros(2, dtype=torch.long), torch.arange(2)
    compute(TrainConfig(loss=loss), out, same, differ).backward()
    ways = leaf.grad @ out.audio[0]  # only ever nearer to the audio, of which sigmoid has never enough
    assert ways.abs().max() < 1e-6 or (loss == "sigmoid" and (ways < 0).all())


def test_sigmoid_asks_of_every_pair_whether_it_is_one():
    to_text, _ = sides(*pair())
    positive = EYE.clone()
    positive[0, 3] = positive[3, 0] = True
    logits = 7.0 * to_text - 2.0
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, positive.float(), reduction="sum") / 6
    assert_near(sigmoid(to_text, torch.tensor(7.0), torch.tensor(-2.0), positive), expected)


def hand_made():
    """Similarities of three pairs, of which the first and the last have the same caption."""
    to_text = torch.tensor([[0.9, 0.8, 0.95], [0.3, 0.1, 0.2], [0.4, 0.35, 0.7]])
    positive = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.bool)
    return to_text, to_text.T, torch.arange(3), positive


def test_triplet_max_looks_at_the_hardest_negative_only():
    rows = (0.2 + 0.8 - 0.9) + (0.2 + 0.3 - 0.1) + 0  # text of audio 3 is 0.35 nearer than a stranger's
    columns = 0 + (0.2 + 0.8 - 0.1) + 0
    assert triplet_max(*hand_made(), margin=0.2).item() == pytest.approx((rows + columns) / 3)


def test_triplet_weighted_costs_what_its_polynomials_say():
    def cost(pair, negative):
        return max(0, 0.5 - 0.7 * pair + 0.2 * pair**2) + max(0, 0.03 - 0.4 * negative + 0.9 * negative**2)

    expected = (cost(0.9, 0.8) + cost(0.1, 0.3) + cost(0.1, 0.8)) / 3  # the other three rows keep the margin
    assert triplet_weighted(*hand_made(), margin=0.2).item() == pytest.approx(expected)


def test_nt_xent_is_the_softmax_of_a_fixed_temperature_and_leaves_other_positives_out():
    to_text, to_audio = sides(*pair())
    scale = torch.tensor(1 / 0.07)
    assert_near(nt_xent(to_text, to_audio, OWN, EYE), contrastive(to_text, to_audio, scale, scale, EYE))
    to_text, to_audio, own, positive = hand_made()
    expected = 0.0
    for row, keep in enumerate(([0, 1], [1, 0, 2], [2, 1])):  # the own partner first
        expected -= sum(torch.log_softmax(side[row, keep] / 0.07, dim=0)[0].item() for side in (to_text, to_audio)) / 6
    assert nt_xent(to_text, to_audio, own, positive).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [triplet_max, triplet_weighted])
def test_a_batch_of_one_caption_costs_nothing_and_gives_no_nan(loss):
    audio, text = (each.requires_grad_() for each in pair())
    value = loss(*sides(audio, text), OWN, torch.ones(6, 6, dtype=torch.bool), 0.2)
    value.backward()
    assert value == 0 and (audio.grad == 0).all() and (text.grad == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_brings_partners_together(loss):
    leaves = [torch.nn.Parameter(each) for each in pair(12, 8)]
    factor = torch.tensor(10.0)
    optimizer = torch.optim.Adam(leaves, 0.05)
    for _ in range(150):
        audio, text = (normalize(each, dim=1) for each in leaves)
        out = Embeddings(audio, text, factor, factor, audio, text, torch.tensor(-5.0))
        optimizer.zero_grad()
        compute(TrainConfig(loss=loss), out, torch.arange(12), torch.arange(12)).backward()
        optimizer.step()
    assert ((audio @ text.T).argmax(1) == torch.arange(12)).all()


def test_autocast_does_not_reach_the_loss(golden):
    out = embeddings(golden["inputs"])
    with torch.autocast("cpu", torch.bfloat16):
        inside = compute(PLAIN, out, *identities(8))
    assert inside.dtype == torch.float32 and inside == compute(PLAIN, out, *identities(8))


def test_settings_that_do_nothing_are_refused():
    for config in (replace(PLAIN, loss="sigmoid", kappa=1.0), replace(PLAIN, loss="hinge"), replace(PLAIN, margin=0.0)):
        with pytest.raises(ConfigError, match=r"kappa weights|loss is 'hinge'|margin is 0"):
            check(config)
    with pytest.raises(ConfigError, match="lacks heads"):
        compute(replace(PLAIN, loss="sigmoid"), Embeddings(*pair(), *[torch.tensor(1.0)] * 2), *identities(6))


def test_kappa_weights_stay_finite_however_small_kappa_is():
    features = normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    weights = kappa_weights(features, 1e-4)
    assert torch.isfinite(weights).all() and weights.mean().item() == pytest.approx(1)
