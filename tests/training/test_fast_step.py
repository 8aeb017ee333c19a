"""The fast step has the losses and gradients of the plain step, with the same dropout for each sample."""

import dataclasses
import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from test_step import CONFIG, SGD, batch, step_of
from torch.utils._python_dispatch import TorchDispatchMode

from vologan_fast.config import (
    ConfigError,
    DataConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    OptimizerConfig,
    TrainConfig,
    check,
)
from vologan_fast.networks import Networks, Numerics, layout_by_device
from vologan_fast.training.build import build_step
from vologan_fast.training.capture import CapturedStep
from vologan_fast.training.optimizers import build_optimizer

DROPOUT = dataclasses.replace(
    CONFIG,
    generator=dataclasses.replace(CONFIG.generator, dropout=0.3),
    discriminator=dataclasses.replace(CONFIG.discriminator, dropout=0.3),
)
MODES = ("none", "default")


def gradients(config, n=2, number=7, **train):
    """Return the losses and each parameter's gradient after one step. The networks are the same in every call."""
    step = step_of(dataclasses.replace(config, train=TrainConfig(**train)))
    losses = step(*batch(n), number)
    return losses.terms(), {name: parameter.grad for name, parameter in step.networks.named_parameters()}


def assert_equal(config, n=2, **train):
    """Compare the fast and the plain step in float64. Gradient tolerances are relative to the network's largest."""
    terms, expected = gradients(config, n, step="plain")
    fast_terms, found = gradients(config, n, step="fast", **train)
    assert list(terms) == list(fast_terms)
    for name, value in terms.items():
        torch.testing.assert_close(fast_terms[name], value, rtol=1e-9, atol=1e-12, msg=f"loss {name}")
    for name, gradient in expected.items():
        scale = max(float(g.abs().max()) for other, g in expected.items() if other.split(".")[0] == name.split(".")[0])
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9 * scale, msg=f"gradient of {name}")
        assert scale > 0


@pytest.mark.parametrize("routing", ["vologan", "cyclegan"])
@pytest.mark.parametrize("micro_batch", [0, 1, 2, 5])
def test_losses_and_gradients_are_those_of_the_plain_step(routing, micro_batch):
    """This includes parts of the batch, the last of which may be smaller."""
    config = dataclasses.replace(DROPOUT, loss=LossConfig(routing=routing))
    assert_equal(config, n=3, micro_batch=micro_batch)


@pytest.mark.parametrize("routing", ["vologan", "cyclegan"])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "reflection", "first_kernel": 7, "attention": "elementwise"},
        {"attention": "elementwise_untransposed", "down": "average_pooling"},
        {"attention": "matrix", "activation": "gelu"},
        {"spectral_norm": False, "norm_min_scale": 0.0, "activation": "elu"},
    ],
    ids=["vologan-512", "untransposed attention", "matrix attention", "no spectral norm"],
)
def test_for_every_option_of_the_networks(routing, options):
    config = dataclasses.replace(
        DROPOUT,
        data=DataConfig(size=16),
        generator=GeneratorConfig(width=4, max_width=8, levels=2, attention_size=16, **options),
        discriminator=DiscriminatorConfig(widths=(4, 4, 8), down_widths=(4, 4, 8), **options),
        loss=LossConfig(routing=routing),
    )
    assert_equal(config)


@pytest.mark.parametrize("adversarial", ["mse", "bce", "hinge", "hinge_both", "wgan"])
@pytest.mark.parametrize("pixel", ["l1", "l2"])
@pytest.mark.parametrize("statistics", ["image", "batch"])
def test_for_every_option_of_the_losses(adversarial, pixel, statistics):
    loss = LossConfig(adversarial=adversarial, pixel=pixel, ssim_statistics=statistics)
    assert_equal(dataclasses.replace(CONFIG, loss=loss))


AUGMENTATIONS = ("color", "translation", "cutout")
CHOICES = {
    "routing": ("vologan", "cyclegan"),
    "adversarial": ("mse", "bce", "hinge", "hinge_both", "wgan"),
    "penalty": ("none", "r1", "wgan-gp"),
    "penalty_every": (1, 2),
    "pool": (0, 2),
    "diffaugment": ((), AUGMENTATIONS, AUGMENTATIONS[:1]),
    "pixel": ("l1", "l2", "l1_then_l2"),
    "reduction": ("channels", "image", "signed_image"),
    "cycle_t": (None, 3.0),
    "identity_t": (None, 0.0),
    "ssim_t": (None, 0.2),
    "identity_every": (1, 2),
    "micro_batch": (0, 1, 2),
}
"""Options of the losses, and `train.micro_batch`."""


