"""TrAct under DeepSpeed stages 0-3 and FSDP2 on two CPU processes, without transformers:
`tract_engines.py OUT.json`.

Every figure is the relative distance of the first layer's update to that of one process without any
engine.
"""

import importlib.abc
import json
import os
import socket
import sys
import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from deit_tract import tract

LANES, BATCH, WORLD = 4, 16, 2


class WithoutTransformers(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers":
            raise ModuleNotFoundError(name)


def build(gram: str) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(128, 5))
    tract.TrAct(net[0], 0.1, gram=gram)
    return net


def lanes(count: int, rank: int = 0, world: int = 1):
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(BATCH, 3, 16, 16, generator=generator),
        torch.randint(5, (BATCH,), generator=generator),
    )
    return [(x[lane::count], y[lane::count]) for lane in range(rank, count, world)]


def reference(gram: str) -> torch.Tensor:
    """The update, which is what a step of SGD with rate 1 subtracts."""
    net = build(gram)
    for x, y in lanes(LANES):
        (F.cross_entropy(net(x), y) / LANES).backward()
    tract.finish_step(net)
    return net[0].weight.grad


def distance(before: torch.Tensor, after: torch.Tensor, want: torch.Tensor) -> float:
    return ((before.float() - after.float() - want).norm() / want.norm()).item()


def with_deepspeed(gram: str, stage: int, rank: int, bf16: bool = False) -> float:
    import deepspeed

    net = build(gram)
    before = net[0].weight.detach().clone()
    config = {
        "train_micro_batch_size_per_gpu": BATCH // LANES,
        "gradient_accumulation_steps": LANES // WORLD,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16},
        "steps_per_print": 10**9,
    }
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, config=config)
    for x, y in lanes(LANES, rank, WORLD):
        engine.backward(F.cross_entropy(engine(x.bfloat16() if bf16 else x).float(), y))
        if engine.is_gradient_accumulation_boundary():
            tract.finish_step(net)
        engine.step()
    with deepspeed.zero.GatheredParameters([net[0].weight], enabled=stage == 3):
        return distance(before, net[0].weight.detach().clone(), reference(gram))


def with_fsdp2(gram: str, rank: int) -> float:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net, mesh = build(gram), init_device_mesh("cpu", (WORLD,))
    before = net[0].weight.detach().clone()
    fully_shard(net[0], mesh=mesh)
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    for i, (x, y) in enumerate(lanes(LANES, rank, WORLD)):
        net.set_requires_gradient_sync(i == LANES // WORLD - 1)
        (F.cross_entropy(net(x), y) / (LANES // WORLD)).backward()
    tract.finish_step(net)
    optimizer.step()
    return distance(before, net[0].weight.full_tensor().detach(), reference(gram))


def attempt(results: dict, name: str, run) -> None:
    try:
        results[name] = run()
    except Exception as error:
        results[name] = f"{type(error).__name__}: {error}"
        traceback.print_exc()


def worker(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    sys.meta_path.insert(0, WithoutTransformers())
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(WORLD),
        DS_ACCELERATOR="cpu",
    )
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else a compiler runs first
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    results = {}
    for gram in ("lane", "batch"):
        attempt(results, f"FSDP2, {gram}", lambda gram=gram: with_fsdp2(gram, rank))
        for stage in range(4):
            attempt(
                results,
                f"stage {stage}, {gram}",
                lambda gram=gram, stage=stage: with_deepspeed(gram, stage, rank),
            )
    attempt(results, "stage 2, lane, bf16", lambda: with_deepspeed("lane", 2, rank, bf16=True))
    attempt(results, "stage 0, batch, bf16", lambda: with_deepspeed("batch", 0, rank, bf16=True))
    if rank == 0:
        with open(out, "w") as file:
            json.dump(results, file, indent=1)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(
        0
    )  # ten engines' threads are not joined: the interpreter's own way out may abort in them


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        free_port = free.getsockname()[1]
    mp.start_processes(worker, (free_port, sys.argv[1]), WORLD, start_method="spawn")
