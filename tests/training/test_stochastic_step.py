"""Training of generators that draw: the same numbers in all forms of a step, and losses that do not punish holes."""

import dataclasses
import json

import pytest
import torch
from test_contrast import CONFIG as CUT
from test_contrast import step_of as cut_step_of
from test_step import CONFIG, WEIGHTS, step_of
from vologan_kernels import adversarial_loss, global_ssim, weighted_l1

from vologan_fast.config import LossConfig, TrainConfig
from vologan_fast.data.demo import make_demo
from vologan_fast.networks import GENERATORS
from vologan_fast.networks.stochastic import NOISE_OF_QUERIES, as_measured, measured, normal
from vologan_fast.report.record import read_lines
from vologan_fast.train import main
from vologan_fast.training.cycle_step import CYCLE, IDENTITY
from vologan_fast.training.step import ST, TRANSLATION, TS

KINDS = {"noise": (2, False), "holes": (0, True), "both": (1, True)}


def stochastic(config, network="unet", kind="both", **options):
    noise, holes = KINDS[kind]
    options |= {"network": network, "noise_channels": noise, "hole_head": holes, "dropout": 0.3}
    options |= {"residual_blocks": 2, "cardinality": 2, "spectral_norm": False}
    return dataclasses.replace(config, generator=dataclasses.replace(config.generator, **options))


def batch(n=3):
    """Images of S and of T with background on the left. T has holes."""
    s, t = torch.rand(2, n, 4, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) + 0.01
    s[..., :3], t[..., :3] = 0.0, 0.0
    t[:, 3, 5:8, 6:12] = 0.0
    return s, t


def with_many_holes(step):
    """Make the first logits of the holes so large that a new generator has some."""
    generator = step.networks.generator_st
    if generator.config.hole_head:
        with torch.no_grad():
            generator.hole_head.blocks[-1].bias.zero_()
    return step


def after(make, config, number=7, n=3, **train):
    step = with_many_holes(make(dataclasses.replace(config, train=dataclasses.replace(config.train, **train))))
    losses = step(*batch(n), number)
    return losses.terms(), {name: parameter.grad for name, parameter in step.networks.named_parameters()}


def assert_equal(make, config, **train):
    terms, expected = after(make, config, step="plain")
    fast_terms, found = after(make, config, step="fast", **train)
    assert list(terms) == list(fast_terms)
    for name, value in terms.items():
        torch.testing.assert_close(fast_terms[name], value, rtol=1e-9, atol=1e-12, msg=f"loss {name}")
    for name, gradient in expected.items():
        scale = max(float(g.abs().max()) for other, g in expected.items() if other.split(".")[0] == name.split(".")[0])
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9 * scale, msg=f"gradient of {name}")


@pytest.mark.parametrize("network", GENERATORS)
@pytest.mark.parametrize("routing", ["vologan", "cyclegan"])
def test_the_fast_step_of_a_cyclegan_is_the_plain_one(network, routing):
    config = dataclasses.replace(stochastic(CONFIG, network), loss=LossConfig(routing=routing))
    assert_equal(step_of, config, micro_batch=2)


@pytest.mark.parametrize("network", GENERATORS)
def test_the_fast_step_of_cut_is_the_plain_one(network):
    assert_equal(cut_step_of, stochastic(CUT, network), micro_batch=2)


@pytest.mark.parametrize("kind", ["noise", "holes"])
@pytest.mark.parametrize("micro_batch", [0, 1])
def test_noise_and_holes_alone(kind, micro_batch):
    assert_equal(step_of, stochastic(CONFIG, kind=kind), micro_batch=micro_batch, recompute=1)
    assert_equal(cut_step_of, stochastic(CUT, kind=kind), micro_batch=micro_batch)


