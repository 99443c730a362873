"""The pipeline against a scripted endpoint: what comes out depends on the answers alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from avops.align.data import (
    Chat,
    Cleaning,
    DataSet,
    Persona,
    Settings,
    Shares,
    Tree,
    contents,
    publish,
)
from avops.align.data.synth import SPLITS, split
from avops.errors import DataError, OutputError, UserError
from avops.score import load_items
from fake_endpoint import FakeEndpoint, Reply, completion, error, usual

Run = Callable[..., tuple[DataSet, Any]]


def files_of(data: DataSet, settings: Settings) -> dict[str, bytes]:
    return contents(data, settings, endpoint="http://somewhere/v1", sources=[])


def entries(data: DataSet) -> list[Any]:
    return [entry for name in SPLITS for entry in data.splits[name]]


def test_a_data_set_is_what_the_answers_say(
    run: Run, settings: Settings, server: FakeEndpoint, tmp_path: Path
) -> None:
    data, endpoint = run()
    # roots, a list for each of 2, a list of queries for 6 personas in 2 domains, 3 levels of each
    assert endpoint.attempts == 1 + 2 + 12 + 36
    assert {stage: used.requests for stage, used in data.usage.items()} == {
        "personas": 3,
        "queries": 12,
        "responses": 36,
    }
    assert data.usage["responses"].prompt_tokens == 360
    made = entries(data)
    assert len(made) == 12
    for entry in made:
        assert json.loads(usual(f"QUERIES 1 {settings.templates.domains[entry.query.domain]} "
                                f"{entry.query.persona.text}")) == [entry.query.text]  # fmt: skip
        for level, text in entry.responses.items():
            word = level.upper()
            assert any(
                text == usual(f"{word} {n} paragraph{'s' if n > 1 else ''} {entry.query.text}")
                for n in range(1, 6)
            )
    assert data.models == ("fake-1",)
    publish(tmp_path / "out", files_of(data, settings), force=False)
    items = load_items(tmp_path / "out" / "train.jsonl")
    assert items.levels == ("exp", "gen", "avd")
    assert {item.id for item in items} == {entry.query.id for entry in data.splits["train"]}


def test_paragraphs_are_drawn_for_each_response(run: Run, server: FakeEndpoint) -> None:
    run()
    counts = [p.split()[1] for p in server.prompts if p.split()[0] in ("EXP", "GEN", "AVD")]
    assert set(counts) == {"1", "2", "3", "4", "5"}  # of 36 draws
    by_query: dict[str, set[str]] = {}
    for prompt in server.prompts:
        if prompt.split()[0] in ("EXP", "GEN", "AVD"):
            by_query.setdefault(prompt.split(" ", 3)[3], set()).add(prompt.split()[1])
    assert len(by_query) == 12
    assert any(len(drawn) == 3 for drawn in by_query.values())  # each level draws its own
    assert "EXP 1 paragraphs" not in " ".join(server.prompts)


def test_the_order_of_arrival_does_not_matter(
    run: Run, settings: Settings, server: FakeEndpoint
) -> None:
    expected = files_of(run(journal="one", concurrency=1)[0], settings)
    order = random.Random(0)
    server.script = lambda prompt, _: Reply(
        body=completion(usual(prompt)), delay=order.random() / 20
    )
    assert files_of(run(journal="two", concurrency=8)[0], settings) == expected
    server.script = lambda _, before: (
        error(429, "slow", retry_after_ms="1") if before == 0 else None
    )
    server.forget()
    assert files_of(run(journal="three", concurrency=8)[0], settings) == expected


def test_the_same_run_again_asks_for_nothing(
    run: Run, settings: Settings, server: FakeEndpoint
) -> None:
    first = files_of(run()[0], settings)
    server.forget()
    data, endpoint = run()
    assert files_of(data, settings) == first
    assert (endpoint.attempts, server.bodies) == (0, [])


def test_more_personas_cost_only_their_own(
    run: Run, settings: Settings, server: FakeEndpoint
) -> None:
    few = tuple(Persona(f"person {word}", "f") for word in ("one", "two", "three"))
    own = replace(settings, tree=Tree(0, 0, 1))
    before = {e.query.id: e for e in entries(run(own, few)[0])}
    server.forget()
    after = {e.query.id: e for e in entries(run(own, (Persona("person four", "f"), *few))[0])}
    assert len(server.bodies) == 2 + 6
    assert before.items() <= after.items()


def test_an_edited_level_costs_only_that_level(
    run: Run, settings: Settings, server: FakeEndpoint
) -> None:
    run()
    server.forget()
    files = {**settings.templates.files, "level-gen.txt": b"GEN anew {paragraphs} {query}"}
    edited = replace(settings, templates=replace(settings.templates, files=files))
    run(edited)
    assert len(server.bodies) == 12
    assert all(prompt.startswith("GEN anew") for prompt in server.prompts)


def test_other_seeds_draw_other_paragraphs_and_splits(run: Run, settings: Settings) -> None:
    one, two = (run(replace(settings, seed=seed))[0] for seed in (1, 2))
    assert {e.query.id for e in entries(one)} == {e.query.id for e in entries(two)}
    assert {e.query.id for e in one.splits["test"]} != {e.query.id for e in two.splits["test"]}
    assert {str(e.responses) for e in entries(one)} != {str(e.responses) for e in entries(two)}


def test_the_tree_grows_from_every_persona_of_a_round(run: Run, settings: Settings) -> None:
    data, _ = run(replace(settings, tree=Tree(2, 2, 2), domains=("med",)))
    people = [person for person, _ in data.personas]
    assert [sum(p.round == number for p in people) for number in range(3)] == [2, 4, 8]
    by_id = {p.id: p for p in people}
    for person in people:
        if person.round:
            assert person.parent is not None
            assert by_id[person.parent].round == person.round - 1
            assert person.text in usual(f"RELATED 2 {by_id[person.parent].text}")
    assert Tree(2, 2, 2).size == 14
    assert Tree().size == 5 + 25 + 125 + 625


def test_everything_that_is_dropped_is_counted(
    run: Run, settings: Settings, server: FakeEndpoint
) -> None:
    known = tuple(Persona(text, "f") for text in [*"abcdefghijkl", " A "])
    own = replace(settings, tree=Tree(0, 0, 1), domains=("med",), queries=2)
    lists = {
        "a": '["what of a?", "what of a again?"]',
        "b": '["What  of A?", "what of b?"]',  # one of them is there already
        "c": '["what of c?"]',  # one too few
        "d": '["what of d?", "and d?", "more d?"]',  # one too many
        "e": '["что делать с этим?", "what of e?"]',
        "f": "no list at all",
        "g": '["", "what of g?"]',
        "h": '```json\n["what of h?", "and h?"]\n```',
        "i": '{"queries": ["what of i?"]}',
    }
    replies = {
        "what of a?": {"EXP": completion("cut off in the mid", finish="length")},
        "what of a again?": {"GEN": completion("  ")},
        "what of b?": {"EXP": completion("I cannot help with that."), "GEN": completion("Он")},
        "what of c?": {"AVD": completion("I cannot help with that.")},
        "what of d?": {"EXP": completion(None, finish="content_filter")},
        "and d?": {"EXP": completion("Same  text"), "GEN": completion("same text")},
        "what of e?": {"EXP": completion("tool", finish="tool_calls")},
        "what of h?": {"EXP": completion("half \ud800")},
    }

    def script(prompt: str, _before: int) -> Reply | None:
        if prompt.startswith("QUERIES"):
            who = prompt.rpartition(" ")[2]
            return Reply(body=completion(lists.get(who, f'["what of {who}?", "and {who}?"]')))
        level, _, rest = prompt.partition(" ")
        body = replies.get(rest.partition(" ")[2].partition(" ")[2], {}).get(level)
        return None if body is None else Reply(body=body)

    server.script = script
    data, _ = run(own, known)
    counts = {stage: {k: v for k, v in c.items() if v} for stage, c in data.counts.items()}
    assert counts["personas"] == {"from files": 13, "from files twice": 1}
    assert counts["queries"] == {
        "lists asked for": 12,
        "unreadable: not JSON": 3,
        "unreadable: no list of texts": 3,
        "unreadable: an empty text or half a surrogate pair in the list": 3,
        "lists given up": 3,
        "texts missing in lists": 1,
        "texts more than asked for": 1,
        "queries": 17,
        "dropped: the same query twice": 1,
        "dropped: another script": 1,
    }
    assert counts["responses"] == {
        "responses": 45,
        "dropped: truncated": 1,
        "dropped: empty": 1,
        "dropped: a refusal": 1,
        "dropped: another script": 1,
        "dropped: declined by the endpoint": 1,
        "dropped: not finished": 1,
        "dropped: half a surrogate pair": 1,
    }
    assert counts["items"] == {
        "queries": 15,
        "dropped: a level is missing": 6,
        "dropped: two levels say the same": 1,
        "kept": 8,
    }
    assert sum(counts["splits"].values()) == 8
    kept = {entry.query.text for entry in entries(data)}
    assert "what of c?" in kept  # declining is what its avoidance is for


def test_an_unreadable_list_may_be_read_the_second_time(
    run: Run, settings: Settings, server: FakeEndpoint
) -> None:
    server.script = lambda prompt, before: (
        Reply(body=completion("[")) if prompt.startswith("ROOTS") and before < 2 else None
    )
    data, _ = run()
    assert data.counts["personas"]["unreadable: not JSON"] == 2
    assert data.counts["personas"]["lists given up"] == 0
    assert len(entries(data)) == 12
    assert data.usage["personas"].requests == 5
    server.forget()
    assert len(entries(run()[0])) == 12
    assert not server.bodies


def test_nothing_left_is_an_error(run: Run, settings: Settings, server: FakeEndpoint) -> None:
    server.script = lambda prompt, _: (
        Reply(body=completion("cut", finish="length")) if prompt.startswith("EXP") else None
    )
    with pytest.raises(DataError, match=r"no items are left .*dropped: truncated: 12"):
        run()


def test_answers_without_a_count_of_tokens(
    run: Run, settings: Settings, server: FakeEndpoint
) -> None:
    server.script = lambda prompt, _: Reply(body={**completion(usual(prompt)), "usage": None})
    data, _ = run()
    assert data.usage["responses"].unknown == 36
    assert data.usage["responses"].completion_tokens == 0


@pytest.mark.parametrize(
    ("count", "shares", "expected"),
    [
        (100, Shares(), (78, 2, 20)),
        (1000, Shares(), (776, 24, 200)),
        (3, Shares(), (1, 1, 1)),
        (2, Shares(), (2, 0, 0)),
        (1, Shares(), (1, 0, 0)),
        (10, Shares(0.0, 0.0), (10, 0, 0)),
        (10, Shares(0.5, 0.0), (5, 0, 5)),
    ],
)
def test_shares_of_personas(count: int, shares: Shares, expected: tuple[int, ...]) -> None:
    people = dict.fromkeys(Persona(f"person {i}", "f") for i in range(count))
    parts = split(people, shares, seed=1)
    assert set(parts) == set(people)
    assert tuple(list(parts.values()).count(name) for name in SPLITS) == expected
    assert split(dict(reversed(people.items())), shares, seed=1) == parts
    if count >= 10:
        assert split(people, shares, seed=2) != parts or shares.test == 0


def test_no_persona_is_in_two_splits(run: Run, settings: Settings) -> None:
    data, _ = run(replace(settings, queries=3))
    seen = [{e.query.persona.id for e in data.splits[name]} for name in SPLITS]
    assert all(seen)
    assert sum(map(len, seen)) == len(set().union(*seen)) == 6
    for persona, name in data.personas:
        assert name is not None
        assert persona.id in seen[SPLITS.index(name)]


def test_the_manifest_says_what_was_done(run: Run, settings: Settings) -> None:
    data, _ = run()
    files = files_of(data, settings)
    manifest = json.loads(files["manifest.json"])
    assert manifest["settings"]["model"] == "fake"
    assert manifest["settings"]["seed"] == 1
    assert manifest["settings"]["templates"]["sha256"] == settings.templates.digest()
    assert manifest["files"]["train.jsonl"]["lines"] == len(data.splits["train"])
    assert list(files) == [*(f"{s}.jsonl" for s in SPLITS), "personas.jsonl", "manifest.json"]
    assert manifest["usage"]["responses"]["requests"] == 36


def test_publishing_again_changes_nothing(run: Run, settings: Settings, tmp_path: Path) -> None:
    files = files_of(run()[0], settings)
    out = tmp_path / "out"
    assert publish(out, files, force=False) == list(files)
    stamps = {name: (out / name).stat().st_mtime_ns for name in files}
    assert publish(out, files, force=False) == []
    assert {name: (out / name).stat().st_mtime_ns for name in files} == stamps
    (out / "test.jsonl").write_text("mine\n")
    (out / "train.jsonl").unlink()
    with pytest.raises(OutputError, match=r"test.jsonl: exists already, from other settings"):
        publish(out, files, force=False)
    assert not (out / "train.jsonl").exists()  # nothing was written before the refusal
    assert publish(out, files, force=True) == ["train.jsonl", "test.jsonl"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"domains": ("chem",)}, "--domains chem: not in"),
        ({"domains": ()}, "--domains : expected different names"),
        ({"domains": ("med", "med")}, "--domains med,med: expected different names"),
        ({"queries": 0}, "--queries 0: expected 1 or more"),
        ({"paragraphs": (0, 3)}, "--paragraphs 0-3: expected a range"),
        ({"paragraphs": (4, 3)}, "--paragraphs 4-3"),
    ],
)
def test_settings_are_checked(settings: Settings, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        replace(settings, **fields)
    assert message in str(raised.value)


def test_shares_and_trees_are_checked() -> None:
    with pytest.raises(UserError, match="--test 1.0: expected a share from 0 to below 1"):
        Shares(test=1.0)
    with pytest.raises(UserError, match="--validation -0.1"):
        Shares(validation=-0.1)
    with pytest.raises(UserError, match="--roots -1: expected 0 or more"):
        Tree(roots=-1)
    with pytest.raises(UserError, match="--branch 0: expected 1 or more"):
        Tree(branch=0)


def test_cleaning_can_be_turned_off(run: Run, settings: Settings, server: FakeEndpoint) -> None:
    server.script = lambda prompt, _: (
        Reply(body=completion("Совсем другой текст")) if prompt.startswith("GEN") else None
    )
    data, _ = run(replace(settings, cleaning=Cleaning(scripts=())))
    assert len(entries(data)) == 12
    assert Chat("fake").max_tokens == 1024
