"""The training step: the gradients of each network, its changes and its logged losses."""

import dataclasses

import pytest
import torch
from vologan_kernels import adversarial_loss, global_ssim, weighted_l1

from vologan_fast.config import Config, DiscriminatorConfig, GeneratorConfig, LossConfig, OptimizerConfig, TrainConfig
from vologan_fast.networks import Networks, Numerics
from vologan_fast.training.build import build_step
from vologan_fast.training.optimizers import build_optimizer

CONFIG = Config(
    generator=GeneratorConfig(width=4, max_width=8, levels=2, dropout=0.0),
    discriminator=DiscriminatorConfig(widths=(4, 4, 8), dropout=0.0),
)
WEIGHTS = (1.0, 1.0, 1.0, 3.0)
SGD = OptimizerConfig(kind="sgd", learning_rate=1.0, momentum=0.0)


def batch(n=2):
    images = torch.rand(2, n, 4, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return images[0], images[1]


def make_step(loss, optimizer=SGD):
    return step_of(dataclasses.replace(CONFIG, loss=loss, train=TrainConfig(step="plain")), optimizer)


def step_of(config, optimizer=SGD):
    torch.manual_seed(0)
    networks = Networks(config).double()
    return build_step(
        config,
        networks,
        build_optimizer(networks.generators.parameters(), optimizer),
        build_optimizer(networks.discriminators.parameters(), optimizer),
    )


@pytest.mark.parametrize("routing", ["vologan", "cyclegan"])
def test_gradients_are_those_of_the_losses_as_written_down(routing):
    """Each network's gradient equals autograd.grad of its own loss, which is composed here term by term."""
    step = make_step(LossConfig(routing=routing))
    networks, (s, t) = step.networks, batch()
    step(s, t, 0)  # plain SGD with learning rate 1; the gradients stay in .grad, so the next lines undo the step
    for parameter in networks.parameters():
        parameter.data += parameter.grad

    st, ts, d_s, d_t = (
        networks.generator_st,
        networks.generator_ts,
        networks.discriminator_s,
        networks.discriminator_t,
    )
    fake_t, fake_s = st(s), ts(t)

    def domain_loss(discriminator, fake, cycled, same, image):
        return (
            adversarial_loss(discriminator(fake), "generator")
            + 10 * weighted_l1(cycled, image, WEIGHTS)
            + 0.5 * weighted_l1(same, image, WEIGHTS)
            + global_ssim(cycled, image, WEIGHTS)
        )

    if routing == "vologan":
        loss_st = domain_loss(d_t, fake_t, st(ts(t).detach()), st(t), t)
        loss_ts = domain_loss(d_s, fake_s, ts(st(s).detach()), ts(s), s)
    else:
        loss_st = loss_ts = domain_loss(d_t, fake_t, st(fake_s), st(t), t) + domain_loss(
            d_s, fake_s, ts(fake_t), ts(s), s
        )
    losses = {
        st: loss_st,
        ts: loss_ts,
        d_s: 0.5 * (adversarial_loss(d_s(s), "real") + adversarial_loss(d_s(fake_s.detach()), "fake")),
        d_t: 0.5 * (adversarial_loss(d_t(t), "real") + adversarial_loss(d_t(fake_t.detach()), "fake")),
    }
    for network, loss in losses.items():
        expected = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        for (name, parameter), gradient in zip(network.named_parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12, msg=f"gradient of {name}")


def test_each_domain_has_its_own_weights():
    """The generators' gradients are those of λ and λ_t, as the PyTorch CycleGAN has λ_A and λ_B."""
    loss = LossConfig(routing="cyclegan", cycle=2.0, cycle_t=3.0, identity=0.5, identity_t=0.25, ssim=0.0, ssim_t=4.0)
    step = make_step(loss)
    (s, t), networks = batch(), step.networks
    terms = step(s, t, 0).terms()
    for parameter in networks.parameters():
        parameter.data += parameter.grad
    st, ts = networks.generator_st, networks.generator_ts
    fake_t, fake_s = st(s), ts(t)
    of_t = {
        "adversarial": adversarial_loss(networks.discriminator_t(fake_t), "generator"),
        "cycle": 3 * weighted_l1(st(fake_s), t, WEIGHTS),
        "identity": 0.25 * weighted_l1(st(t), t, WEIGHTS),
        "ssim": 4 * global_ssim(st(fake_s), t, WEIGHTS),
    }
    of_s = {
        "adversarial": adversarial_loss(networks.discriminator_s(fake_s), "generator"),
        "cycle": 2 * weighted_l1(ts(fake_t), s, WEIGHTS),
        "identity": 0.5 * weighted_l1(ts(s), s, WEIGHTS),
        "ssim": torch.zeros((), dtype=torch.float64),
    }
    for network, of_network in (("generator_st", of_t), ("generator_ts", of_s)):
        for name, value in of_network.items():
            torch.testing.assert_close(terms[f"{network}/{name}"], value.detach(), rtol=1e-9, atol=1e-15)
    parameters = list(networks.generators.parameters())
    expected = torch.autograd.grad(sum(of_t.values()) + sum(of_s.values()), parameters)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pixel", ["l1", "l2"])
def test_the_plain_mean_has_no_channel_weights_but_in_the_ssim(pixel):
    """Cycle and identity are means over all values of the batch. The SSIM keeps its weights."""
    (s, t), step = batch(), make_step(LossConfig(pixel=pixel, reduction="image"))
    losses, images = step.evaluate(s, t)
    terms = losses.terms()
    distance = {"l1": lambda a, b: (a - b).abs().mean(), "l2": lambda a, b: (a - b).square().mean()}[pixel]
    torch.testing.assert_close(terms["generator_st/cycle"], 10 * distance(images.cycled_t, t), rtol=1e-12, atol=0)
    torch.testing.assert_close(terms["generator_ts/identity"], 0.5 * distance(images.same_s, s), rtol=1e-12, atol=0)
    torch.testing.assert_close(terms["generator_ts/ssim"], global_ssim(images.cycled_s, s, WEIGHTS), rtol=1e-12, atol=0)
    found = step(s, t, 0).terms()["generator_st/total"]
    for parameter in step.networks.parameters():
        parameter.data += parameter.grad
    st, ts, d_t = step.networks.generator_st, step.networks.generator_ts, step.networks.discriminator_t
    cycled = st(ts(t).detach())
    loss = (
        adversarial_loss(d_t(st(s)), "generator")
        + 10 * distance(cycled, t)
        + 0.5 * distance(st(t), t)
        + global_ssim(cycled, t, WEIGHTS)
    )
    torch.testing.assert_close(found, loss.detach(), rtol=1e-9, atol=0)
    for parameter, gradient in zip(st.parameters(), torch.autograd.grad(loss, list(st.parameters())), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("progress", "pixel"), [(0.0, "l1"), (0.29, "l1"), (0.3, "l2"), (1.0, "l2"), (1.5, "l2")])
def test_l1_becomes_l2_at_a_fraction_of_the_schedule(progress, pixel):
    """A step and an evaluation are those of the loss that `progress` gives. More than 1: after the schedule."""
    changing = make_step(LossConfig(pixel="l1_then_l2", pixel_switch_at=0.3))
    fixed = make_step(LossConfig(pixel=pixel))
    assert changing(*batch(), 7, progress).terms() == fixed(*batch(), 7).terms()
    for found, expected in zip(changing.networks.parameters(), fixed.networks.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert changing.evaluate(*batch(), progress)[0].terms() == fixed.evaluate(*batch())[0].terms()


def test_the_named_totals_are_the_sums_of_the_named_terms():
    terms = make_step(LossConfig())(*batch(), 0).terms()
    for network in ("generator_st", "generator_ts", "discriminator_s", "discriminator_t"):
        own = {name: value for name, value in terms.items() if name.startswith(network)}
        total = own.pop(f"{network}/total")
        torch.testing.assert_close(sum(own.values()), total)


def test_all_networks_change_and_the_losses_fall():
    step = make_step(LossConfig(), OptimizerConfig(kind="adam", learning_rate=2e-3))
    before = {name: value.clone() for name, value in step.networks.named_parameters()}
    cycles = [float(step(*batch(), number).terms()["generator_st/cycle"]) for number in range(60)]
    unchanged = [name for name, value in step.networks.named_parameters() if torch.equal(value, before[name])]
    # If a layer were blind, only its last norm's β could change. Here all parameters change.
    assert not unchanged
    assert cycles[-1] < 0.85 * cycles[0]


def test_evaluation_changes_nothing_and_draws_nothing():
    step = make_step(LossConfig())
    state = {name: value.clone() for name, value in step.networks.state_dict().items()}
    rng = torch.get_rng_state()
    losses, images = step.evaluate(*batch())
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(value, step.networks.state_dict()[name]) for name, value in state.items())
    assert set(losses.terms()) == set(step(*batch(), 0).terms())
    assert images.cycled_s.shape == (2, 4, 16, 16)


@pytest.mark.parametrize("adversarial", ["mse", "bce", "hinge", "hinge_both", "wgan"])
@pytest.mark.parametrize("pixel", ["l1", "l2"])
@pytest.mark.parametrize("statistics", ["image", "batch"])
def test_every_loss_option_gives_finite_terms(adversarial, pixel, statistics):
    terms = make_step(LossConfig(adversarial=adversarial, pixel=pixel, ssim_statistics=statistics))(*batch(), 0).terms()
    assert all(torch.isfinite(value) for value in terms.values())


def test_bfloat16_autocast_keeps_losses_and_weights_float32():
    networks = Networks(CONFIG)
    step = build_step(
        CONFIG,
        networks,
        build_optimizer(networks.generators.parameters(), OptimizerConfig()),
        build_optimizer(networks.discriminators.parameters(), OptimizerConfig()),
        Numerics(torch.bfloat16),
    )
    terms = step(*(t.float() for t in batch()), 0).terms()
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in terms.values())
    assert all(value.dtype == torch.float32 for value in networks.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize(
    "loss",
    [LossConfig(), LossConfig(penalty="wgan-gp", pool=3, diffaugment=("color", "translation", "cutout"))],
    ids=["default", "random choices"],
)
def test_the_host_waits_for_nothing_in_a_step(loss):
    networks = Networks(CONFIG).cuda().to(memory_format=torch.channels_last)
    step = build_step(
        dataclasses.replace(CONFIG, loss=loss),
        networks,
        build_optimizer(networks.generators.parameters(), OptimizerConfig()),
        build_optimizer(networks.discriminators.parameters(), OptimizerConfig(kind="sgd")),
        Numerics(torch.bfloat16, torch.channels_last),
    )
    images = [image.float().cuda() for image in batch()]
    step(*images, 0)  # compile, and allocate the optimisers' state
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(*images, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