def covering(choices):
    """Return combinations in which each pair of values of two options occurs. Greedy: each row covers what it can."""
    names = list(choices)
    missing = {
        frozenset(((a, x), (b, y))) for a, b in itertools.combinations(names, 2) for x in choices[a] for y in choices[b]
    }
    rows = []
    while missing:
        row = dict(min(missing, key=lambda pair: sorted(map(str, pair))))
        for name in names:
            if name not in row:
                row[name] = max(
                    choices[name],
                    key=lambda value: sum(frozenset(((name, value), item)) in missing for item in row.items()),
                )
        rows.append({name: row[name] for name in names})
        missing -= {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
    return rows


@pytest.mark.parametrize("row", covering(CHOICES), ids=lambda row: " ".join(map(str, row.values())))
def test_for_every_pair_of_options_of_the_losses(row):
    """Three steps, so that the pool is full and lazy terms come and go. The rate is small: no rounding error grows."""
    options = dict(row)
    micro_batch = options.pop("micro_batch")
    config = dataclasses.replace(DROPOUT, loss=LossConfig(**options))
    steps = []
    for train in (TrainConfig(step="plain"), TrainConfig(micro_batch=micro_batch)):
        step = step_of(dataclasses.replace(config, train=train), dataclasses.replace(SGD, learning_rate=1e-3))
        terms = [step(*batch(3), number, progress).terms() for number, progress in ((4, 0.0), (5, 0.4), (6, 0.5))]
        steps.append((step, terms))
    (plain, terms), (fast, fast_terms) = steps
    torch.testing.assert_close(fast_terms, terms, rtol=1e-9, atol=1e-12)
    assert ("discriminator_s/penalty" in terms[1]) == (row["penalty"] != "none" and row["penalty_every"] == 1)
    names = [name for name, _ in plain.networks.named_parameters()]
    for name, expected, found in zip(names, plain.networks.parameters(), fast.networks.parameters(), strict=True):
        network = name.split(".")[0]
        scale = max(float(p.grad.abs().max()) for p in getattr(plain.networks, network).parameters())
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-9 * scale, msg=f"gradient of {name}")


@pytest.mark.parametrize("routing", ["vologan", "cyclegan"])
def test_with_activations_made_again(routing):
    assert_equal(dataclasses.replace(DROPOUT, loss=LossConfig(routing=routing)), recompute=2, micro_batch=1)


@pytest.mark.parametrize("routing", ["vologan", "cyclegan"])
@pytest.mark.parametrize("number", [8, 9])
def test_with_an_identity_every_other_step(routing, number):
    """Step 8 has an identity with twice the weight, and step 9 has none, in the plain and in the fast step."""
    lazy = dataclasses.replace(DROPOUT, loss=LossConfig(routing=routing, identity_every=2))
    terms, found = gradients(lazy, number=number, step="plain")
    fast_terms, fast = gradients(lazy, number=number, step="fast", micro_batch=1)
    torch.testing.assert_close(fast_terms, terms, rtol=1e-9, atol=1e-12)
    weight = 1.0 if number == 8 else 0.0
    _, exact = gradients(
        dataclasses.replace(DROPOUT, loss=LossConfig(routing=routing, identity=weight)), number=number, step="plain"
    )
    assert ("generator_st/identity" in terms) == (number == 8)
    for name, gradient in exact.items():
        scale = max(float(gradient.abs().max()), 1e-3)
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9 * scale)
        torch.testing.assert_close(fast[name], gradient, rtol=1e-9, atol=1e-8 * scale)


@pytest.fixture
def backend(monkeypatch):
    """Return a function that sets the backend of torch.compile. Inductor would take a minute."""

    def choose(name):
        compiled = torch.nn.Module.compile
        monkeypatch.setattr(
            torch.nn.Module, "compile", lambda self, mode, **options: compiled(self, backend=name, **options)
        )
        torch._dynamo.reset()

    return choose


