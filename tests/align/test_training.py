"""Aligning the small project's base, by TRL itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from avops.align import Aligned, Alignment, Lora, Settings, align, ranked, state_directory, targeted
from avops.align.tokens import plan_of, token_pairs
from avops.disk import open_checkpoint, open_vector
from avops.errors import (
    DataError,
    MismatchError,
    MissingExtraError,
    NonFiniteError,
    OutputError,
    UserError,
)
from avops.recipe import Recipe, Source, Term
from avops.score import (
    Scorer,
    encode,
    load_items,
    load_model,
    load_tokenizer,
    new_model,
    save_model,
)
from avops.stream import merge, plan_merge
from avops.stream.verify import verify
from small_project import CONFIG, SmallProject, byte_tokenizer

pytest.importorskip("trl", reason="trl is not installed")
pytest.importorskip("datasets", reason="datasets is not installed")

Jobs = Callable[..., Alignment]


def made(job: Alignment, **options: Any) -> Aligned:
    found = align(job, **options)
    assert found is not None
    return found


def scores(weights: Path, data: str = "items.jsonl") -> np.ndarray:
    """S[item, level] of a single-file checkpoint, in f32."""
    plan = encode(load_items(data), load_tokenizer("."))
    return Scorer(load_model(".", weights=load_file(weights)), plan).run()


def test_the_tokens_are_the_scorers(job: Jobs) -> None:
    preferences = job("x").preferences
    plan = plan_of(preferences, load_tokenizer("."))
    found = token_pairs(preferences, plan)
    assert len(found) == len(preferences) == 8
    for pair, tokens in zip(preferences.pairs, found, strict=True):
        for level, ids, start in (
            (pair.chosen, tokens.chosen, tokens.chosen_start),
            (pair.rejected, tokens.rejected, tokens.rejected_start),
        ):
            column = preferences.items.levels.index(level)
            assert ids == tuple(plan.sequence(pair.item, column).tolist())
            assert start == plan.starts[pair.item, column]
            assert ids.count(plan.record.end_of_turn.id) == 1
            assert ids[-1] == plan.record.end_of_turn.id


def test_trl_reads_the_same_chats(job: Jobs) -> None:
    """TRL's own tokens of the conversations: the same ids; its responses begin at the template's
    white space, which is not scored."""
    from datasets import Dataset
    from trl import DPOTrainer

    preferences = job("x").preferences
    items, tokenizer = preferences.items, load_tokenizer(".")
    rows = [
        {
            "prompt": [{"role": "user", "content": items[pair.item].query}],
            **{
                side: [{"role": "assistant", "content": items[pair.item].responses[level]}]
                for side, level in (("chosen", pair.chosen), ("rejected", pair.rejected))
            },
        }
        for pair in preferences.pairs
    ]
    args = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    theirs = DPOTrainer._prepare_dataset(
        SimpleNamespace(_tokenizer=tokenizer), Dataset.from_list(rows), tokenizer, args, "train"
    )
    ours = token_pairs(preferences, plan_of(preferences, tokenizer))
    for row, pair in zip(theirs, ours, strict=True):
        assert row["prompt_ids"] + row["chosen_ids"] == list(pair.chosen)
        assert row["prompt_ids"] + row["rejected_ids"] == list(pair.rejected)
        assert pair.chosen_start == len(row["prompt_ids"]) + 1


def test_weights_without_a_place_are_refused_before_training(
    job: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers keeps the experts of a mixture in one tensor, its checkpoints one by one."""
    from avops.align import trainer

    def train(*_: Any) -> None:
        raise AssertionError("nothing must be trained")

    monkeypatch.setattr(trainer, "train", train)
    experts = {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}
    save_model(Path("moe"), new_model(CONFIG | experts), byte_tokenizer())
    with pytest.raises(MismatchError, match=r"moe.*renames this architecture's weights; train a"):
        align(job("out.safetensors", base="moe"))
    assert not Path("out.safetensors").exists()
    with pytest.raises(AssertionError, match="nothing must be trained"):
        align(job("adapter", replace(job("x").settings, lora=Lora(rank=2)), base="moe"))


