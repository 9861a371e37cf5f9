"""The training loop of one rank: steps, learning rate, clipping, log, checkpoints, and the target at the end.

Called by fuse in its own process, or by `ranks` in each of several. Every rank walks the same steps; numbers
that decide something (the loss, whether to save, whether to stop) are summed over ranks first, so that all
decide alike. Knows no entry, no store.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fusechat.errors import BadData

from fusechat_stages.artifacts import Stopped
from fusechat_stages.training import checkpoints
from fusechat_stages.training.batches import Micro, Schedule, build, rate, split, tokens_of
from fusechat_stages.training.examples import Examples, open_examples
from fusechat_stages.training.job import Host, Job, World
from fusechat_stages.training.recipe import Recipe
from fusechat_stages.training.sharding import device_of, load, local
from fusechat_stages.training.target import write_target


def train(job: Job, world: World, host: Host) -> dict[str, Any]:
    """Train, write the target into `job.target` (the leader) and return the metrics.

    Raises Stopped after a last checkpoint when the host is stopping, BadData when the loss is not finite.
    The process group is the caller's.
    """
    trainer = Trainer(job, world)
    trainer.resume()
    trainer.run(host)
    return trainer.finish()


@dataclass(frozen=True)
class Sums:
    """What one rank adds to a step: terms scaled to the step's means, the gradient's square, its flags."""

    lm: float
    fuse: float
    gradient: float
    stopping: float
    due: float
    busy: float


class Trainer:
    """A model, its optimiser and where they are in the schedule."""

    def __init__(self, job: Job, world: World) -> None:
        self.job, self.world, self.recipe = job, world, job.recipe
        self.device = device_of(job, world)
        self.examples = open_examples(job.examples)
        recipe = job.recipe
        self.schedule = Schedule(len(self.examples), recipe.globalBatch, recipe.epochs, recipe.seed)
        self.fusion = load(job, world)
        self.parameters = [p for p in self.fusion.parameters() if p.requires_grad]
        self.optimizer = _optimizer(self.parameters, recipe)
        self.step, self.log = 0, list[dict[str, Any]]()
        self.begun = 0
        self.files = checkpoints.files_of(job)
        self.saver = checkpoints.Saver(self.files, job, world)
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Continue from the newest checkpoint of this address, if there is one."""
        found = _agreed(checkpoints.newest(self.files, self.job.address) if self.world.leads else None)
        if found is None:
            return
        state = self._state()
        checkpoints.restore(self.files, found, self.job.scratch / "restored", state, self.world)
        for p in self.parameters:  # fused AdamW counts on the device, the other on the host
            where = None if self.recipe.published else self.device
            self.optimizer.state[p]["step"] = torch.tensor(float(found.step), device=where)
        self.step, self.begun, self.log = found.step, found.step, found.log
        self.saver.last_step = found.step
        self.saver.published = checkpoints.published(found.step, found.saved)
        if self.world.leads:
            print(f"resumed at step {self.step} of {self.schedule.steps} from {found.key}", flush=True)

    def run(self, host: Host) -> None:
        """All steps that are left."""
        self._tell(host)
        while self.step < self.schedule.steps:
            sums = self._one_step(host)
            self._tell(host)
            if sums.stopping:
                self._stop(host)
            if sums.due and not sums.busy and self.step < self.schedule.steps:
                self._save()
        self.saver.wait()
        self._tell(host)

    def finish(self) -> dict[str, Any]:
        """Write the target and the log; the stage's metrics."""
        dtype = torch.bfloat16 if self.recipe.published else torch.float32
        moved = write_target(
            self.fusion.model, self.job.model, self.job.target, dtype, leads=self.world.leads
        )
        if self.world.leads:
            lines = (json.dumps(line, sort_keys=True) + "\n" for line in self.log)  # a store sorts keys too
            (self.job.target / "training.jsonl").write_text("".join(lines))
        return _metrics(self.examples, self.schedule, self.recipe, self.log, moved)

    def _tell(self, host: Host) -> None:
        line = self.log[-1] if self.log else {}
        losses = {k: round(line[k], 4) for k in ("loss", "lm_loss", "fuse_loss") if line.get(k) is not None}
        facts = {"from": self.begun, **losses, **self.saver.published}
        host.progress(self.step, self.schedule.steps, "steps", **facts)

    def _one_step(self, host: Host) -> Sums:
        samples = self.schedule.at(self.step)
        plan = split(
            self.examples,
            samples,
            self.recipe,
            world=self.world.size,
            tokens=self.job.means.tokens(self.recipe),
        )
        lm, fuse = self._backward(plan[self.world.rank])
        sums = self._summed(lm, fuse, host.stopping)
        norm = math.sqrt(sums.gradient) if sums.gradient >= 0 else math.nan
        self._check_finite(sums, norm)
        lr = self._learning_rate()
        self._update(lr, norm)
        self.step += 1
        self.log.append(self._line(sums, lr, norm, samples))
        return sums

    def _backward(self, micros: list[Micro]) -> tuple[float, float]:
        """Gradients of all micro-batches, and both terms' share of the step's means."""
        self.optimizer.zero_grad(set_to_none=True)
        totals = torch.zeros(2, device=self.device)
        for micro in micros:
            batch = build(self.examples, micro, self.recipe, self.job.vocabulary, self.device)
            loss, sums = self.fusion(batch)
            loss.backward()
            totals += sums * torch.tensor([micro.lm, micro.fuse], device=self.device)
        lm, fuse = totals.tolist()
        return lm, fuse

    def _summed(self, lm: float, fuse: float, stopping: bool) -> Sums:
        """Over ranks. The leader's clock decides when a checkpoint is due."""
        norms = torch._foreach_norm([local(p.grad) for p in self.parameters if p.grad is not None])
        square = float(torch.stack([n.float() for n in norms]).double().square().sum()) if norms else 0.0
        waited = time.monotonic() - self.saved_at
        due = self.world.leads and waited >= self.job.means.checkpointSeconds > 0
        values = torch.tensor([lm, fuse, square, stopping, due, self.saver.busy], dtype=torch.float64)
        if self.world.size > 1:
            dist.all_reduce(values)
        return Sums(*values.tolist())

    def _check_finite(self, sums: Sums, norm: float) -> None:
        if math.isfinite(sums.lm) and math.isfinite(sums.fuse) and math.isfinite(norm):
            return
        finite = f"the last finite one was {self.log[-1]['loss']:.4f}" if self.log else "no step was finite"
        raise BadData(
            f"the loss became {sums.lm + sums.fuse:g} (gradient norm {norm:g}) at step {self.step + 1} of "
            f"{self.schedule.steps}; {finite}. Lower fuse.learningRate (now {self.recipe.learningRate:g}), "
            "or look for non-finite weights in the pivot and scores in its extract"
        )

    def _learning_rate(self) -> float:
        recipe = self.recipe
        return recipe.learningRate * rate(
            self.step, self.schedule.steps, recipe.warmupRatio, recipe.scheduler
        )

    def _update(self, lr: float, norm: float) -> None:
        limit = self.recipe.maxGradNorm
        if limit and norm > limit:
            torch._foreach_mul_(
                [local(p.grad) for p in self.parameters if p.grad is not None], limit / (norm + 1e-6)
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()

    def _line(self, sums: Sums, lr: float, norm: float, samples: np.ndarray) -> dict[str, Any]:
        weight = self.recipe.lmWeight if self.recipe.distils else 1.0
        return {
            "step": self.step,
            "loss": weight * sums.lm + (1 - weight) * sums.fuse,
            "lm_loss": sums.lm,
            "fuse_loss": sums.fuse if self.recipe.distils else None,
            "lr": lr,
            "grad_norm": norm,
            "rows": int(self.examples.rows[samples].sum()),
            "tokens": tokens_of(self.examples, samples),
        }

    def _save(self) -> None:
        self.saver.start(self.step, self._state(), self.log)
        self.saved_at = time.monotonic()

    def _stop(self, host: Host) -> None:
        self.saver.wait()
        if self.saver.last_step < self.step:
            self._save()
            self.saver.wait()
        self._tell(host)
        raise Stopped(f"saved at step {self.step} of {self.schedule.steps}, where the next attempt goes on")

    def _state(self) -> checkpoints.State:
        """Weights and moments by name; all of a parameter's are of its own kind, sharded or plain."""
        state: checkpoints.State = {}
        for name, p in self.fusion.named_parameters():
            moments = self.optimizer.state[p]
            if "exp_avg" not in moments:
                moments |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            state |= {f"weight/{name}": p.detach()}
            state |= {f"{kind}/{name}": moments[kind] for kind in ("exp_avg", "exp_avg_sq")}
        return state


def _optimizer(parameters: list[torch.nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW as transformers' Trainer sets it up: no decay for norms and biases, betas .9 and .999.

    Published updates bfloat16 weights with bfloat16 moments, one parameter after the other, as the release.
    """
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weightDecay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = not recipe.published
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.learningRate, fused=fused)


def _agreed(found: checkpoints.Found | None) -> checkpoints.Found | None:
    """The leader's answer, on every rank."""
    told = [found]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def _metrics(
    examples: Examples, schedule: Schedule, recipe: Recipe, log: list[dict[str, Any]], moved: float
) -> dict[str, Any]:
    """Nothing here depends on time: the manifest that carries it is hashed."""
    last = log[-schedule.steps_per_epoch :]
    wins = np.bincount(examples.chosen, minlength=1) / len(examples)

    def mean(name: str) -> float:
        return float(np.mean([line[name] for line in last]))

    metrics: dict[str, Any] = {
        "steps": len(log),
        "samples": len(examples),
        "loss": mean("loss"),
        "lmLoss": mean("lm_loss"),
    }
    if recipe.distils:
        metrics |= {
            "fuseLoss": mean("fuse_loss"),
            "winShare": float(1 - wins[0]),
            "wins": [float(w) for w in wins[1:]],
            "distilledShare": float(examples.distilled.sum() / examples.rows.sum()),
        }
    return metrics | {"weightsMoved": moved, "tokens": sum(line["tokens"] for line in log)}
