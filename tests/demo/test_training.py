from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from avops.demo import ipo, train
from avops.demo.sizes import SIZES
from avops.demo.tokenizer import encode_chat, train_tokenizer
from avops.score import new_model

CHATS = [([1, 5, 6, 7, 2], 2), ([1, 8, 9, 10, 11, 12, 2], 3), ([1, 5, 13, 2], 2)]


@pytest.fixture
def model() -> Any:
    made = new_model({**SIZES["tiny"].config(16), "hidden_size": 16, "head_dim": 4})
    train.initialise(made, 3, 0.2)
    return made.eval()


def test_tokenizer_round_trip() -> None:
    tokenizer = train_tokenizer(["one two three, one two.", "three times two"] * 9, 300)
    for text in ("one two three.", "Zürich, 3 × λ\n\tend", " leading", ""):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    ids, start = encode_chat(tokenizer, "one?", "two.")
    assert tokenizer.decode(ids[start:], skip_special_tokens=False) == " two.</s>"
    assert tokenizer.decode(ids[:start], skip_special_tokens=False) == "<s>[INST] one?[/INST]"


def test_ipo_loss_by_hand() -> None:
    """β 0.1: target 5. Margins 1, 5, −1 leave errors 16, 0, 36; weights 2, 1, 1."""
    chosen, rejected = torch.tensor([0.5, 4.0, -2.0]), torch.tensor([-0.5, -1.0, -1.0])
    loss = ipo.ipo_loss(chosen, rejected, torch.tensor([2.0, 1.0, 1.0]), 0.1)
    assert loss.item() == (2 * 16 + 0 + 36) / 4
    # β 0.25: target 2, errors 1, 9, 9.
    assert ipo.ipo_loss(chosen, rejected, torch.tensor([1.0, 1.0, 2.0]), 0.25).item() == 7


def test_ipo_gradient_pulls_to_the_target() -> None:
    """d loss / d chosen = 2 (m − 5): up below the target, down above it; rejected the opposite."""
    chosen = torch.tensor([1.0, 8.0], requires_grad=True)
    rejected = torch.tensor([0.0, 0.0], requires_grad=True)
    ipo.ipo_loss(chosen, rejected, torch.ones(2), 0.1).backward()
    assert chosen.grad.tolist() == [-4.0, 3.0]
    assert rejected.grad.tolist() == [4.0, -3.0]


def test_mean_logprobs_are_those_of_single_sequences(model: Any) -> None:
    with torch.inference_mode():
        together = ipo.mean_logprobs(model, CHATS)
        for k, (ids, start) in enumerate(CHATS):
            logits = model(input_ids=torch.tensor([ids])).logits[0].double()
            rows = torch.log_softmax(logits, -1)[start - 1 : -1]
            alone = rows.gather(1, torch.tensor(ids[start:])[:, None]).mean()
            # f32 forward passes of other shapes: |log p| < 8, some 200 roundings of 2⁻²⁴ · 8.
            assert abs(together[k] - alone) < 200 * 8 * 2**-24


def test_alignment_moves_the_margins_up(model: Any) -> None:
    ranked = [CHATS, [CHATS[0], CHATS[2], CHATS[1]]]
    settings = ipo.Alignment(steps=20, queries=2, lr=3e-3)
    margin = ipo.align(model, ranked[:1] * 2, settings, random.Random(1))
    assert 0.5 < margin < 20  # from 0 at the start towards 5


def test_base_training_learns_its_chats(model: Any) -> None:
    schedule = train.Schedule(steps=60, batch=3, lr=1e-2)
    loss = train.train_base(model, CHATS, schedule, random.Random(1))
    assert loss < 0.2 < 2.7  # ln 16 = 2.77 before
    assert not model.training


def test_batches_visit_every_chat_once_a_pass() -> None:
    chats = [([1] * n, 1) for n in range(3, 103)]
    made = list(train.batches(chats, train.Schedule(20, 5, 1.0), random.Random(2)))
    assert len(made) == 20
    assert sorted(len(ids) for batch in made for ids, _ in batch) == list(range(3, 103))
    assert max(len(b[-1][0]) - len(b[0][0]) for b in made) <= 5
