"""`avops generate`: what is asked, what is answered, and where it is shown."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from avops.cli import generate_session, output
from avops.cli.main import main
from cli.test_terminal import on_terminal
from small_project import SmallProject

ASK = "med question 1?"
KEYS = {
    "base", "recipe", "av", "question", "text", "finish", "ids", "prompt_tokens", "seconds",
    "tokens_per_second", "device", "dtype", "sampling",
}  # fmt: skip


def result(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    """The one JSON value on stdout."""
    capsys.readouterr()
    assert main(["generate", *argv, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert captured.err == ""
    return json.loads(captured.out)


def process(*argv: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "avops", "generate", *argv],
        check=False,
        capture_output=True,
        **options,
    )


# ---- what is answered


def test_answers_are_those_of_the_merged_checkpoint(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    """Token for token what transformers generates from what `avops merge` wrote."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    terms = ["--av", "med:-1", "fin:.5", "leg:.3"]
    data = result(capsys, *terms, ASK, "--max-tokens", "60")
    assert main(["merge", "hf", *terms, "-o", "out"]) == 0
    model = AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained("out")
    chat = [{"role": "user", "content": ASK}, {"role": "assistant", "content": "x"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False).removesuffix("x</s>")
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        theirs = model.generate(
            **prompt, do_sample=False, max_new_tokens=60, eos_token_id=[1, 2], pad_token_id=1
        )
    assert data["ids"] == theirs[0, prompt["input_ids"].shape[1] :].tolist()
    assert data["prompt_tokens"] == prompt["input_ids"].shape[1]
    assert data["text"] == tokenizer.decode(data["ids"], skip_special_tokens=True).lstrip()


def test_comparing_equals_separate_runs(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = ["--max-tokens", "30", "--temperature", ".7", "--seed", "5"]
    recipes = ["med:-1 fin:.5", "base", "fin:.5 leg:-1 med:2", "med:0"]
    together = result(capsys, ASK, *drawn, "--compare", *recipes)
    assert [one["recipe"] for one in together] == recipes
    for recipe, one in zip(recipes, together, strict=True):
        av = [] if recipe == "base" else ["--av", *recipe.split()]
        alone = result(capsys, *av, ASK, *drawn)
        assert {**alone, "seconds": 0, "tokens_per_second": 0} == {
            **one, "seconds": 0, "tokens_per_second": 0
        }  # fmt: skip
    texts = {one["recipe"]: one["text"] for one in together}
    assert texts["med:0"] == texts["base"]
    assert len(set(texts.values())) == 3


def test_the_result_as_json(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    data = result(capsys, "--av", "med:-1", "fin:1/3", ASK, "--max-tokens", "7")
    assert set(data) == KEYS
    assert (data["base"], data["recipe"]) == ("base.safetensors", "med:-1 fin:1/3")
    assert data["av"] == {"med": "-1", "fin": "1/3"}
    assert (data["question"], data["finish"], len(data["ids"])) == (ASK, "length", 7)
    assert data["sampling"] == {"max_tokens": 7, "temperature": 0.0, "top_p": 1.0, "seed": 0}
    assert data["tokens_per_second"] > 0
    other = result(capsys, ASK, "--temperature", "1", "--top-p", ".9", "--seed", "3")
    assert other["sampling"] == {"max_tokens": 200, "temperature": 1.0, "top_p": 0.9, "seed": 3}
    assert other["recipe"] == "base"
    seeds = [result(capsys, ASK, "--temperature", "1", "--seed", str(n))["ids"] for n in (3, 3, 4)]
    assert seeds[0] == seeds[1] != seeds[2]
    narrow = result(capsys, ASK, "--dtype", "bf16")
    assert (data["dtype"], narrow["dtype"]) == ("f32", "bf16")
    (only,) = result(capsys, ASK, "--compare", "med:1")
    assert only["recipe"] == "med:1"


def test_questions_of_a_file(talkative: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    queries = [json.loads(line)["query"] for line in Path("items.jsonl").read_text().splitlines()]
    short = ["--max-tokens", "5"]
    data = result(capsys, "--file", "items.jsonl", "--limit", "3", *short)
    assert [one["question"] for one in data] == queries[:3]
    assert data[1]["ids"] == result(capsys, queries[1], *short)["ids"]
    assert len(result(capsys, "--file", "items.jsonl", *short)) == len(queries)
    Path("q.txt").write_text("\n".join(queries[:2]))
    assert main(["generate", "--file", "q.txt", *short, "--compare", "med:1", "base"]) == 0
    captured = capsys.readouterr()
    compared = result(capsys, "--file", "q.txt", *short, "--compare", "med:1", "base")
    texts = [one["text"] for one in compared]
    assert captured.out == (
        f"> {queries[0]}\n\n[med:1]\n{texts[0]}\n\n[base]\n{texts[1]}\n\n"
        f"> {queries[1]}\n\n[med:1]\n{texts[2]}\n\n[base]\n{texts[3]}\n"
    )
    assert captured.err.splitlines()[0] == "loading base.safetensors"
    assert captured.err.splitlines()[1].startswith("4 answers, 20 tokens in ")
    assert captured.err.endswith(" tokens/s); 4 cut by --max-tokens 5\n")


def test_templates(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    chat = result(capsys, ASK)
    typed = result(capsys, ASK, "--template", "<s>[INST] {query}[/INST] {response}</s>")
    assert typed["ids"] == chat["ids"]
    raw = result(capsys, f"<s>[INST] {ASK}[/INST] ", "--raw")
    assert raw["ids"] == chat["ids"]
    assert raw["text"].lstrip() == chat["text"]
    broken = result(capsys, ASK, "--template", "<s>{query}\\n{response}</s>")
    assert broken["prompt_tokens"] == 1 + len(ASK) + 1
    toml = Path("avops.toml").read_text()
    Path("avops.toml").write_text('template = "<s>{query}\\n{response}</s>"\n' + toml)
    assert result(capsys, ASK)["ids"] == broken["ids"]


def test_positions_end_an_answer(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "word " * 49, "--raw", "--max-tokens", "500"]) == 0
    assert "cut by the model's positions" in capsys.readouterr().err


# ---- where it is shown


def test_a_pipe_gets_the_text_and_nothing_else(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    data = result(capsys, "--av", "med:-1", ASK)
    done = process("--av", "med:-1", input=f"{ASK}\n".encode())
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == data["text"] + "\n"
    first, last = done.stderr.decode().splitlines()
    assert first == "loading base.safetensors"
    assert last.startswith(f"{len(data['ids'])} tokens in ")


def test_pieces_are_flushed_as_they_come(
    talkative: SmallProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write is one piece, and the pieces add up."""

    class Pipe(io.StringIO):
        def __init__(self) -> None:
            super().__init__()
            self.sent: list[str] = []

        def flush(self) -> None:
            self.sent.append(self.getvalue()[len("".join(self.sent)) :])

    pipe = Pipe()
    monkeypatch.setattr(sys, "stdout", pipe)
    assert main(["generate", ASK, "--max-tokens", "40"]) == 0
    assert "".join(pipe.sent) == pipe.getvalue()
    assert len([piece for piece in pipe.sent if piece]) > 10


def test_an_interrupt_keeps_what_was_written(
    talkative: SmallProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = result(capsys, ASK)["text"]
    pieces = []

    def piece(text: str) -> None:
        pieces.append(text)
        shown(text)
        if len(pieces) == 8:
            raise KeyboardInterrupt

    shown = output.piece
    monkeypatch.setattr(generate_session.output, "piece", piece)
    assert main(["generate", ASK]) == 130
    captured = capsys.readouterr()
    begun = "".join(pieces[:8])
    assert whole.startswith(begun)
    assert captured.out == begun + "\n" * (begun[-1] != "\n")
    assert captured.err.splitlines()[-1].startswith("avops generate: interrupted")


@pytest.fixture
def endless(talkative: SmallProject) -> list[str]:
    """Arguments of an answer that takes minutes."""
    config = json.loads(Path("config.json").read_text())
    Path("config.json").write_text(json.dumps(config | {"max_position_embeddings": 10**6}))
    return [sys.executable, "-m", "avops", "generate", ASK, "--max-tokens", "999999"]


def test_a_signal_in_the_middle_of_an_answer(endless: list[str]) -> None:
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    signal.signal(signal.SIGINT, inherited)
    assert running.stdout is not None
    begun = os.read(running.stdout.fileno(), 64)
    running.send_signal(signal.SIGINT)
    rest, errors = running.communicate(timeout=60)
    assert begun
    assert running.returncode == 130
    assert (begun + rest).endswith(b"\n")
    assert b"Traceback" not in errors


def test_a_reader_that_goes_away(endless: list[str]) -> None:
    running = subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stderr is not None
    with running.stderr:
        assert os.read(running.stdout.fileno(), 16)
        running.stdout.close()
        assert running.wait(60) == 1
        assert running.stderr.read() == b"loading base.safetensors\n"


def test_side_by_side_on_a_terminal(
    talkative: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["generate", ASK, "--compare", "med:-1", "med:.5", "--max-tokens", "40"]
    code, wide = on_terminal(*argv, columns=80)
    assert code == 0, wide
    head = [line for line in wide.split("\n") if "med:-1" in line and "med:.5" in line]
    assert head
    assert "[med:-1]" not in wide
    assert "2 answers, " in wide
    code, narrow = on_terminal(*argv, columns=60)
    assert code == 0, narrow
    assert "[med:-1]" in narrow
    assert not [line for line in narrow.split("\n") if "med:-1" in line and "med:.5" in line]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def small_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Now stdout: 80 columns and 10 lines, on which everything is drawn at once."""
    made = Terminal()
    monkeypatch.setattr(sys, "stdout", made)
    for name, value in (("COLUMNS", "80"), ("LINES", "10"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(output, "_FRAME", 0.0)
    return made


def test_what_columns_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was drawn stays after an interrupt, and markup and escapes are text."""
    terminal = small_terminal(monkeypatch)
    assert output.fits_columns(2)
    assert not output.fits_columns(3)
    with pytest.raises(KeyboardInterrupt), output.columns(["one", "two"]) as add:
        for word in ("alpha ", "beta ", "gamma "):
            add(0, word)
        add(1, "delta\x1b[31m [bold]epsilon[/bold]")
        raise KeyboardInterrupt
    last = terminal.getvalue().split("one")[-1]
    assert "alpha beta gamma" in last
    assert r"delta\x1b[31m [bold]epsilon[/bold]" in last
    monkeypatch.setenv("TERM", "dumb")
    assert not output.fits_columns(2)


def test_long_columns_show_their_ends_and_then_all(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = small_terminal(monkeypatch)
    lines = [f"line {number:02}" for number in range(30)]
    with output.columns(["one", "two"]) as add:
        for line in lines:
            add(0, line + "\n")
        running = terminal.getvalue().split("one")[-1]
    whole = terminal.getvalue().split("one")[-1]
    assert re.findall(r"line \d\d", running) == lines[-6:]
    assert re.findall(r"line \d\d", whole) == lines


def test_a_terminal_obeys_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        output.tame("a\x1b[2J\r\x9b\x07é 🙂\u200d\n\tb") == "a\\x1b[2J\\r\\x9b\\x07é 🙂\u200d\n\tb"
    )
