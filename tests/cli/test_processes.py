"""Commands as processes of their own: what they import, and streams that fail them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from small_project import SmallProject

WORD_FOR_WORD = ["merge", "base.safetensors", "--av", "med:-1", "fin:-1", "leg:.6"]


def process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


HEAVY = "[m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules]"


def test_merging_imports_neither_torch_nor_transformers(project: SmallProject) -> None:
    argv = [*WORD_FOR_WORD, "-o", "x.safetensors"]
    done = process(
        f"import sys; import avops; from avops.cli.main import main; main({argv}); "
        f"main(['inspect']); main(['extract', 'base.safetensors', 'aligned/med.safetensors', "
        f"'-o', 'y.safetensors']); print('heavy:', {HEAVY})"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_help_imports_next_to_nothing() -> None:
    done = process(
        "import sys; from avops.cli.main import parser; parser().format_help(); "
        "print([m for m in ('numpy', 'torch', 'rich') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_output_that_is_not_unicode(project: SmallProject) -> None:
    done = process(
        "from avops.cli.main import entry; import sys; "
        "sys.argv = ['avops', 'merge', '--av', 'med:1']; entry()",
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0, done.stderr
    assert Path("merged.safetensors").exists()


@pytest.mark.parametrize("verb", ["inspect", "merge", "score"])
def test_a_reader_that_goes_away(project: SmallProject, verb: str) -> None:
    """The pipe has no reader before the first write: it ends as a failure, without a word of it.

    With buffers, as a user has it: so little text is written when it is flushed, not before.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    reader, writer = os.pipe()
    os.close(reader)
    argv = WORD_FOR_WORD if verb == "merge" else [verb]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "avops", *argv],
            check=False,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    finally:
        os.close(writer)
    assert done.returncode == 1
    for word in ("Traceback", "Error", "error", "Exception", "Broken"):
        assert word not in done.stderr
    assert Path("merged.safetensors").exists() == (verb == "merge")
