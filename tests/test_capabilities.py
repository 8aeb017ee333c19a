"""docs/capabilities.md: each option on it exists, takes the named value, and each named test exists."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
import torch

from vologan_fast import config, export, train, translate
from vologan_fast.networks import build_discriminator, build_generator
from vologan_fast.profile import _parse

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "capabilities.md").read_text()
COMMANDS = {
    "train": {field.name for field in dataclasses.fields(train.Arguments)},
    "translate": {field.name for field in dataclasses.fields(translate.Arguments)},
    "export": {field.name for field in dataclasses.fields(export.Arguments)},
}
QUOTED = [text for text in re.findall(r"`([^`\n]+)`", PAGE) if not text.startswith("python")]
OPTIONS = [text for text in QUOTED if text.startswith("--")]
TESTS = [text for text in QUOTED if text.startswith("test_")]


def rows(page=PAGE):
    """The rows of all tables: lists of cells."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")
    ]


def of_networks():
    """The rows of the table of networks, with its head."""
    return rows(PAGE.split("### Its networks by options")[1].split("## CUT")[0])


def test_each_capability_has_an_option_and_a_test_or_a_reason():
    of_three = [row for row in rows() if len(row) == 3 and row[0] != "capability" and row not in of_networks()]
    assert len(of_three) > 80
    for capability, how, test in of_three:
        assert capability and test, capability
        if how == "–":
            assert len(test) > 5, f"{capability}: expected a reason"
        else:
            assert re.fullmatch(r"`test_[a-z0-9_.]+`", test), f"{capability}: expected a test, found {test}"
            assert "`" in how or how == "", capability


@pytest.mark.parametrize("option", dict.fromkeys(OPTIONS))
def test_an_option_exists_and_takes_the_value(option):
    name, *values = option.removeprefix("--").split()
    name = name.replace("-", "_")
    if name == "preset":
        assert values[0] in config.PRESETS
    elif "." not in name:
        assert any(name in of_command for of_command in COMMANDS.values()), option
    else:
        *sections, field = name.split(".")
        tree = config.to_dict(config.Config())
        for section in sections:
            tree = tree[section]
        assert field in tree, option
        if values:
            tries = [values, values[0]]
            if re.fullmatch(r"[\d.]+", values[0]):
                tries = [type(tree[field])(float(values[0]))] if tree[field] is not None else [float(values[0])]
            assert any(is_accepted(sections, field, value) for value in tries), option


def is_accepted(sections, field, value):
    values = {field: value}
    for section in reversed(sections):
        values = {section: values}
    try:
        config.from_dict(values)
    except config.ConfigError:
        return False
    return True


def test_its_networks_have_its_numbers_of_parameters():
    """Each row of the table of the PyTorch CycleGAN's networks. Its options belong to the one of the two networks."""
    _, *networks = of_networks()
    assert len(networks) == 8
    options = []
    for _, how, count in networks:
        found = [part for quoted in re.findall(r"`(--[^`]+)`", how) for part in quoted.split()]
        options = [*options, *found] if "the same with" in how else found
        settings = _parse(["--preset", "cyclegan-256", *options]).settings
        config.check(settings)
        with torch.device("meta"):
            built = build_generator(settings.generator, 3), build_discriminator(settings.discriminator, 3)
        counts = [sum(parameter.numel() for parameter in network.parameters()) for network in built]
        if found:
            counts = [counts["--discriminator" in how]]
        assert " and ".join(f"{number:,}" for number in counts) == count


def test_each_named_test_exists():
    files = {file.name: file for file in (ROOT / "tests").rglob("test_*.py")}
    functions = {
        node.name
        for file in files.values()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert len(TESTS) > 60
    assert [name for name in TESTS if name not in functions and name not in files] == []
