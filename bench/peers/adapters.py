"""LoRA adapters merged as PEFT's documentation does: BASE OUT ADAPTER ..."""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, out, *adapters = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
model = PeftModel.from_pretrained(model, adapters[0], adapter_name="adapter0")
for number, path in enumerate(adapters[1:], 1):
    model.load_adapter(path, adapter_name=f"adapter{number}")
names = [f"adapter{number}" for number in range(len(adapters))]
model.merge_and_unload(adapter_names=names).save_pretrained(out)
