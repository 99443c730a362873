"""The rooms: imports go only downward, and the README's tree is the real one."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "avops"

# room: the rooms it may import. `version`, `errors`, `env`, `dtypes` are the ground floor.
GROUND = {"version", "errors", "env", "dtypes"}
ALLOWED = {
    "version": set(),
    "errors": set(),
    "env": {"errors"},
    "dtypes": set(),
    "recipe": GROUND,
    "disk": GROUND,
    "kernels": GROUND,
    "stream": GROUND | {"recipe", "disk", "kernels"},
    "knobs": GROUND | {"recipe", "disk", "kernels"},
    "score": GROUND | {"kernels"},
    "search": GROUND | {"recipe", "disk", "knobs", "score"},
    "align": GROUND | {"recipe", "disk", "stream", "knobs", "score", "search"},
    "demo": GROUND | {"disk", "score"},
    "paper": GROUND | {"recipe", "disk", "score", "search", "align", "demo"},
    "cli": GROUND
    | {"recipe", "disk", "kernels", "stream", "knobs", "score", "search", "align", "demo", "paper"},
    "__main__": {"cli"},
    "__init__": {"version"},
}
# third-party package: the only files that may import it.
ONLY_IN = {
    "transformers": {"score/model.py", "align/trainer.py"},
    "trl": {"align/trainer.py"},
    "matplotlib": {"search/figure.py", "search/report/canvas.py"},
    "optuna": {"search/strategies/samplers.py"},
    "openai": {"align/data/endpoint.py", "align/endpoint_judge.py"},
    "py3langid": {"align/data/clean.py"},
    "ray": {"search/fanout/ray_pool.py"},
    "rich": {"cli/output.py"},
    "argparse": {path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / "cli").glob("*.py")},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that ``path`` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found.add(module)
            if module == "avops":
                found |= {f"avops.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_downward(path: Path) -> None:
    here = room(path)
    used = {name.split(".")[1] for name in imports(path) if name.startswith("avops.")}
    used -= {"__version__", "_native", here}
    assert used <= ALLOWED[here]


@pytest.mark.parametrize("package", ONLY_IN)
def test_packages_with_one_home(package: str) -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if any(name.split(".")[0] == package for name in imports(path))
    }
    assert users <= ONLY_IN[package]


def test_one_reader_of_the_environment() -> None:
    users = {p.name for p in FILES if re.search(r"os\.(environ|getenv)", p.read_text())}
    assert users == {"env.py"}


def test_only_the_cli_prints() -> None:
    pattern = re.compile(r"(?<![\w.])print\(|sys\.std(out|err)")
    users = {room(path) for path in FILES if pattern.search(path.read_text(encoding="utf-8"))}
    assert users <= {"cli"}


@pytest.mark.parametrize(
    "module",
    ["avops", "avops.cli.main", "avops.cli.merge", "avops.recipe", "avops.score", "avops.stream"],
)
def test_light_imports(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print([m for m in ('numpy', 'torch', 'transformers', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist() -> None:
    import avops

    for name in avops.__all__:
        assert getattr(avops, name) is not None
    assert dir(avops) == sorted(avops.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        avops.nothing  # noqa: B018


def test_files_stay_small() -> None:
    # Without a single #include, so that NVRTC takes it as it is.
    one_piece = {"csrc/combine.cu"}
    long = {
        path.relative_to(ROOT).as_posix(): count
        for path in [*FILES, *(ROOT / "csrc").iterdir(), *(ROOT / "tests").rglob("*.py")]
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert set(long) <= one_piece
    assert len((ROOT / "setup.py").read_text().splitlines()) <= 120


def test_no_rooms_without_a_meaning() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in FILES if path.stem in vague or path.parent.name in vague]


def test_native_abi_is_python_free() -> None:
    """csrc knows no torch; only what the module's files include knows Python."""
    for path in (ROOT / "csrc").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "torch/" not in text
        assert ("Python.h>" in text) == (path.name == "arguments.h")
        python = any(f'"{name}"' in text for name in ("arguments.h", "engine_module.h"))
        assert not python or "module" in path.stem


def test_the_readme_tree_is_the_real_one() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.split("```tree\n")[1].split("```")[0]
    named = {
        line.split()[0].rstrip("/") for line in block.splitlines() if line and not line.isspace()
    }
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=False, capture_output=True, text=True
    ).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    top = {path.split("/")[0] for path in tracked} - {".gitignore"}
    rooms = {f"avops/{p.split('/')[1]}" for p in tracked if p.startswith("avops/")}
    assert named == (top - {"avops"}) | (rooms - {"avops/py.typed", "avops/__main__.py"})
