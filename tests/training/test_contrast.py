"""The method CUT: its loss against the formulas of the paper, and its fast step against the plain one."""

import dataclasses
import math

import pytest
import torch
from test_step import SGD, batch

from vologan_fast.config import (
    Config,
    ConfigError,
    ContrastConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    TrainConfig,
    check,
    to_dict,
)
from vologan_fast.networks import GENERATORS, Networks, build_generator
from vologan_fast.training.build import build_step
from vologan_fast.training.contrast import at_positions, contrastive_losses, positions
from vologan_fast.training.optimizers import build_optimizer

CONFIG = Config(
    generator=GeneratorConfig(width=4, max_width=8, levels=2, dropout=0.3),
    discriminator=DiscriminatorConfig(widths=(4, 4, 8), dropout=0.3),
    contrast=ContrastConfig(patches=20, width=16, weight=0.7, identity=0.4),
    train=TrainConfig(method="cut", step="plain"),
)


def step_of(config, optimizer=SGD):
    torch.manual_seed(0)
    networks = Networks(config).double()
    optimizers = [build_optimizer(networks.optimized[name].parameters(), optimizer) for name in networks.optimized]
    return build_step(config, networks, *optimizers)


def after_step(config, n=2, number=7, **train):
    step = step_of(dataclasses.replace(config, train=dataclasses.replace(config.train, **train)))
    losses = step(*batch(n), number)
    return losses.terms(), {name: parameter.grad for name, parameter in step.networks.named_parameters()}


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_loss_is_equation_3_of_the_paper(temperature):
    """Each term is written with loops over images, levels and positions."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 5, 4), (3, 7, 4), (3, 1, 4)]
    q, k = (
        [
            torch.nn.functional.normalize(torch.randn(s, dtype=torch.float64, generator=generator), dim=-1)
            for s in shapes
        ]
        for _ in range(2)
    )
    expected = []
    for image in range(3):
        of_levels = []
        for level, (_, count, _) in enumerate(shapes):
            of_positions = []
            for p in range(count):
                similar = [math.exp(float(q[level][image, p] @ k[level][image, r]) / temperature) for r in range(count)]
                of_positions.append(-math.log(similar[p] / sum(similar)))
            of_levels.append(sum(of_positions) / count)
        expected.append(sum(of_levels) / len(shapes))
    found = contrastive_losses(q, k, temperature)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("count", [2, 16, 64, 100])
def test_positions_are_different_and_depend_on_the_sample_alone(count):
    features = [torch.zeros(5, 2, 8, 8), torch.zeros(5, 3, 4, 2)]
    keys = torch.arange(5) * 3**20
    found = positions(keys, features, count)
    for level, (index, pixels) in enumerate(zip(found, (64, 8), strict=True)):
        assert index.shape == (5, min(count, pixels))
        for row in index:
            assert len(set(row.tolist())) == len(row)
            assert 0 <= int(row.min()) <= int(row.max()) < pixels
        alone = positions(keys[3:4], [values[:1] for values in features], count)[level]
        assert torch.equal(index[3:4], alone)
    if count == 16:
        assert not torch.equal(found[0][0], found[0][1])
        many = positions(torch.arange(4000), [torch.zeros(4000, 1, 8, 8)], count)[0]
        share = torch.bincount(many.flatten(), minlength=64) / 4000
        # A share is binomial with p = 1/4 and 4,000 draws: σ = 0.0068. None of 64 is 5 σ away.
        assert (share - count / 64).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 4000)


def test_features_at_positions():
    features = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    where = torch.tensor([[0, 19, 7], [3, 3, 11]])
    (found,) = at_positions([features], [where])
    for image in range(2):
        for p in range(3):
            row, column = divmod(int(where[image, p]), 5)
            assert torch.equal(found[image, p], features[image, :, row, column])


@pytest.mark.parametrize("padding", ["zero", "reflection"])
@pytest.mark.parametrize("network", GENERATORS)
def test_the_features_are_those_of_the_translating_pass(network, padding):
    torch.manual_seed(0)
    options = {"network": network, "padding": padding, "residual_blocks": 3, "cardinality": 2, "first_kernel": 7}
    generator = build_generator(dataclasses.replace(CONFIG.generator, **options)).double()
    x = batch()[0]
    keys = torch.arange(2)
    translation, features = generator(x, keys, "also")
    assert torch.equal(translation, generator(x, keys))
    only = generator(x, keys, "only")
    assert all(map(torch.equal, features, only))
    assert features[0] is x
    assert [f.shape[1] for f in features] == generator.feature_widths
    sizes = {"resnet": [16, 8, 4, 4, 4], "unet_zhu": [16, 8, 4]}.get(network, [16, 16, 8, 4])
    assert [f.shape[2:] for f in features] == [(size, size) for size in sizes]


def test_gradients_are_those_of_the_losses_as_written_down():
    """Each network's gradient equals autograd.grad of its own loss, which is composed here term by term."""
    config = dataclasses.replace(
        CONFIG,
        generator=dataclasses.replace(CONFIG.generator, dropout=0.0),
        discriminator=dataclasses.replace(CONFIG.discriminator, dropout=0.0),
        contrast=dataclasses.replace(CONFIG.contrast, patches=10**6),  # all positions, so no draw has to be repeated
    )
    step = step_of(config)
    networks, (s, t) = step.networks, batch()
    terms = step(s, t, 0).terms()  # plain SGD with learning rate 1; the next lines undo the step
    for parameter in networks.parameters():
        parameter.data += parameter.grad
    g, d, h = networks.generator_st, networks.discriminator_t, networks.projector

    def contrast(original, translation):
        total = 0.0
        pairs = zip(g(original, features="only"), g(translation, features="only"), h.levels, strict=True)
        for of_original, of_translation, mlp in pairs:
            k, q = (mlp(f.permute(0, 2, 3, 1).flatten(1, 2)) for f in (of_original.detach(), of_translation))
            k, q = k.detach() / k.detach().norm(dim=-1, keepdim=True), q / q.norm(dim=-1, keepdim=True)
            similar = torch.einsum("npc,nrc->npr", q, k) / config.contrast.temperature
            total = total - torch.log_softmax(similar, dim=2).diagonal(dim1=1, dim2=2).mean()
        return total / len(h.levels)

    fake, same = g(s), g(t)
    adversarial = sum(((z - 1) ** 2).mean() for z in d(fake))
    first, second = contrast(s, fake), contrast(t, same)
    of_g = adversarial + 0.7 * first + 0.4 * second
    of_d = 0.5 * sum(((z - 1) ** 2).mean() for z in d(t)) + 0.5 * sum((z**2).mean() for z in d(fake.detach()))
    logged = {
        "generator_st/adversarial": adversarial,
        "generator_st/contrast": 0.7 * first,
        "generator_st/contrast_identity": 0.4 * second,
        "generator_st/total": of_g,
        "discriminator_t/total": of_d,
    }
    for name, value in logged.items():
        torch.testing.assert_close(terms[name], value.detach(), rtol=1e-10, atol=0, msg=name)
    for network, loss in ((g, of_g), (h, of_g), (d, of_d)):
        expected = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        for (name, parameter), gradient in zip(network.named_parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-11, msg=f"gradient of {name}")


