"""Run by test_loading.py under torchrun: a converted folder in PyTorch's own DistributedDataParallel.

ddp.py FOLDER OUT    each rank writes OUT/rank.safetensors: gradients of a step on its own clips, weights after three
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel

folder, out = sys.argv[1:]
dist.init_process_group("gloo")
rank = dist.get_rank()
model = AutoModel.from_pretrained(
    folder, trust_remote_code=True
).eval()  # no dropout: another process compares
wrapped = DistributedDataParallel(model)
optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
found: dict[str, torch.Tensor] = {}
for step in range(3):
    generator = torch.Generator().manual_seed(10 * step + rank)
    ids = torch.randint(64, (2, 5, 4, 4), generator=generator)
    text = torch.randint(3, 90, (2, 16), generator=generator)
    optimizer.zero_grad()
    wrapped(ids, text).loss.backward()
    if step == 0:
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        found |= {f"gradient {name}": weight.grad.clone() for name, weight in trained.items()}
    optimizer.step()
found |= {f"weight {name}": weight.detach().clone() for name, weight in model.named_parameters()}
save_file(found, Path(out) / f"{rank}.safetensors")
dist.destroy_process_group()