@pytest.mark.slow
def test_each_network_is_one_graph_and_is_never_compiled_again(backend):
    from torch._dynamo.utils import counters

    backend("aot_eager")
    counters.clear()
    expected, step = (step_of(dataclasses.replace(DROPOUT, train=TrainConfig(compile=mode))) for mode in MODES)
    for number in range(3):
        losses = [of.terms() for of in (expected(*batch(), number), step(*batch(), number))]
        torch.testing.assert_close(*losses)
        # Two graphs per network: a generator has two batch sizes; a discriminator runs with and without gradients of
        # its weights.
        assert counters["stats"]["unique_graphs"] == 8
        step.evaluate(*(images[:1] for images in batch()))
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("penalty", ["r1", "wgan-gp"])
def test_a_penalty_runs_uncompiled_in_a_compiled_step(backend, penalty):
    """A compiled backward has no second derivative. The other passes stay compiled, without new graphs."""
    from torch._dynamo.utils import counters

    backend("aot_eager")
    counters.clear()
    config = dataclasses.replace(DROPOUT, loss=LossConfig(penalty=penalty, penalty_every=2))
    expected, step = (step_of(dataclasses.replace(config, train=TrainConfig(compile=mode))) for mode in MODES)
    for number in range(3):
        losses = [of(*batch(), number).terms() for of in (expected, step)]
        torch.testing.assert_close(*losses)
        assert ("discriminator_t/penalty" in losses[1]) == (number != 1)
        assert counters["stats"]["unique_graphs"] == 8


def test_networks_that_do_not_compile_run_as_they_are_with_one_warning(backend):
    def fails(graph, inputs):
        raise RuntimeError("no compiler found")

    backend(fails)
    expected, step = (step_of(dataclasses.replace(DROPOUT, train=TrainConfig(compile=mode))) for mode in MODES)
    with pytest.warns(UserWarning, match="run uncompiled .*no compiler found.*--train.compile none") as caught:
        found = [step(*batch(), number).terms() for number in range(2)]
    assert len(caught) == 1
    torch.testing.assert_close(found, [expected(*batch(), number).terms() for number in range(2)])


def test_dropout_follows_from_the_step_and_the_seed():
    first, _ = gradients(DROPOUT, number=1, step="fast")
    again, _ = gradients(DROPOUT, number=1, step="fast")
    later, _ = gradients(DROPOUT, number=2, step="fast")
    other, _ = gradients(DROPOUT, number=1, step="fast", seed=1)
    assert all(first[name] == again[name] for name in first)
    assert first["generator_st/total"] != later["generator_st/total"] != other["generator_st/total"]


@pytest.mark.parametrize(
    "loss",
    [LossConfig(), LossConfig(penalty="wgan-gp", pool=9, diffaugment=AUGMENTATIONS)],
    ids=["default", "random choices"],
)
def test_parts_of_a_batch_on_two_processes_add_up(loss):
    """With `first_sample`, means over the processes are the gradients of the whole batch, with the same dropout.

    So are the penalty's places and the augmentation. A process has its own image pool, which is not full yet here.
    """

    class Gathered:
        def __init__(self):
            self.complete = []

        def start(self, parameters):
            self.complete += [parameter.grad.clone() for parameter in parameters]

        def finish(self):
            pass

    config = dataclasses.replace(DROPOUT, loss=loss, train=TrainConfig())
    synthetic, real = batch(4)
    whole = step_of(config)
    whole(synthetic, real, 3)
    halves = []
    for rank in range(2):
        half = slice(2 * rank, 2 * rank + 2)
        step = step_of(config)
        step.first_sample, step.reducer = 2 * rank, Gathered()
        step(synthetic[half], real[half], 3)
        halves.append(step.reducer.complete)
    networks = whole.networks
    order = [networks.generator_st, networks.generator_ts, networks.discriminator_s, networks.discriminator_t]
    parameters = [parameter for network in order for parameter in network.parameters()]
    assert len(parameters) == len(halves[0])
    for parameter, first, second in zip(parameters, *halves, strict=True):
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close((first + second) / 2, parameter.grad, rtol=1e-9, atol=1e-9 * max(scale, 1e-3))


def test_bfloat16_errs_as_the_plain_step_does():
    """The two steps' gradient errors against float32 differ less than the plain step's own errors between steps."""

    def gradient(kind, precision, number):
        step = step_of(dataclasses.replace(DROPOUT, train=TrainConfig(step=kind)))
        step.networks.float()
        step.precision = precision
        step(*(images.float() for images in batch(4)), number)
        return torch.cat([parameter.grad.flatten() for parameter in step.networks.parameters()])

    errors = {"plain": [], "fast": []}
    for number in range(3):
        truth = gradient("plain", torch.float32, number)
        for kind, of_kind in errors.items():
            of_kind.append(float((gradient(kind, torch.bfloat16, number) - truth).norm() / truth.norm()))
    spread = max(errors["plain"]) - min(errors["plain"])
    assert all(abs(fast - plain) < spread for plain, fast in zip(*errors.values(), strict=True)), errors


class Casts(TorchDispatchMode):
    """Count how often each tensor is cast to bfloat16."""

    def __init__(self):
        super().__init__()
        self.of = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.of[args[0].data_ptr()] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("routing", ["vologan", "cyclegan"])
