"""Training with other channels than RGB-D, the same in both domains or different ones."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from test_fast_step import DROPOUT
from vologan_kernels import global_ssim

from vologan_fast.config import (
    CHANNELS,
    PRESETS,
    Config,
    ConfigError,
    DataConfig,
    LossConfig,
    TrainConfig,
    check,
    from_dict,
)
from vologan_fast.data.demo import make_demo
from vologan_fast.networks import Networks
from vologan_fast.train import main
from vologan_fast.training.build import build_step
from vologan_fast.training.losses import StepLosses
from vologan_fast.training.optimizers import build_optimizer

WEIGHTS = {"rgbd": (1, 1, 1, 3), "rgb": (1, 1, 1), "depth": (1,), "grey+depth": (1, 1), "grey": (1,)}
SHAPE = (16, 32)


def step_of(config: Config):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    networks = Networks(config).double()
    optimizers = (
        build_optimizer(part.parameters(), settings)
        for part, settings in (
            (networks.generators, config.generator_optimizer),
            (networks.discriminators, config.discriminator_optimizer),
        )
    )
    return build_step(config, networks, *optimizers)


def batch(config: Config, n: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    counts = [channels.number for channels in config.data.channel_sets.values()]
    return [torch.rand(n, count, *SHAPE, generator=generator, dtype=torch.float64) for count in counts]


def gradients(config: Config, number: int = 7, **train: object) -> tuple[StepLosses, dict[str, torch.Tensor]]:
    step = step_of(dataclasses.replace(config, train=TrainConfig(**train)))  # type: ignore[arg-type]
    losses = step(*batch(config), number)
    return losses, {name: parameter.grad for name, parameter in step.networks.named_parameters()}


def with_channels(channels: object, **loss: object) -> Config:
    data = DataConfig(size=SHAPE, channels=channels)  # type: ignore[arg-type]
    return dataclasses.replace(DROPOUT, data=data, loss=LossConfig(**loss))  # type: ignore[arg-type]


@pytest.mark.parametrize("routing", ["vologan", "cyclegan"])
@pytest.mark.parametrize(
    ("channels", "identity", "depth_gradient"),
    [
        ("rgb", 0.5, 0.0),
        ("depth", 0.5, 0.0),
        ("grey+depth", 0.5, 4.0),
        (("rgbd", "depth"), 0.0, 0.0),
        (("rgbd", "rgb"), 0.0, 4.0),
        (("grey", "rgb"), 0.0, 0.0),
    ],
    ids=str,
)
def test_the_fast_step_is_the_plain_step(
    routing: str, channels: object, identity: float, depth_gradient: float
) -> None:
    config = with_channels(channels, routing=routing, identity=identity)
    of_discriminators = dataclasses.replace(config.discriminator, depth_gradient=depth_gradient)
    config = dataclasses.replace(config, discriminator=of_discriminators)
    losses, expected = gradients(config, step="plain")
    for micro_batch in (0, 2):
        fast_losses, found = gradients(config, step="fast", micro_batch=micro_batch)
        for name, value in losses.terms().items():
            torch.testing.assert_close(fast_losses.terms()[name], value, rtol=1e-9, atol=1e-12, msg=name)
        for name, gradient in expected.items():
            network = name.split(".")[0]
            scale = max(float(g.abs().max()) for other, g in expected.items() if other.split(".")[0] == network)
            assert scale > 0
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9 * scale, msg=name)


@pytest.mark.parametrize("channels", [*CHANNELS, ("rgbd", "depth")], ids=str)
def test_the_cycle_weighs_the_channels(channels: object) -> None:
    """A cycle's term is the weighted sum of the channels' mean errors, and so is 1 − SSIM."""
    config = with_channels(channels, identity=0.0)
    step = step_of(config)
    synthetic, real = batch(config)
    losses, images = step.evaluate(synthetic, real)
    names = (channels, channels) if isinstance(channels, str) else channels
    terms = losses.terms()
    for network, image, cycled, name in (
        ("generator_st", real, images.cycled_t, names[1]),  # type: ignore[index]
        ("generator_ts", synthetic, images.cycled_s, names[0]),  # type: ignore[index]
    ):
        weights = torch.tensor(WEIGHTS[name], dtype=torch.float64)
        wanted = 10 * (weights * (cycled - image).abs().mean((0, 2, 3))).sum()
        torch.testing.assert_close(terms[f"{network}/cycle"], wanted, rtol=1e-9, atol=0)
        assert (f"{network}/identity" in terms) == (names[0] == names[1])  # type: ignore[index]


@pytest.mark.parametrize("method", ["plain", "fast"])
@pytest.mark.parametrize("channels", ["rgbd", ("rgb", "depth")], ids=str)
@pytest.mark.parametrize("pixel", ["l1", "l2", "l1_then_l2"])
@pytest.mark.parametrize("reduction", ["channels", "image", "signed_image"])
def test_the_log_has_the_terms_as_written_down(method: str, channels: object, pixel: str, reduction: str) -> None:
    """Each term and total of the generators is the formula's, for different weights of images of T as well."""
    names = (channels, channels) if isinstance(channels, str) else channels
    same = names[0] == names[1]  # type: ignore[index]
    weights = {"cycle": 10.0, "cycle_t": 7.0, "ssim": 1.5, "ssim_t": 0.5}
    weights |= {"identity": 0.5, "identity_t": 0.25} if same else {"identity": 0.0}
    config = with_channels(channels, pixel=pixel, reduction=reduction, **weights)
    config = dataclasses.replace(
        config,
        generator=dataclasses.replace(config.generator, dropout=0.0),
        discriminator=dataclasses.replace(config.discriminator, dropout=0.0),
        train=TrainConfig(step=method, micro_batch=2 if method == "fast" else 0),  # type: ignore[arg-type]
    )
    check(config)
    step = step_of(config)
    synthetic, real = batch(config)
    st, ts = step.networks.generators
    with torch.no_grad(), step._normalised(step.networks.generators):
        fake_t, fake_s = st(synthetic), ts(real)
        cycled_t, cycled_s = st(fake_s), ts(fake_t)
        same_t, same_s = (st(real), ts(synthetic)) if same else (None, None)
        judged_t, judged_s = step.networks.discriminator_t(fake_t), step.networks.discriminator_s(fake_s)
    power = 1 if pixel == "l1" else 2

    def distance(found: torch.Tensor, image: torch.Tensor, of_channels: tuple[int, ...]) -> torch.Tensor:
        difference = (found - image).abs() * (2 if reduction == "signed_image" else 1)
        if reduction == "channels":
            return (difference.pow(power).mean((0, 2, 3)) * torch.tensor(of_channels, dtype=torch.float64)).sum()
        return difference.pow(power).mean()

    fresh = step_of(config)  # the passes above have moved the vectors of the spectral norm
    terms = fresh(synthetic, real, 7, 0.75).terms()
    for network, image, cycled, remade, judged, name, suffix in (
        ("generator_st", real, cycled_t, same_t, judged_t, names[1], "_t"),  # type: ignore[index]
        ("generator_ts", synthetic, cycled_s, same_s, judged_s, names[0], ""),  # type: ignore[index]
    ):
        wanted = {
            "adversarial": sum((1 - z).square().mean() for z in judged),
            "cycle": weights[f"cycle{suffix}"] * distance(cycled, image, WEIGHTS[name]),
            "ssim": weights[f"ssim{suffix}"] * global_ssim(cycled, image, WEIGHTS[name]),
        }
        if remade is not None:
            wanted["identity"] = weights[f"identity{suffix}"] * distance(remade, image, WEIGHTS[name])
        wanted["total"] = sum(wanted.values())
        found = {term: terms[f"{network}/{term}"] for term in wanted}
        assert len([term for term in terms if term.startswith(network)]) == len(wanted)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)