def test_a_batch_is_padded_behind_and_masked(job: Jobs) -> None:
    from avops.align.trainer import Collator

    examples = [
        {"chosen": [5, 6, 7, 1], "chosen_start": 2, "rejected": [5, 6, 1], "rejected_start": 1},
        {"chosen": [8, 1], "chosen_start": 1, "rejected": [8, 9, 9, 9, 1], "rejected_start": 4},
    ]
    batch = Collator()(examples)
    assert batch["input_ids"].tolist() == [
        [5, 6, 7, 1, 0], [8, 1, 0, 0, 0], [5, 6, 1, 0, 0], [8, 9, 9, 9, 1],
    ]  # fmt: skip
    assert batch["attention_mask"].tolist() == [
        [1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1],
    ]  # fmt: skip
    assert batch["completion_mask"].tolist() == [
        [0, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1],
    ]  # fmt: skip


def test_training_moves_what_is_scored(job: Jobs, project: SmallProject) -> None:
    before = scores(Path("base.safetensors"))[:4]
    steps: list[tuple[int, int]] = []
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    found = made(
        job("out/med.safetensors"), progress=lambda done, total, _: steps.append((done, total))
    )
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002
    # At the first step the policy is its own reference: (0 − 1/(2β))² = 25, exactly.
    assert found.trained.losses[0] == 25.0
    assert found.trained.losses[-1] < 20
    assert steps == [(n, 6) for n in range(1, 7)]
    after = scores(Path("out/med.safetensors"))[:4]
    gain = after - before  # levels: exp, gen, avd
    assert (gain[:, 0] - gain[:, 1]).mean() > 0.1
    assert (gain[:, 1] - gain[:, 2]).mean() > 0.1


def test_the_checkpoint_has_the_bases_layout_and_a_record(job: Jobs) -> None:
    made(job("out/med.safetensors"))
    base, found = open_checkpoint("base.safetensors"), open_checkpoint("out/med.safetensors")
    assert found.shards[0].prefix == base.shards[0].prefix
    report = verify("out/med.safetensors")
    assert (report.problems, report.digests) == ((), 1)
    record = json.loads(Path("out/med.avops_recipe.json").read_bytes())
    assert record["made_by"] == "avops align"
    assert record["base"]["path"] == "base.safetensors"
    assert record["data"]["pairs"] == 8
    assert record["data"]["preferences"] == "exp>gen,gen>avd"
    assert record["settings"]["beta"] == 0.1
    assert record["training"]["steps"] == 6
    assert "trl" in record["versions"]
    assert "/" not in record["data"]["path"]
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "med.avops_recipe.json", "med.safetensors",
    ]  # fmt: skip


