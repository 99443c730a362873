"""Scoring as others do it, in a process of its own that knows nothing of avops.

    python scorers.py padded|lm-eval MODEL WORK.npz OUT.npz BATCH_TOKENS

padded: a transformers loop as an expert writes it: sequences sorted by length, as many to a batch
as the tokens allow, padded on the right and masked, logits and an f32 log-softmax for response
tokens only, a few rows at a time. lm-eval: lm-evaluation-harness's HF backend on the same ids, its
batch sized to the same tokens at the longest sequence. Both compute a query once per response.
"""

import sys
import time

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROWS = 128  # of logits at a time


def load(path):
    data = np.load(path)
    sequences = np.split(data["ids"], np.cumsum(data["lengths"])[:-1])
    return sequences, data["starts"].tolist()


@torch.inference_mode()
def padded(model, sequences, starts, batch_tokens):
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
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
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        for row, i in enumerate(batch):
            targets = torch.from_numpy(sequences[i][starts[i] :])
            rows = hidden[row, starts[i] - 1 : len(sequences[i]) - 1]
            total = 0.0
            for some, wanted in zip(rows.split(ROWS), targets.split(ROWS), strict=True):
                log_probs = torch.log_softmax(model.lm_head(some).float(), -1)
                total += log_probs.gather(1, wanted[:, None]).double().sum().item()
            means[i] = total / len(targets)
    return means


def harness(model, tokenizer, sequences, starts, batch_tokens):
    from lm_eval.models.huggingface import HFLM

    longest = max(len(sequence) for sequence in sequences)
    lm = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=max(1, batch_tokens // longest),
        max_length=longest,
    )
    requests = [
        (("", ""), sequence[:start].tolist(), sequence[start:].tolist())
        for sequence, start in zip(sequences, starts, strict=True)
    ]
    found = lm._loglikelihood_tokens(requests, disable_tqdm=True)  # noqa: SLF001
    lengths = [len(sequence) - start for sequence, start in zip(sequences, starts, strict=True)]
    return np.array([total for total, _ in found]) / lengths


def main():
    kind, path, work, out, batch_tokens = sys.argv[1:]
    sequences, starts = load(work)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path) if kind == "lm-eval" else None
    start = time.perf_counter()
    if kind == "padded":
        means = padded(model, sequences, starts, int(batch_tokens))
    else:
        means = harness(model, tokenizer, sequences, starts, int(batch_tokens))
    np.savez(out, scores=means, seconds=time.perf_counter() - start, tokens=0)


if __name__ == "__main__":
    main()
