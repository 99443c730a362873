"""`avops score` with several recipes, pairs, prompting: what is measured, and how it is shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from avops.cli.main import main
from avops.cli.score import NORMS
from avops.score import compare, load_items, read_table, summarise
from cli.test_terminal import on_terminal
from small_project import SmallProject

SEVERAL = ["--recipe", "base", "med:-1 fin:.5", "med:.5,1"]
NAMES = ["base", "med:-1 fin:.5", "med:.5", "med:1"]


def result(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    """The one JSON object on stdout."""
    capsys.readouterr()
    assert main(["score", *argv, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    return json.loads(captured.out)


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main(["score", *argv]) == 0
    return capsys.readouterr().out


def write_pairs(path: str = "pairs.jsonl", **more: Any) -> None:
    pairs = [
        {"prompt": f"question {n}?", "chosen": "a kind answer", "rejected": "no " * (n + 1)} | more
        for n in range(5)
    ]
    pairs[4]["rejected"] = pairs[4]["chosen"]
    Path(path).write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


# ---- what is measured


def test_several_recipes_are_each_alone(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    data = result(capsys, *SEVERAL)
    assert [found["candidate"] for found in data["candidates"]] == NAMES
    assert (data["levels"], data["norm"]) == (["exp", "gen", "avd"], "token")
    assert data["interrupted"] is False
    for found in data["candidates"]:
        terms = [f"{name}:{lam}" for name, lam in found["av"].items()]
        alone = result(capsys, *(["--av", *terms] if terms else []))
        assert found["domains"] == alone["domains"]
        assert found["tokens"] == alone["tokens"]
    shares = [found["domains"]["all"]["levels"] for found in data["candidates"]]
    assert shares[0] != shares[1]


def test_one_table_per_recipe(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = shown(capsys, *SEVERAL).split("\n\n")
    assert len(blocks) == 4
    assert blocks[1].startswith("base.safetensors + med:-1 fin:.5 on items.jsonl\nPref.Acc per")
    data = result(capsys, *SEVERAL)
    for block, found in zip(blocks, data["candidates"], strict=True):
        for line in block.splitlines()[3:]:
            domain, n, *rest = line.split()
            part = found["domains"][domain]
            assert (int(n), int(rest[-2])) == (part["n"], part["ties"])
            assert rest[-1] == (part["dominant"] or "none")
            assert rest[:-2:3] == [
                f"{level['accuracy']:.2f}".removeprefix("0") for level in part["levels"].values()
            ]
        assert max(map(len, block.splitlines())) <= 80


def test_comparisons(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    data = result(capsys, *SEVERAL, "--compare", "--table", "t.npz")
    table, items = read_table("t.npz"), load_items("items.jsonl")
    assert [part["after"] for part in data["comparisons"]] == NAMES[1:]
    for number, part in enumerate(data["comparisons"], start=1):
        changes = compare(table.scores[0], table.scores[number], items)
        assert part["before"] == "base"
        assert part["changes"] == [change.to_dict() for change in changes]
    out = shown(capsys, *SEVERAL, "--compare")
    assert "med:-1 fin:.5 against base\nsame items; p of the exact sign test on won" in out
    moved = next(c for c in data["comparisons"][0]["changes"] if c["gained"] + c["lost"] > 1)
    line = next(
        line.split()
        for line in out.split("med:-1 fin:.5 against base")[1].splitlines()
        if line.split()[:2] == [moved["domain"], moved["level"]]
    )
    assert line[4:] == [str(moved["gained"]), str(moved["lost"]), f"{moved['p']:.2g}"]


def test_norms(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    from avops.score import norms

    assert tuple(norms.NORMS) == NORMS
    text = Path("items.jsonl").read_text()
    Path("items.jsonl").write_text(text.replace("depends", "d\u00e9pends"))  # bytes, characters
    main(["score", "--table", "t.npz"])
    table, items = read_table("t.npz"), load_items("items.jsonl")
    seen = set()
    for norm in NORMS:
        data = result(capsys, "--norm", norm)
        summary = summarise(table.under(norm, 0), items).to_dict()
        assert data["norm"] == norm
        assert data["domains"] == summary["domains"]
        seen.add(json.dumps(data["domains"]["all"]["levels"]))
        out = shown(capsys, "--norm", norm)
        assert f"\n{norms.NORMS[norm]} (nats)\n" in out
        assert (f"by {norms.NORMS[norm]}\n" in out) == (norm != "token")
    assert len(seen) == len(NORMS)


def test_some_of_the_items(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    data = result(capsys, "--domain", "leg,med", "--limit", "2", "--table", "t.csv")
    assert {name: part["n"] for name, part in data["domains"].items()} == {
        "med": 2, "leg": 2, "all": 4,
    }  # fmt: skip
    lines = Path("t.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 * 3
    assert {line.split(",")[3] for line in lines[1:]} == {"1", "2", "9", "10"}


def test_bf16_and_batches(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    means = []
    for how in ([], ["--dtype", "bf16"], ["--batch-tokens", "50"]):
        data = result(capsys, *how)
        means.append(data["domains"]["all"]["levels"]["exp"]["mean_logprob"])
    # bf16 has 8 bits: far off f32, yet within a few units of its last place times two layers.
    assert 1e-6 < abs(means[1] - means[0]) < 0.1
    # f32 in another order of sums.
    assert abs(means[2] - means[0]) < 1e-4


# ---- preference pairs


def test_pairs(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    """avops.toml's levels are for its own data; two levels have a margin."""
    write_pairs(source="x", domain="safety")
    data = result(capsys, "--data", "pairs.jsonl")
    part = data["domains"]["safety"]
    assert list(part["levels"]) == ["chosen", "rejected"]
    assert (part["n"], part["ties"]) == (5, 1)
    pair = data["pairwise"]["safety"]
    assert pair["accuracy"] == part["levels"]["chosen"]["accuracy"]
    means = {name: level["mean_logprob"] for name, level in part["levels"].items()}
    # Both are means of five f64 differences of f32 scores of a few nats.
    assert pair["margin"] == pytest.approx(means["chosen"] - means["rejected"], abs=1e-14)
    main(["score", "--data", "pairs.jsonl"])
    captured = capsys.readouterr()
    assert "note: pairs.jsonl: not read: the fields source" in captured.err
    assert captured.out.splitlines()[2].split() == [
        "domain", "items", "chosen", "rejected", "ties", "dominant",
    ]  # fmt: skip
    assert re.search(rf"^safety .* {pair['margin']:+.4f}$", captured.out, re.MULTILINE)