@pytest.mark.parametrize("routing", ["vologan", "cyclegan"])
def test_gradients_are_those_of_the_losses_as_written_down(routing):
    """Each network's gradient equals autograd.grad of its own loss, which is composed here term by term."""
    config = stochastic(CONFIG, kind="both")
    config = dataclasses.replace(
        config,
        generator=dataclasses.replace(config.generator, dropout=0.0),
        loss=LossConfig(routing=routing),
        train=TrainConfig(step="plain"),
    )
    step = with_many_holes(step_of(config))
    networks, (s, t) = step.networks, batch()
    step(s, t, 3)
    for parameter in networks.parameters():
        parameter.data += parameter.grad  # undoes SGD with learning rate 1
    keys = step._keys(s)
    st, ts = networks.generator_st, networks.generator_ts
    raw = st(s, keys.of(ST, TRANSLATION), hole_plane=True)
    assert 0 < raw[:, 4].detach().mean() < 1
    fake_t, fake_s = measured(raw), ts(t, keys.of(TS, TRANSLATION))
    inner_t, inner_s = measured(raw, learn_holes=False), fake_s
    if routing == "vologan":
        inner_t, inner_s = inner_t.detach(), inner_s.detach()
    hole = (t[:, 3:] == 0) & (t[:, :3].amax(1, keepdim=True) > 0)

    def remade(x, of_pass):
        """Depth before the head's holes, with those of t."""
        y = st(x, keys.of(ST, of_pass), hole_plane=True)[:, :4]
        return torch.cat((y[:, :3], torch.where(hole, 0.0, y[:, 3:])), 1)

    def domain_loss(discriminator, fake, cycled, same, image):
        return (
            adversarial_loss(discriminator(fake), "generator")
            + 10 * weighted_l1(cycled, image, WEIGHTS)
            + 0.5 * weighted_l1(same, image, WEIGHTS)
            + global_ssim(cycled, image, WEIGHTS)
        )

    of_t = domain_loss(networks.discriminator_t, fake_t, remade(inner_s, CYCLE), remade(t, IDENTITY), t)
    of_s = domain_loss(
        networks.discriminator_s, fake_s, ts(inner_t, keys.of(TS, CYCLE)), ts(s, keys.of(TS, IDENTITY)), s
    )
    figure, of_t_figure = (s != 0).any(1), (t != 0).any(1)
    differences = []
    for n in range(len(s)):
        own = raw[n, 4][figure[n]].sum() / figure[n].sum()
        differences.append((own - hole[n, 0][of_t_figure[n]].double().mean()) ** 2)
    of_t = of_t + 1000 * sum(differences) / len(s)
    losses = {st: of_t, ts: of_s} if routing == "vologan" else {st: of_t + of_s, ts: of_t + of_s}
    for network, loss in losses.items():
        expected = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        largest = max(float(gradient.abs().max()) for gradient in expected)  # the share of holes has a weight of 1,000
        for (name, parameter), gradient in zip(network.named_parameters(), expected, strict=True):
            tolerance = {"rtol": 1e-9, "atol": 1e-11 * largest}
            torch.testing.assert_close(parameter.grad, gradient, **tolerance, msg=f"gradient of {name}")


@pytest.mark.parametrize("routing", ["vologan", "cyclegan"])
def test_no_image_that_should_be_equal_punishes_holes(routing):
    """The gradient of the head's weights does not depend on the weights of cycle, identity and SSIM."""

    def gradient(**weights):
        config = dataclasses.replace(stochastic(CONFIG), loss=LossConfig(routing=routing, **weights))
        return after(step_of, config)[1]

    assert_only_the_image_learns_otherwise(gradient(), gradient(cycle=30.0, identity=3.0, ssim=5.0))


def test_nor_does_the_contrast():
    def gradient(**weights):
        config = stochastic(CUT)
        config = dataclasses.replace(config, contrast=dataclasses.replace(config.contrast, **weights))
        return after(cut_step_of, config)[1]

    assert_only_the_image_learns_otherwise(gradient(), gradient(weight=3.0, identity=2.0))


def assert_only_the_image_learns_otherwise(one, other):
    for name in (name for name in one if name.startswith("generator_st.hole_head.")):
        assert one[name].any() and torch.equal(one[name], other[name]), name
    image = "generator_st.to_image.weight"
    assert not torch.allclose(one[image], other[image])


def test_each_pass_and_step_has_its_own_noise():
    step = step_of(stochastic(CONFIG, kind="noise"))
    s, _ = batch()
    seen = []
    for number in (0, 1):
        step.prepare(number, s)
        keys = step._keys(s)
        seen += [normal(keys.of(ST, of_pass), 2, 16, 16) for of_pass in (TRANSLATION, CYCLE, IDENTITY)]
    seen.append(normal(step._fixed_keys(s).of(ST, TRANSLATION), 2, 16, 16))
    seen.append(normal(keys.of(ST, TRANSLATION), 2, 16, 16, use=NOISE_OF_QUERIES))
    draws = torch.cat(seen).flatten(1).double()
    correlations = torch.corrcoef(draws) - torch.eye(len(draws))
    assert correlations.abs().max() < 6 / draws.shape[1] ** 0.5