def test_a_weight_is_cast_once_a_step(routing):
    """A generator runs in two phases, and so does a discriminator. autocast does not keep its weights while frozen."""
    config = dataclasses.replace(
        CONFIG,
        generator=dataclasses.replace(CONFIG.generator, spectral_norm=False),
        discriminator=dataclasses.replace(CONFIG.discriminator, spectral_norm=False),
        loss=LossConfig(routing=routing),
    )
    step = step_of(config)
    step.networks.float()
    step.precision = torch.bfloat16
    with Casts() as casts:
        step(*(images.float() for images in batch()), 0)
    weights = {name: p for name, p in step.networks.named_parameters() if p.dim() == 4}
    found = {name: casts.of[p.data_ptr()] for name, p in weights.items()}
    assert found == {name: 1 if name.startswith("generator") else 2 for name in weights}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"train": TrainConfig(micro_batch=-1)}, "micro-batch is -1: expected 0 for all"),
        ({"train": TrainConfig(micro_batch=1), "loss": LossConfig(ssim_statistics="batch")}, "moments run over the"),
        ({"train": TrainConfig(micro_batch=1, step="plain")}, "0 with --train.step plain"),
        ({"loss": LossConfig(identity_every=0)}, "identity-every is 0: expected at least 1"),
        ({"loss": LossConfig(penalty_every=0)}, "penalty-every is 0: expected at least 1"),
        ({"loss": LossConfig(penalty_weight=-1.0)}, "penalty-weight is -1.0: expected at least 0"),
        ({"loss": LossConfig(pixel_switch_at=2.0)}, "pixel-switch-at is 2.0: expected a fraction from 0 to 1"),
        ({"loss": LossConfig(pool=-1)}, "pool is -1: expected 0 for none, or a number of images"),
        ({"loss": LossConfig(diffaugment=("color", "color"))}, "expected each name at most once"),
        ({"train": TrainConfig(recompute=3)}, r"recompute is 3: expected a number of generator.levels \(2\)"),
    ],
)
def test_what_does_not_go_together_is_refused(change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check(dataclasses.replace(CONFIG, **change))


class Replayed(CapturedStep):
    """A captured step whose replays run the step, on the CPU."""

    def _beside(self, *arguments):
        return self.step(*arguments)

    def _capture(self, plan):
        captured = SimpleNamespace(losses=None)

        def replay():
            captured.losses = self.step.run(*self._inputs, plan)

        captured.graph = SimpleNamespace(replay=replay)
        return captured


@pytest.mark.filterwarnings("error:the step cannot be captured")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("routing", ["vologan", "cyclegan"])
@pytest.mark.parametrize(
    "options",
    [{}, {"penalty": "r1", "penalty_every": 2}, {"pool": 3}, {"diffaugment": AUGMENTATIONS, "penalty": "wgan-gp"}],
    ids=str,
)
def test_a_captured_step_is_the_step(device, routing, options):
    """This includes other images in each step, a change of the learning rate, and an identity every other step.

    The steps run in float64, because roundings differ: an atomic sum has no fixed order. On the CPU, weights that
    differ by 4 roundings make the losses of 16 such steps differ by up to about 10⁻¹¹. The tolerance is 100 times that,
    and far below the effect of a wrong replay.
    """
    config = dataclasses.replace(DROPOUT, loss=LossConfig(routing=routing, identity_every=2, **options))
    steps, layout = [], layout_by_device(torch.device(device))
    for cuda_graph in (False, True):
        torch.manual_seed(0)
        networks = Networks(config).double().to(device=device, memory_format=layout)
        steps.append(
            build_step(
                dataclasses.replace(config, train=TrainConfig(cuda_graph=cuda_graph, compile="none")),
                networks,
                build_optimizer(networks.generators.parameters(), OptimizerConfig(learning_rate=1e-3)),
                build_optimizer(networks.discriminators.parameters(), OptimizerConfig(kind="sgd")),
                Numerics(layout=layout),
            )
        )
    plain, captured = steps[0], steps[1] if device == "cuda" else Replayed(steps[1])
    images = [image.double().to(device) for image in batch()]
    for number in range(16):
        if number == 11:
            for step in (plain, captured.step):
                for group in step.generator_optimizer.param_groups:
                    group["lr"] = 5e-4
        of_step = [image.roll(number, 3) for image in images]
        expected, found = (step(*of_step, number).terms() for step in (plain, captured))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    plans = Counter(plain.plan(number, 0.0) for number in range(16))
    assert set(captured._graphs) == {plan for plan, count in plans.items() if count > 3}