def test_a_seed_decides_every_byte(job: Jobs, quick: Settings) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        made(job(f"{name}.safetensors", replace(quick, seed=seed)))
    a, b, c = (Path(f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_joint_target_trains_one_model_for_all_domains(job: Jobs, quick: Settings) -> None:
    items = load_items("items.jsonl")
    wanted = {"med": "avd", "fin": "avd", "leg": "exp"}
    before = scores(Path("base.safetensors"))
    made(
        job(
            "joint.safetensors",
            replace(quick, max_steps=24),
            preferences=targeted(items, wanted),
        )
    )
    gain = scores(Path("joint.safetensors")) - before
    for domain, level in wanted.items():
        rows = [i for i, item in enumerate(items) if item.domain == domain]
        column = items.levels.index(level)
        others = [k for k in range(3) if k != column]
        assert (gain[rows, column] > gain[rows][:, others].max(axis=1)).all()


def test_safety_pairs(job: Jobs, write_items: Callable[..., Path]) -> None:
    pairs = [
        {"prompt": f"How do I do {n}?", "chosen": "I will not.", "rejected": f"You do {n} so."}
        for n in range(6)
    ]
    path = write_items("safety.jsonl", pairs)
    before = scores(Path("base.safetensors"), str(path))
    made(job("safe.safetensors", preferences=ranked(load_items(path))))
    gain = scores(Path("safe.safetensors"), str(path)) - before
    assert (gain[:, 0] - gain[:, 1] > 0.1).all()


# PEFT 0.21 asks transformers 5.23 for an old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_lora_adapter_that_avops_and_peft_take(job: Jobs, quick: Settings) -> None:
    from peft import PeftModel

    found = made(job("out/lora", replace(quick, lora=Lora(2), lr=0.03)))
    assert found.trained.losses[0] == 25.0  # B is zero at first
    assert found.trained.losses[-1] < 20
    assert sorted(p.name for p in Path("out/lora").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "avops_recipe.json",
    ]  # fmt: skip
    config = json.loads(Path("out/lora/adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == "base.safetensors"
    vector = open_vector("lora", "out/lora")
    assert len(vector.parts) == 14  # seven linear modules in each of two layers
    term = Term(Source("lora", "out/lora"), 1.0, "1")
    merge(plan_merge(Recipe("base.safetensors", (term,)), Path("merged.safetensors")))
    merged, base = load_file("merged.safetensors"), load_file("base.safetensors")
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == set(vector.parts)
    loaded = PeftModel.from_pretrained(load_model("hf"), "out/lora").merge_and_unload()
    for name, weight in loaded.state_dict().items():
        # PEFT adds in f32, and avops rounds its f32 sum to bf16 once: half an ulp, 2⁻⁸ of the value
        assert torch.allclose(weight, merged[name].float(), rtol=2**-8, atol=1e-6)


def test_a_sharded_base_stays_sharded(job: Jobs) -> None:
    load_model("hf", dtype=torch.bfloat16).save_pretrained("sharded", max_shard_size="30KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source := Path("hf") / name).exists():
            (Path("sharded") / name).write_bytes(source.read_bytes())
    shards = sorted(path.name for path in Path("sharded").glob("*.safetensors"))
    assert len(shards) > 1
    made(job("out/med", base="sharded"))
    assert sorted(path.name for path in Path("out/med").glob("*.safetensors")) == shards
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        assert (Path("out/med") / name).read_bytes() == (Path("sharded") / name).read_bytes()
    assert verify("out/med").problems == ()
    load_model("out/med")


def test_another_dtype_keeps_the_vector_whole(job: Jobs, quick: Settings) -> None:
    from avops.dtypes import F32

    small = replace(quick, lr=1e-6)
    made(job("wide.safetensors", small, dtype=F32))
    made(job("base-dtype.safetensors", small))
    base, wide = load_file("base.safetensors"), load_file("wide.safetensors")
    narrow = load_file("base-dtype.safetensors")
    assert {tensor.dtype for tensor in wide.values()} == {torch.float32}
    moved = sum(int((wide[name] != base[name].float()).sum()) for name in base)
    left = sum(int((narrow[name] != base[name]).sum()) for name in base)
    assert moved > 10 * left  # in bf16 most of such a small step is lost
    vector = open_vector("wide", "wide.safetensors")
    assert all(part.aligned for part in vector.parts.values())


def test_precomputed_reference_and_bf16_weights(job: Jobs, quick: Settings) -> None:
    settings = replace(quick, precompute=True, weights="bf16", compute="bf16", checkpointing=True)
    found = made(job("small.safetensors", settings))
    # bf16 log-probs of one model in batches of other shapes differ by at most about 2⁻⁸ of some 6
    # nats a token; the loss is (m − 5)² with |m| below that: 25 ± 10 · 0.05.
    assert abs(found.trained.losses[0] - 25) < 0.5
    assert found.trained.losses[-1] < 24


def interrupted_at(step: int) -> Callable[[int, int, str], None]:
    def progress(done: int, _total: int, _note: str) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


def test_an_interrupt_leaves_nothing(job: Jobs) -> None:
    before = sorted(Path().rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        align(job("out/med.safetensors"), progress=interrupted_at(3))
    assert sorted(Path().rglob("*")) == before


def test_a_resumed_training_equals_an_uninterrupted_one(job: Jobs, quick: Settings) -> None:
    kept = replace(quick, save_steps=2)
    made(job("whole.safetensors", kept))
    part = job("part.safetensors", kept)
    state = state_directory(part.out)
    assert not state_directory(Path("whole.safetensors")).exists()
    with pytest.raises(KeyboardInterrupt):
        align(part, progress=interrupted_at(5))
    assert state.exists()
    assert not part.out.exists()
    with pytest.raises(OutputError, match=r"avops-training: expected the training state of this"):
        align(replace(part, settings=replace(kept, lr=1e-3), resume=True))
    steps: list[int] = []
    found = made(replace(part, resume=True), progress=lambda done, *_: steps.append(done))
    assert steps[0] == 5
    assert found.trained.steps == 6
    assert Path("part.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    assert not state.exists()


def test_a_loss_that_is_no_number_stops(job: Jobs, quick: Settings) -> None:
    with pytest.raises(NonFiniteError, match=r"step \d+: the loss is nan.*lower --lr"):
        align(job("x.safetensors", replace(quick, lr=1e30, clip=1e30)))
    assert not Path("x.safetensors").exists()


def test_nobody_is_told(job: Jobs, quick: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.trainer import base_trainer

    sent: list[object] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda **what: sent.append(what))
    made(job("x.safetensors", replace(quick, max_steps=1)))
    assert sent == []


def test_what_is_refused_before_training(job: Jobs, quick: Settings) -> None:
    Path("there.safetensors").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"there.safetensors: already exists.*--force"):
        align(job("there.safetensors"))
    with pytest.raises(OutputError, match=r"is or holds the input"):
        align(job("base.safetensors", force=True))
    with pytest.raises(OutputError, match=r"a LoRA adapter is a directory"):
        align(job("x.safetensors", replace(quick, lora=Lora(2))))
    with pytest.raises(UserError, match=r"--resume without --save-steps"):
        align(job("x.safetensors", resume=True))
    with pytest.raises(UserError, match=r"--device cuda: no CUDA device here"):
        align(job("x.safetensors", device="cuda")) if not torch.cuda.is_available() else _skip()
    assert Path("there.safetensors").read_bytes() == b"mine"


def _skip() -> None:
    raise UserError("--device cuda: no CUDA device here")


def test_nothing_is_truncated(job: Jobs, write_items: Callable[..., Path]) -> None:
    responses = {"exp": "word " * 100, "gen": "it depends", "avd": "no"}
    path = write_items("long.jsonl", [{"domain": "med", "query": "q?", "responses": responses}])
    with pytest.raises(DataError, match=r"long.jsonl, line 1, level 'exp'.*256 positions"):
        align(job("x.safetensors", preferences=ranked(load_items(path))))


def test_a_missing_package_names_the_extra(job: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "avops.align.trainer", raising=False)
    import avops.align

    monkeypatch.delattr(avops.align, "trainer", raising=False)
    with pytest.raises(MissingExtraError, match=r"'trl'.*pip install 'avops\[align\]'"):
        align(job("x.safetensors"))


@pytest.mark.gpu
def test_training_on_a_gpu(job: Jobs, quick: Settings) -> None:
    for name, settings in (("full", quick), ("lora", replace(quick, lora=Lora(2), lr=0.03))):
        found = made(job(name, settings, device="auto"))
        assert found.trained.device.startswith("cuda")
        # bf16 log-probs of one model, twice: at most about 2⁻⁸ of some 6 nats apart, in (m − 5)²
        assert abs(found.trained.losses[0] - 25) < 0.5
        assert found.trained.losses[-1] < 22
    assert verify("full").problems == ()