def test_recorded_weights_are_kept() -> None:
    recorded = from_dict({"loss": {"channel_weights": [1, 2, 3, 4]}})
    check(recorded)
    step = step_of(dataclasses.replace(DROPOUT, loss=recorded.loss))
    assert step.config.channel_weights == (1, 2, 3, 4)
    for name, weights in WEIGHTS.items():
        assert step_of(with_channels(name)).config.channel_weights == weights


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (Config(data=DataConfig(channels="rgb"), loss=LossConfig(channel_weights=(1, 1, 1, 3))), "expected 3 numbers"),
        (Config(data=DataConfig(channels=("rgbd", "depth"))), r"--loss.identity is 0.5: expected 0 .* \(rgbd depth\)"),
        (
            Config(
                data=DataConfig(channels=("rgbd", "depth")),
                loss=LossConfig(identity=0, channel_weights=(1, 1, 1, 3)),
            ),
            "--loss.channel-weights is .*: expected no numbers",
        ),
        (
            dataclasses.replace(
                PRESETS["demo"], data=DataConfig(size=64, channels=("rgb", "grey")), loss=LossConfig(identity=0)
            ),
            "--generator.output is residual",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(config: Config, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(config)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=5, size=32)


TINY = ["--preset", "demo", "--generator.width", "4", "--discriminator.widths", "4", "4", "4"]
TINY += ["--discriminator.down-widths", "4", "4", "4", "--device", "cpu", "--train.report-every", "-1"]


def test_two_domains_train_and_resume_to_the_same_bits(demo: Path, tmp_path: Path) -> None:
    options = [*TINY, "--data", str(demo), "--data.size", "32", "16", "--data.channels", "rgbd", "depth"]
    options += ["--loss.identity", "0", "--generator.output", "hard_sigmoid"]
    assert main([*options, "--run-dir", str(tmp_path / "a"), "--max-steps", "3"]) == 0
    assert main([*options, "--run-dir", str(tmp_path / "b"), "--max-steps", "1"]) == 0
    assert main([*options, "--run-dir", str(tmp_path / "b"), "--max-steps", "3", "--resume"]) == 0
    weights = [
        (run / "checkpoints/step-00000003/generator_st.safetensors").read_bytes()
        for run in (tmp_path / "a", tmp_path / "b")
    ]
    assert weights[0] == weights[1]


@pytest.fixture(scope="module")
def depth_run(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "depth"
    options = ["--data", str(demo), "--data.size", "32", "--data.channels", "depth", "--max-steps", "1"]
    assert main([*TINY, *options, "--run-dir", str(run)]) == 0
    return run


def test_a_generator_of_other_channels_is_a_module(depth_run: Path) -> None:
    import vologan_fast

    model = vologan_fast.load(depth_run, device="cpu")
    assert model.channels == 1 and model(torch.rand(1, 1, 20, 30)).shape == (1, 1, 20, 30)
    with pytest.raises(ValueError, match=r"expected \(N, 1, H, W\)"):
        model(torch.rand(1, 4, 20, 30))


def test_a_run_recorded_before_has_its_weights_in_a_repeated_command(demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [*TINY, "--data", str(demo), "--data.size", "32", "--run-dir", str(run)]
    assert main([*options, "--max-steps", "1"]) == 0
    file = run / "config.json"
    recorded = json.loads(file.read_text())
    settings = next(value for value in recorded.values() if isinstance(value, dict) and "loss" in value)
    settings["loss"]["channel_weights"] = [1.0, 1.0, 1.0, 3.0]  # as every version before wrote it
    del settings["data"]["channels"], recorded["crc32"]
    file.write_text(json.dumps(recorded))
    assert main([*options, "--max-steps", "2", "--resume"]) == 0
