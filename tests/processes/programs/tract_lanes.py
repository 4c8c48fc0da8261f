"""gram="batch" and gram="lane" under DDP, for several numbers of processes: `tract_lanes.py
OUT.json`.

The batch is cut into 4 lanes dealt to 1, 2, 3 (2+1+1) and 4 processes; a lane's loss is weighted by
1 / lanes.
"""

import json
import os
import socket
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deit_tract import tract

LANES, BATCH, STEPS = 4, 16, 3


def build(gram: str) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(128, 5))
    tract.TrAct(net[0], 0.1, gram=gram)
    return net


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 3, 16, 16, generator=generator), torch.randint(
        5, (BATCH,), generator=generator
    )


def train(
    gram: str, lanes: int, rank: int = 0, world: int = 1, give_up: bool = True
) -> list[torch.Tensor]:
    """The first layer's update of every step. Clipped SGD; step 1 is given up once, on other
    images, then done.
    """
    net = build(gram)
    model = DistributedDataParallel(net) if world > 1 else net
    optimizer, updates = torch.optim.SGD(net.parameters(), 0.5), []
    mine = range(rank, lanes, world)
    steps = [(0, False), (1, True), (1, False), (2, False)]
    for step, given_up in steps if give_up else [step for step in steps if not step[1]]:
        x, y = data(step)
        optimizer.zero_grad()
        for lane in mine:
            if world > 1:
                model.require_backward_grad_sync = lane == mine[-1]  # what no_sync() sets
            images = x[lane::lanes] * (9 if given_up else 1)
            loss = F.cross_entropy(model(images), y[lane::lanes]) / lanes
            (
                loss * world
            ).backward()  # DDP averages over processes, which have unequal numbers of lanes
        if given_up:
            continue
        tract.finish_step(net)
        updates.append(net[0].weight.grad.clone())
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
    return updates


def worker(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.save(
        {gram: train(gram, LANES, rank, world) for gram in ("batch", "lane")}, f"{folder}/{rank}.pt"
    )
    dist.destroy_process_group()


def run(world: int) -> list[dict]:
    """What every process saw."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(worker, (world, port, folder), world, start_method="fork")
        return [torch.load(f"{folder}/{rank}.pt") for rank in range(world)]


def distance(updates: list, reference: list) -> float:
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(updates, reference, strict=True))


def main() -> None:
    torch.set_num_threads(1)  # a fork must not lose threads
    whole = {"batch": train("batch", 1, give_up=False), "lane": train("lane", LANES, give_up=False)}
    results = {"1 process, batch": distance(train("batch", LANES), whole["batch"])}
    results["one Gram matrix a lane differs"] = distance(whole["lane"], whole["batch"])
    for world in (2, 3, 4):
        seen = run(world)
        for gram in ("batch", "lane"):
            results[f"{world} processes, {gram}"] = max(
                distance(one[gram], whole[gram]) for one in seen
            )
    with open(sys.argv[1], "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
