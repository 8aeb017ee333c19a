"""The code in docs/kernels*.md runs, top to bottom, and prints what the page says."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["kernels.md", "kernels-training.md"])
def test_the_code_in_a_guide_runs_and_prints_what_it_says(page, capsys):
    text = (DOCS / page).read_text()
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, namespace)
    assert capsys.readouterr().out == "".join(re.findall(r"```text\n(.*?)```", text, re.DOTALL))
