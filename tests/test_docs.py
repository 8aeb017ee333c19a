"""The docs: no links are dead, the site builds, and a dead link or anchor fails the build."""

import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import vologan_kernels

ROOT = Path(__file__).parents[1]
ON_GITHUB = sorted([*ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.md")])
"""Pages that only GitHub shows. The build of the site checks the pages in docs/."""


def links(page: Path) -> list[str]:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page: Path) -> set[str]:
    """Return the anchors of the page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", ON_GITHUB, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_pages_outside_the_site_lead_somewhere(page):
    dead = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


def test_the_page_about_reliability_names_tests_that_exist():
    """Each row of its tables ends with a test."""
    rows = re.findall(r"^\|(.+)\|$", (ROOT / "docs/reliability.md").read_text(), flags=re.MULTILINE)
    named = [row.rsplit("|", 1)[1].strip() for row in rows if set(row) - set("|-") and not row.startswith(" fault ")]
    assert len(named) > 30
    for name in named:
        file, _, function = name.strip("`").partition("::")
        (path,) = (ROOT / "tests").rglob(file)
        assert re.search(rf"^def {function}\(", path.read_text(), flags=re.MULTILINE), name


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site from a folder as `make docs` does."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT, folder)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_api_page_has_every_public_name_and_no_module(site):
    inventory = (site / "objects.inv").read_bytes()
    lines = zlib.decompress(inventory[inventory.index(b"zlib.\n") + 6 :]).decode().splitlines()
    entries = [line.split() for line in lines]
    roles = {name: role for name, role, _, place, _ in entries if place.startswith("api/kernels/")}
    assert {name.rpartition(".")[2] for name in roles} >= set(vologan_kernels.__all__)
    # If a function and a module have the same name, the page would show the module, with all names in it.
    assert "py:module" not in roles.values()


def test_the_site_loads_nothing_from_other_hosts(site):
    elsewhere = re.compile(r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//|<link[^>]* href="(?:https?:)?//')
    assert not [page for page in site.rglob("*.html") if elsewhere.search(page.read_text())]


def test_dead_links_and_dead_anchors_fail_the_build(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in ("mkdocs.yml", "kernels", "vologan_fast"):
        (tmp_path / name).symlink_to(ROOT / name)
    with (tmp_path / "docs" / "index.md").open("a") as index:
        index.write("[gone](no-such-page.md) and [gone](training.md#no-such-heading)\n")
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode == 1
    assert "no-such-page.md" in built.stderr
    assert "no-such-heading" in built.stderr
