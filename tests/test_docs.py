"""README and docs: every command in them runs, and what they say about files is so."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from avops.cli.main import main, parser
from small_project import SmallProject

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [
        line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()
    ]
    return [line for line in lines if line]


def test_the_readmes_commands_and_python_run_in_the_demos_directory(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what the demo makes, and nothing else."""
    shutil.rmtree(project.directory / "hf")
    ran = 0
    for command in commands():
        words = shlex.split(command)
        if words[0] == "avops":
            assert main(words[1:]) == 0, command
            ran += 1
    assert ran >= 25
    (block,) = blocks("python")
    exec(compile(block, "README", "exec"), {})


def test_the_readmes_other_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands():
        words = shlex.split(command)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), command
        elif words[0] == "pip":
            # What these install is tested in test_packaging.py.
            assert words[1] == "install", command
            assert words[2] in (".", ".[score]", ".[search]", ".[align]"), command
        else:
            assert words[0] == "avops", command


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_of_every_page_are_read(page: Path) -> None:
    """Verbs and options of all commands in blocks are those that there are."""
    text = page.read_text(encoding="utf-8")
    for block in re.split(r"^ *```.*$", text, flags=re.MULTILINE)[1::2]:
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("avops ") and "…" not in line:
                words = shlex.split(line.split("  #")[0])
                assert parser().parse_args(words[1:]).verb, line


def test_the_command_table_names_every_verb() -> None:
    actions = [action for action in parser()._actions if action.dest == "verb"]
    verbs = set(actions[0].choices or ())
    rows = re.findall(r"^\| (`avops [^|]*) \|", README, flags=re.MULTILINE)
    named = {verb for row in rows for verb in re.findall(r"`avops (\w+)", row)}
    assert named == verbs


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 220


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_toml_example_is_valid() -> None:
    from avops.recipe import parse_project

    text = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    project = parse_project(block, file="avops.toml")
    assert project.avs["fin"].kind == "aligned"
    assert project.template is not None


def test_the_items_example_is_valid(tmp_path: Path) -> None:
    from avops.score import load_items

    text = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```json\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "items.jsonl").write_text(block)
    assert load_items(tmp_path / "items.jsonl").levels == ("exp", "gen", "avd")


def test_environment_variables_are_documented() -> None:
    """env.py's table is the code's."""
    from avops import env

    documented = set(re.findall(r"\| (AVOPS_\w+)", env.__doc__ or ""))
    used = set(re.findall(r'"(AVOPS_\w+)"', Path(env.__file__).read_text(encoding="utf-8")))
    assert documented == used


def test_no_tracked_file_names_a_machine() -> None:
    done = subprocess.run(
        ["git", "grep", "-nIE", r"/(work|home|root|opt)/[a-z]"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith("tests/test_docs.py")]
    assert not lines