def test_pairs_and_levels(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs()
    data = result(capsys, "--data", "pairs.jsonl", "--levels", "rejected,chosen")
    assert list(data["domains"]["pairs"]["levels"]) == ["rejected", "chosen"]
    assert main(["score", "--data", "pairs.jsonl", "--levels", "exp,gen"]) == 2
    assert "field 'responses.exp': got only chosen, rejected" in capsys.readouterr().err
    # Items of another file still have the project's levels.
    items = Path("items.jsonl").read_text()
    Path("more.jsonl").write_text(items.replace('"exp":', '"odd": "x", "exp":'))
    assert result(capsys, "--data", "more.jsonl")["levels"] == ["exp", "gen", "avd"]


# ---- the prompting baseline


def test_prompting(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.toml").write_text('exp = "be deep"\ngen = "be plain"\navd = "be silent"\n')
    data = result(capsys, "--prompting", "--instructions", "own.toml")
    found = data["candidates"]
    assert [c["candidate"] for c in found] == [
        "base", "base, told exp", "base, told gen", "base, told avd",
    ]  # fmt: skip
    assert [c["instruction"] for c in found] == [None, "exp", "gen", "avd"]
    assert [c["text"] for c in found] == [None, "be deep", "be plain", "be silent"]
    assert found[0]["domains"] == result(capsys)["domains"]
    # An instruction adds its bytes and two line breaks to each of 36 chats (a byte is a token).
    base = found[0]["tokens"]["tokens"]
    assert [c["tokens"]["tokens"] - base for c in found[1:]] == [36 * 9, 36 * 10, 36 * 11]
    assert len({c["domains"]["all"]["levels"]["exp"]["mean_logprob"] for c in found}) == 4


def test_the_prompting_grid(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--prompting", "--recipe", "med:-1", "--compare"]
    out, data = shown(capsys, *argv), result(capsys, *argv)
    grid, recipe, *comparisons = out.split("\n\n")
    assert grid.splitlines()[1:3] == [
        "Pref.Acc under each level's instruction (*: dominant)",
        "domain    told                   exp              gen              avd  ties",
    ]
    rows = grid.splitlines()[3:]
    told = [re.findall(r"\b(?:nothing|exp|gen|avd)\b", row) for row in rows]
    assert told == [["nothing"], ["exp"], ["gen"], ["avd"]] * 4
    for number, domain in enumerate(("med", "fin", "leg", "all")):
        for row, found in zip(rows[4 * number :], data["candidates"][:4], strict=False):
            part = found["domains"][domain]
            cells = re.findall(r"(\d?\.\d\d) \[.{3,4}, .{3,4}\](\*?)", row)
            assert [share for share, _ in cells] == [
                f"{level['accuracy']:.2f}".removeprefix("0") for level in part["levels"].values()
            ]
            assert [star == "*" for _, star in cells] == [
                name == part["dominant"] for name in part["levels"]
            ]
    assert recipe.startswith("base.safetensors + med:-1 on items.jsonl")
    assert [block.splitlines()[0] for block in comparisons] == [
        f"{name} against base"
        for name in ("base, told exp", "base, told gen", "base, told avd", "med:-1")
    ]


# ---- on a terminal


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_tables_fit_the_terminal(project: SmallProject, columns: int) -> None:
    recipes = ["--recipe", "base", "med:-1"]
    code, seen = on_terminal("score", "--prompting", *recipes, "--compare", columns=columns)
    assert code == 0
    tables = seen[seen.index("base.safetensors on") :]
    assert max(len(line.rstrip()) for line in tables.splitlines()) <= columns
    assert "…" not in tables
    assert len(re.findall(r"\d?\.\d\d \[\d?\.\d\d, \d?\.\d\d\]", tables)) == (
        12 if columns == 40 else 12 + 48
    )
    assert "scoring" in seen
    assert "tokens" in seen
    assert bool(re.search(r"ties +level +Pref\.Acc", tables)) == (columns == 40)


def test_many_levels_get_rows_of_their_own(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in Path("items.jsonl").read_text().splitlines()]
    for item in lines:
        item["responses"] = {f"level{n}": f"answer {'x' * n}" for n in range(6)}
    Path("items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    argv = ["--levels", ",".join(f"level{n}" for n in range(6))]
    out, data = shown(capsys, *argv), result(capsys, *argv)
    table = out.split("\n\n")[0].splitlines()
    assert table[1:3] == ["Pref.Acc [95 % Wilson interval]", "(number of items; *: dominant)"]
    assert table[3].split() == ["domain", "ties", "level", "Pref.Acc"]
    assert len(table) == 4 + 4 * 6
    assert max(map(len, table)) <= 80
    for number, (domain, part) in enumerate(data["domains"].items()):
        rows = table[4 + 6 * number :][:6]
        assert rows[0].startswith(f"{domain} ({part['n']})")
        for row, (name, level) in zip(rows, part["levels"].items(), strict=True):
            share = f"{level['accuracy']:.2f}".removeprefix("0")
            assert f" {name}  " in row
            assert re.search(rf" {re.escape(share)} \[[^\]]+\]", row)
            assert row.endswith("*") == (name == part["dominant"])


def test_progress_in_a_pipe_is_lines(
    project: SmallProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from avops.cli import output

    plain = output._plain_progress
    monkeypatch.setattr(output, "_plain_progress", lambda *a: plain(*a, every=0.0))
    main(["score", *SEVERAL])
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("scoring: ")]
    assert len(lines) >= 4
    tokens = 4 * 1650  # four candidates
    pattern = rf"scoring: [\d,]+ of {tokens:,} tokens, [\d,]+/s, \d+ s left"
    assert all(re.fullmatch(pattern, line) for line in lines)