@pytest.mark.parametrize("make", [step_of, cut_step_of])
def test_evaluation_is_the_same_each_time_and_draws_nothing(make):
    step = make(stochastic(CONFIG if make is step_of else CUT))
    rng = torch.get_rng_state()
    first, images = step.evaluate(*batch())
    step.prepare(5, batch()[0])  # the numbers of the steps have no influence
    again, repeated = step.evaluate(*batch())
    assert torch.equal(rng, torch.get_rng_state())
    assert torch.equal(images.fake_t, repeated.fake_t)
    assert torch.equal(images.fake_t, step.translate_held_out(batch()[0]))
    torch.testing.assert_close(again.terms(), first.terms(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["noise", "both"])
@pytest.mark.parametrize("make", [step_of, cut_step_of])
def test_held_out_images_have_noise_of_their_own_in_batches_of_any_size(make, kind):
    step = with_many_holes(make(stochastic(CONFIG if make is step_of else CUT, kind=kind)))
    s, t = batch(5)
    s[3], t[3] = s[0], t[0]  # equal images get different noise
    losses, images = step.evaluate(s, t)
    assert not torch.equal(images.fake_t[3], images.fake_t[0])
    for size in (1, 2, 3):
        firsts = range(0, 5, size)
        found = [step.evaluate(s[i : i + size], t[i : i + size], first_image=i) for i in firsts]
        fakes = torch.cat([of_batch.fake_t for _, of_batch in found])
        torch.testing.assert_close(fakes, images.fake_t, rtol=1e-9, atol=1e-9)
        judged = torch.cat([step.translate_held_out(s[i : i + size], i) for i in firsts])
        torch.testing.assert_close(judged, images.fake_t, rtol=1e-9, atol=1e-9)
        for name, value in losses.terms().items():
            parts = [of_batch.terms()[name] * min(size, 5 - i) for i, (of_batch, _) in zip(firsts, found, strict=True)]
            torch.testing.assert_close(sum(parts) / 5, value, rtol=1e-9, atol=1e-12, msg=name)


def test_without_noise_and_holes_nothing_changes():
    """The keys of held-out images change nothing in evaluation mode."""
    step = step_of(CONFIG)
    s, t = batch()
    _, images = step.evaluate(s, t)
    assert torch.equal(images.fake_t, step.networks.generator_st(s))
    assert torch.equal(as_measured(torch.cat((s, s[:, :1]), 1), s), s)


TINY = ["--preset", "demo", "--generator.width", "4", "--discriminator.widths", "4", "4", "4", "--device", "cpu"]
TINY += ["--discriminator.down-widths", "4", "4", "4", "--generator.noise-channels", "2", "--generator.hole-head"]
TINY += ["--train.report-every", "-1"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=5, size=32)


@pytest.mark.parametrize("method", ["cyclegan", "cut"])
def test_a_validation_with_any_batch_finds_the_same_losses(tmp_path, method):
    """The batch of a validation is a process's part of the batch, so it depends on the number of processes."""
    data = make_demo(tmp_path / "data", count=15, size=32)  # 3 are held out
    options = [*TINY, "--data", str(data), "--data.size", "32", "--train.method", method, "--max-steps", "1"]
    options += ["--generator-optimizer.learning-rate", "0", "--discriminator-optimizer.learning-rate", "0"]
    options += ["--train.average", "0"]
    found = []
    for size in ("1", "2", "4"):
        run = tmp_path / size
        assert main([*options, "--run-dir", str(run), "--train.batch", size]) == 0
        lines = read_lines(run / "metrics.jsonl")
        (held_out,) = (line for line in lines if line.pop("split") == "held_out")
        found.append(held_out)
    assert found[0] == pytest.approx(found[2], rel=1e-5)
    assert found[1] == pytest.approx(found[2], rel=1e-5)


@pytest.mark.parametrize("method", ["cyclegan", "cut"])
def test_a_run_that_stops_goes_on_to_the_same_bits(demo, tmp_path, method):
    options = [*TINY, "--data", str(demo), "--data.size", "32", "--train.method", method]
    assert main([*options, "--run-dir", str(tmp_path / "a"), "--max-steps", "3"]) == 0
    assert main([*options, "--run-dir", str(tmp_path / "b"), "--max-steps", "1"]) == 0
    assert main([*options, "--run-dir", str(tmp_path / "b"), "--max-steps", "3", "--resume"]) == 0
    runs = tmp_path / "a", tmp_path / "b"
    weights = [(run / "checkpoints/step-00000003/generator_st.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    held_out = [[line for line in of_run if line["split"] == "held_out"][-1] for of_run in lines]
    assert held_out[0] == held_out[1]
