"""The small world's tokenizer: a byte-level BPE and its chat template.

A chat is ``<s>[INST] query[/INST] response</s>``. The markers are special tokens, so no merge can
span the border between a query and its response.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS, EOS, PAD, USER, ASSISTANT = "<s>", "</s>", "<pad>", "[INST]", "[/INST]"
SPECIAL = (PAD, BOS, EOS, USER, ASSISTANT)  # ids 0 to 4

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }}[/INST]"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant messages') }}{% endif %}"
    "{% endfor %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE of ``vocabulary`` tokens learnt from ``texts``; any text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def chat_text(query: str, response: str) -> str:
    """The chat exactly as the chat template renders it."""
    return f"{BOS}{USER} {query}{ASSISTANT} {response}{EOS}"


def encode_chat(tokenizer: Tokenizer, query: str, response: str) -> tuple[list[int], int]:
    """Token ids of the whole chat, and the index of the first response token."""
    ids = tokenizer.encode(chat_text(query, response), add_special_tokens=False).ids
    return ids, ids.index(SPECIAL.index(ASSISTANT)) + 1


def files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json, as transformers reads them.

    Written here rather than by transformers, so that the bytes do not depend on its version.
    """
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [USER, ASSISTANT],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode() + b"\n",
        "tokenizer_config.json": json.dumps(config, indent=2).encode() + b"\n",
    }
