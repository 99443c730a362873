"""Scoring as others do it, in a process of its own that knows nothing of avops.

    python scorers.py padded|lm-eval MODEL WORK.npz OUT.npz BATCH_TOKENS [DTYPE]

padded: a transformers loop as an expert writes it: sequences sorted by length, as many to a batch
as the tokens allow, padded on the right and masked, logits and an f32 log-softmax for response
tokens only, a few rows at a time. packed: the same without padding, sequences one after the other
in a row, told apart by their positions: by flash-attn where it is installed, else by the mask that
transformers makes of positions. lm-eval: lm-evaluation-harness's HF backend on the same ids, its
batch sized to the same tokens at the longest sequence. All compute a query once per response.
"""

import resource
import sys
import time

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import is_flash_attn_2_available

ROWS = 128  # of logits at a time


def load(path):
    data = np.load(path)
    sequences = np.split(data["ids"], np.cumsum(data["lengths"])[:-1])
    return sequences, data["starts"].tolist()


def mean_log_prob(model, rows, targets):
    total = 0.0
    for some, wanted in zip(rows.split(ROWS), targets.split(ROWS), strict=True):
        log_probs = torch.log_softmax(model.lm_head(some).float(), -1)
        total += log_probs.gather(1, wanted[:, None]).double().sum().item()
    return total / len(targets)


def by_length(sequences):
    return sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))


@torch.inference_mode()
def padded(model, sequences, starts, batch_tokens):
    order = by_length(sequences)
    means = np.empty(len(sequences))
    while order:
        width = len(sequences[order[0]]) - 1
        count = max(1, batch_tokens // width)
        batch, order = order[:count], order[count:]
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            fed = len(sequences[i]) - 1
            ids[row, :fed] = torch.from_numpy(sequences[i][:-1])
            mask[row, :fed] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        for row, i in enumerate(batch):
            targets = torch.from_numpy(sequences[i][starts[i] :]).to(model.device)
            rows = hidden[row, starts[i] - 1 : len(sequences[i]) - 1]
            means[i] = mean_log_prob(model, rows, targets)
    return means


@torch.inference_mode()
def packed(model, sequences, starts, batch_tokens):
    own = model.config._attn_implementation  # noqa: SLF001
    if model.device.type == "cuda" and is_flash_attn_2_available():
        model.set_attn_implementation("flash_attention_2")
    order = by_length(sequences)
    means = np.empty(len(sequences))
    while order:
        lengths = np.cumsum([len(sequences[i]) - 1 for i in order])
        count = max(1, int((lengths <= batch_tokens).sum()))
        batch, order = order[:count], order[count:]
        ids = np.concatenate([sequences[i][:-1] for i in batch])
        positions = np.concatenate([np.arange(len(sequences[i]) - 1) for i in batch])
        ids, positions = (torch.from_numpy(x)[None].to(model.device) for x in (ids, positions))
        found = model.model(input_ids=ids, position_ids=positions, use_cache=False)
        hidden, first = found.last_hidden_state[0], 0
        for i in batch:
            targets = torch.from_numpy(sequences[i][starts[i] :]).to(model.device)
            last = first + len(sequences[i]) - 1
            means[i] = mean_log_prob(model, hidden[first + starts[i] - 1 : last], targets)
            first = last
    model.set_attn_implementation(own)
    return means


def harness(model, sequences, starts, batch_tokens, **options):
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models

    # It wants a tokenizer, and asks it for nothing but special tokens.
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", bos_token="</s>"
    )
    longest = max(len(sequence) for sequence in sequences)
    lm = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=max(1, batch_tokens // longest),
        max_length=longest,
        **options,
    )
    requests = [
        (("", ""), sequence[:start].tolist(), sequence[start:].tolist())
        for sequence, start in zip(sequences, starts, strict=True)
    ]
    found = lm._loglikelihood_tokens(requests, disable_tqdm=True)  # noqa: SLF001
    lengths = [len(sequence) - start for sequence, start in zip(sequences, starts, strict=True)]
    return np.array([total for total, _ in found]) / lengths


WAYS = {"padded": padded, "packed": packed, "lm-eval": harness}


def main():
    kind, path, work, out, batch_tokens, *dtype = sys.argv[1:]
    sequences, starts = load(work)
    dtype = getattr(torch, dtype[0]) if dtype else torch.float32
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    start = time.perf_counter()
    means = WAYS[kind](model, sequences, starts, int(batch_tokens))
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.savez(out, scores=means, seconds=seconds, peak=peak / 1024, tokens=0)


if __name__ == "__main__":
    main()
