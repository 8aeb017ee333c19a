"""KID and FID by torch-fidelity's network, with a file of random weights that the test makes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from fidelity import import_fidelity
from sensor_images import sensor_images

from vologan_fast.config import ConfigError
from vologan_fast.evaluation.features import Features
from vologan_fast.evaluation.judge import Judge

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write random weights for the network."""
    module = import_fidelity("feature_extractor_inceptionv3")
    path = tmp_path_factory.mktemp("weights") / "random.pth"

    class Random(module.FeatureExtractorInceptionV3):  # type: ignore[name-defined,misc]
        def load_state_dict(self, state_dict: object) -> None:  # type: ignore[override]
            pass

    torch.manual_seed(0)
    torch.save({}, path)
    network = Random("random", ["2048"], feature_extractor_weights_path=str(path))
    for parameter in network.parameters():
        if parameter.ndim == 4:  # otherwise the signal fades on its way through the network
            torch.nn.init.kaiming_normal_(parameter)
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow
def test_a_network_of_random_weights_sees_differences(weights: Path) -> None:
    real = sensor_images(6, 32, 0)
    judge = Judge(real * 0.5, real, resamples=20, more=[Features(weights, CPU)])
    assert {"KID colour", "FID colour", "KID depth", "FID depth"} <= judge.untranslated.values.keys()
    dark, same = judge.untranslated, judge.row("same", real)
    for name in ("FID colour", "FID depth"):
        assert same.values[name].distance.value == pytest.approx(0, abs=1e-3 * dark.values[name].distance.value)
        assert dark.values[name].distance.low > 0 and same.values[name].change.high < 0
    assert dark.values["KID colour"].distance.value > same.values["KID colour"].distance.value


def test_a_file_of_other_weights_is_refused(tmp_path: Path) -> None:
    import_fidelity("feature_extractor_inceptionv3")
    with pytest.raises(
        ConfigError, match=r"none.pth: no such file; expected the weights of torch-fidelity's Inception"
    ):
        Features(tmp_path / "none.pth", CPU)
    other = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(1)}, other)
    with pytest.raises(ConfigError, match=r"other.pth: expected the weights of torch-fidelity's Inception; "):
        Features(other, CPU)
    other.write_bytes(b"not a file of torch")
    with pytest.raises(ConfigError, match=r"other.pth: expected the weights"):
        Features(other, CPU)


def test_code_in_the_file_is_not_run(tmp_path: Path) -> None:
    import_fidelity("feature_extractor_inceptionv3")

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match=r"evil.pth: expected the weights"):
        Features(tmp_path / "evil.pth", CPU)
    assert not (tmp_path / "ran").exists()


def test_without_the_package_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ConfigError, match=r"--features needs torch-fidelity.*pip install 'vologan-fast\[fidelity\]'"):
        Features(tmp_path / "none.pth", CPU)