@pytest.mark.parametrize(
    ("micro_batch", "identity", "padding", "options"),
    [
        (0, 0.4, "zero", {}),
        (1, 0.4, "reflection", {"penalty": "r1"}),
        (2, 0.4, "zero", {"penalty": "wgan-gp", "adversarial": "wgan"}),
        (0, 0.0, "reflection", {"diffaugment": ("color", "translation", "cutout")}),
        (2, 0.0, "zero", {"pool": 3, "adversarial": "mse"}),
    ],
)
def test_the_fast_step_equals_the_plain_one(micro_batch, identity, padding, options):
    config = dataclasses.replace(
        CONFIG,
        generator=dataclasses.replace(CONFIG.generator, padding=padding),
        contrast=dataclasses.replace(CONFIG.contrast, identity=identity),
        loss=LossConfig(**{"adversarial": "hinge"} | options),
    )
    assert_equal_steps(config, micro_batch)


def assert_equal_steps(config, micro_batch):
    terms, expected = after_step(config, n=3)
    fast_terms, found = after_step(config, n=3, step="fast", micro_batch=micro_batch)
    assert list(terms) == list(fast_terms)
    assert ("generator_st/contrast_identity" in terms) == (config.contrast.identity > 0)
    for name, value in terms.items():
        torch.testing.assert_close(fast_terms[name], value, rtol=1e-9, atol=1e-12, msg=f"loss {name}")
    for name, gradient in expected.items():
        scale = max(float(g.abs().max()) for other, g in expected.items() if other.split(".")[0] == name.split(".")[0])
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9 * scale, msg=f"gradient of {name}")
        assert scale > 0


def test_evaluation_changes_nothing_and_draws_nothing():
    step = step_of(dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, average=0.9)))
    state = {name: value.clone() for name, value in step.networks.state_dict().items()}
    rng = torch.get_rng_state()
    losses, images = step.evaluate(*batch())
    again, _ = step.evaluate(*batch())
    torch.testing.assert_close(again.terms(), losses.terms(), rtol=0, atol=0)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(value, step.networks.state_dict()[name]) for name, value in state.items())
    assert set(losses.terms()) == set(step(*batch(), 0).terms())
    assert {name: len(rows) for name, rows in images.rows(*batch()).items()} == {"S to T": 2, "T to T": 2}


def test_its_networks():
    networks = Networks(dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, average=0.9)))
    assert [name for name, _ in networks.named_children()] == [
        "generator_st",
        "discriminator_t",
        "projector",
        "average_st",
    ]
    assert list(networks.translators) == [networks.average_st]
    trained = [parameter for of in networks.optimized.values() for parameter in of.parameters()]
    assert len(set(trained)) == len(trained) == len(list(networks.learning.parameters()))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("patches", 1), ("temperature", 0.0), ("weight", -1.0), ("identity", -1.0), ("width", 0)],
)
def test_numbers_that_cannot_work(setting, value):
    config = dataclasses.replace(CONFIG, contrast=dataclasses.replace(CONFIG.contrast, **{setting: value}))
    with pytest.raises(ConfigError, match=rf"--contrast.{setting} is {value}: expected"):
        check(config)


def test_old_configurations_are_those_of_a_cyclegan():
    from vologan_fast.config import from_dict

    values = to_dict(Config())
    del values["contrast"], values["train"]["method"]
    assert from_dict(values) == Config()
