"""Muon: momentum, then the nearest orthogonal matrix as the update; one class for one process and for many.

The update of a matrix, G = U S V^T, is replaced by about U V^T: all its directions get the same length. A singular
value decomposition is slow and wants float32; an odd quintic polynomial that is applied to the singular values a few
times (Newton-Schulz) takes matrix products only, runs in bfloat16, and batches.

That costs about thirty matrix products a matrix, so ranks share the work: gradients arrive averaged on every rank (as
DistributedDataParallel leaves them), each rank owns a fair part of the matrices, keeps momentum for these alone,
updates them, and the updated matrices are exchanged while the next shape is computed. Every rank then holds the same
parameters to the bit, equal to those that one process would have computed. Matrices of one shape are updated as one
batch: far fewer kernels on a GPU, fewer thread barriers on a CPU (`benchmarks/bench_muon.py`).

The rule is that of nanochat, 2025-11 (after Keller Jordan, https://kellerjordan.github.io/posts/muon/).
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat_pl import runtime
from nanochat_pl.optim.config import ORTHOGONALIZERS
from nanochat_pl.optim.orthogonalize import (
    POLAR_EXPRESS,
    SMALLEST_NORM,
    choose_ns_dtype,
    equilibrate_rows,
    newton_schulz,
    polar_express,
)

__all__ = ["Muon", "assign_owners"]

MAX_BATCH_ELEMENTS = 2**26
"""The most elements in a batch of matrices of one shape (256 MiB of float32), which bounds the temporaries; the largest
matrices of a depth-20 model still go ten at a time."""

Bucket = list[Tensor]

# torch 2.13 gave it a new name and warns of the old one.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Muon(torch.optim.Optimizer):
    """Move weight matrices by orthogonalized momentum.

    For each matrix W with gradient G:

    1. `buf += (1 - momentum) (G - buf)`; the direction is `buf`, with Nesterov `G + momentum (buf - G)`.
    2. Where asked for, the rows of the direction get one norm (`row_equilibration`).
    3. The update is `orthogonalize(direction)`. Where asked for, it then gets the Frobenius norm of an orthogonal
       matrix (`frobenius_snap`), and its rows, or the columns of a wide matrix, are divided by their running root
       mean square (`second_moment_beta`).
    4. `W -= lr * sqrt(max(1, rows / cols)) * (update + weight_decay * W)`; with `cautious`, W decays only where the
       update has its sign.

    `torch.optim.Muon` (2.13) follows the rule without 2 and what is asked for in 3. It is not used because there every
    rank updates every matrix, one after the other, and always in bfloat16, norm included, which a CPU without bfloat16
    in hardware has to emulate.

    The state of a parameter is `momentum_buffer`, and `second_moment` with `second_moment_beta`. With a process group
    every rank must call `step`, `consolidate_state_dict` and `load_state_dict` alike. A matrix without a gradient on
    its owner stays as it is.

    Args:
        params: matrices, or groups of them as for every optimizer of torch.
        lr: Learning rate.
        momentum: Share of the old mean of gradients that a step keeps.
        nesterov: Whether the newest gradient counts once more.
        ns_steps: Iterations of the orthogonalization; at most five with `polar_express`.
        ns_dtype: Their arithmetic, `auto`, `float32` or `bfloat16`.
        orthogonalizer: `newton_schulz` or `polar_express`.
        row_equilibration, frobenius_snap, second_moment_beta, cautious: See above; off by default.
        weight_decay: Decoupled weight decay.

    Raises:
        ValueError: If a parameter is not a matrix or is sharded itself (a DTensor), or a setting is none of these.
    """

    # What consolidate_state_dict() gathered, by parameter number; None when stale. A class attribute, because
    # copying an Optimizer leaves its other attributes behind.
    _consolidated: dict[int, dict[str, Tensor]] | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        ns_dtype: str = "auto",
        orthogonalizer: str = "newton_schulz",
        row_equilibration: bool = False,
        frobenius_snap: bool = False,
        second_moment_beta: float | None = None,
        weight_decay: float = 0.0,
        cautious: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "ns_dtype": ns_dtype,
            "orthogonalizer": orthogonalizer,
            "row_equilibration": row_equilibration,
            "frobenius_snap": frobenius_snap,
            "second_moment_beta": second_moment_beta,
            "weight_decay": weight_decay,
            "cautious": cautious,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as `torch.optim.Optimizer` does, and check that all its parameters are whole matrices."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for param in group["params"]:
            if param.ndim != 2:
                raise ValueError(
                    f"Muon was given a parameter of shape {tuple(param.shape)}; it takes matrices only: give this "
                    f"parameter a role that AdamW updates"
                )
            if hasattr(param, "device_mesh"):
                raise ValueError(
                    "Muon was given a DTensor; it needs whole matrices and shares the work over ranks by itself: "
                    "leave matrices unsharded (trainer=ddp)"
                )
            # an unknown name fails now, not at the first step
            choose_ns_dtype(group["ns_dtype"], param.device)
        name, steps = group["orthogonalizer"], group["ns_steps"]
        if name not in ORTHOGONALIZERS:
            raise ValueError(f"orthogonalizer={name!r} is unknown; set it to {' or '.join(ORTHOGONALIZERS)}")
        if name == "polar_express" and steps > len(POLAR_EXPRESS):
            most = len(POLAR_EXPRESS)
            raise ValueError(f"ns_steps={steps}: polar_express has coefficients for {most}; set it to {most} or less")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # states of nanochat and of earlier versions lack some
            for name, value in self.defaults.items():
                if name != "differentiable":  # torch's own, which it adds to the defaults here
                    group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every matrix once; returns what `closure`, if given, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._consolidated = None  # the gathered state is out of date after this step
        rank, owners = runtime.rank(), self._owners()
        in_flight: _Exchange | None = None
        for group, bucket in self._buckets():
            # 1) Update those matrices of this shape that are this rank's own.
            own = [p for p in bucket if owners[p] == rank]
            self._update(own, group)
            # 2) Send them and receive the others', without waiting: that goes on while the next shape is computed.
            # Only then are the parameters of the shape before overwritten with what came.
            if runtime.world_size() > 1:
                exchange = _Exchange(bucket, owners, own)
                if in_flight is not None:
                    in_flight.write_back()
                in_flight = exchange
        if in_flight is not None:
            in_flight.write_back()
        return loss

    def consolidate_state_dict(self) -> None:
        """Gather all ranks' momentum on every rank: `state_dict()` holds the whole of it until the next step.

        All ranks must call it together, as Lightning does before it saves. The copies lie in host memory; a matrix that
        was never updated is gathered as zeros, which is where its momentum begins. One process has nothing to gather.
        """
        if runtime.world_size() == 1:
            return
        rank, owners = runtime.rank(), self._owners()
        gathered: dict[Tensor, dict[str, Tensor]] = {p: {} for p in self._parameters()}
        for group, bucket in self._buckets():
            own = [p for p in bucket if owners[p] == rank]
            kinds = {"momentum_buffer": bucket[0]}
            if group["second_moment_beta"] is not None:
                rows, cols = bucket[0].shape
                kinds["second_moment"] = bucket[0][:, :1] if rows >= cols else bucket[0][:1]
            for name, like in kinds.items():
                exchange = _Exchange(bucket, owners, [self._state(p, name, like) for p in own], like.shape)
                for param, _, value in exchange.wait():
                    gathered[param][name] = value.to("cpu", copy=True)
        self._consolidated = {i: gathered[p] for i, p in enumerate(self._parameters())}

    def state_dict(self) -> dict[str, Any]:
        """Return the state in the standard layout, whole and alike on every rank.

        Raises:
            RuntimeError: With several ranks, if `consolidate_state_dict()` was not called since the last step.
        """
        packed = super().state_dict()
        if runtime.world_size() > 1:
            if self._consolidated is None:
                raise RuntimeError(
                    "each rank holds only its own part of Muon's momentum; call consolidate_state_dict() on all ranks, "
                    "after the last step, before state_dict()"
                )
            packed["state"] = dict(self._consolidated)
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a whole state, from any number of ranks; momentum that this rank does not own is left out."""
        rank, owners = runtime.rank(), self._owners()
        owned = {i for i, p in enumerate(self._parameters()) if owners[p] == rank}
        # The state counts parameters in the order of *its* groups: what number a parameter has there, its group says.
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        kept = {numbers[i] for i in owned if i < len(numbers)}
        part = {number: value for number, value in state_dict["state"].items() if number in kept}
        super().load_state_dict({**state_dict, "state": part})
        self._consolidated = None

    def _update(self, bucket: Bucket, group: dict[str, Any]) -> None:
        """Update the matrices of a bucket that have a gradient, as one batch."""
        pairs = [(p, p.grad) for p in bucket if p.grad is not None]
        if not pairs:
            return
        params, grads = [p for p, _ in pairs], [grad for _, grad in pairs]
        # 1) The momentum is a running mean of the gradients; with Nesterov the newest gradient counts once more.
        momenta = [self._momentum(p) for p in params]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        directions = torch._foreach_lerp(grads, momenta, group["momentum"]) if group["nesterov"] else momenta
        # 2) Its nearest orthogonal matrix: all directions of the update get the same length.
        x = torch.stack(list(directions))
        dtype = choose_ns_dtype(group["ns_dtype"], params[0].device)
        if group["row_equilibration"]:
            x = equilibrate_rows(x.to(dtype))
        orthogonalize = polar_express if group["orthogonalizer"] == "polar_express" else newton_schulz
        updates = orthogonalize(x, group["ns_steps"], dtype).to(params[0].dtype)
        if group["frobenius_snap"]:
            updates = self._snap(updates)
        if group["second_moment_beta"] is not None:
            updates = self._even_out(params, updates, group["second_moment_beta"])
        # 3) The step. A tall matrix gets a longer one, so that each output moves by about as much as in a square one.
        rows, cols = params[0].shape
        lr = group["lr"] * max(1, rows / cols) ** 0.5
        if group["weight_decay"]:
            weights = torch.stack(list(params))
            # Cautious: a weight decays only where the step makes it smaller anyway (Liang et al. 2024).
            kept = weights * (updates * weights >= 0) if group["cautious"] else weights
            updates = updates + group["weight_decay"] * kept
        torch._foreach_add_(params, list(updates.unbind()), alpha=-lr)

    @staticmethod
    def _snap(updates: Tensor) -> Tensor:
        """Give each update (K, M, N) the Frobenius norm of an orthogonal matrix, sqrt(min(M, N)), exactly (Muon+)."""
        norm = torch.linalg.vector_norm(updates, dim=(-2, -1), keepdim=True)
        return updates * (min(updates.shape[-2:]) ** 0.5 / norm.clamp(min=SMALLEST_NORM))

    def _even_out(self, params: Bucket, updates: Tensor, beta: float) -> Tensor:
        """Divide rows, or columns of a wide matrix, by their running root mean square; the whole keeps its norm.

        This is NorMuon (Li et al. 2025). The running mean begins at zero and is not corrected for it: the norm is
        restored, so that only ratios count.
        """
        rows, cols = updates.shape[-2:]
        mean_square = updates.square().mean(dim=-1 if rows >= cols else -2, keepdim=True)
        moments = [self._state(p, "second_moment", mean_square[0]) for p in params]
        torch._foreach_lerp_(moments, list(mean_square.unbind()), 1 - beta)
        scale = torch.stack(moments).clamp(min=1e-10).rsqrt()
        norms = [torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) for x in (updates, updates * scale)]
        return updates * (scale * (norms[0] / norms[1].clamp(min=1e-10)))

    def _momentum(self, param: Tensor) -> Tensor:
        """Return the momentum of a parameter that this rank owns."""
        return self._state(param, "momentum_buffer", param)

    def _state(self, param: Tensor, name: str, like: Tensor) -> Tensor:
        """Return a running mean of a parameter that this rank owns; it begins at zero."""
        state = self.state[param]
        if name not in state:
            state[name] = torch.zeros_like(like, memory_format=torch.contiguous_format)
        return state[name]

    def _parameters(self) -> Iterator[Tensor]:
        """Yield all parameters in the order in which a state dict numbers them."""
        for group in self.param_groups:
            yield from group["params"]

    def _owners(self) -> dict[Tensor, int]:
        """Map each parameter to the rank that updates it."""
        params = list(self._parameters())
        return dict(zip(params, assign_owners(tuple(tuple(p.shape) for p in params), runtime.world_size())))

    def _buckets(self) -> Iterator[tuple[dict[str, Any], Bucket]]:
        """Yield (group, same-shape parameters of it), in an order and a cut that are equal on every rank."""
        for group in self.param_groups:
            by_shape: dict[Any, Bucket] = {}
            for p in group["params"]:
                by_shape.setdefault((p.shape, p.dtype, p.device), []).append(p)
            for bucket in by_shape.values():
                size = max(1, MAX_BATCH_ELEMENTS // max(1, bucket[0].numel())) * runtime.world_size()
                yield from ((group, bucket[i : i + size]) for i in range(0, len(bucket), size))


@functools.cache
def assign_owners(shapes: tuple[tuple[int, ...], ...], world_size: int) -> tuple[int, ...]:
    """Share matrices out to ranks: the costliest first, each to the rank with the least to do.

    The result depends on the arguments alone, so that all ranks find the same one. Equal shapes follow each other,
    which spreads each of them evenly too. Returns the rank that owns each matrix.
    """

    def multiplications(i: int) -> int:  # of one Newton-Schulz iteration: X X^T, A A, B X
        short, long = sorted(shapes[i])
        return short * short * (2 * long + short)

    load = [0] * world_size
    owners = [0] * len(shapes)
    for i in sorted(range(len(shapes)), key=lambda i: (-multiplications(i), shapes[i], i)):
        owners[i] = min(range(world_size), key=lambda rank: (load[rank], rank))
        load[owners[i]] += multiplications(i)
    return tuple(owners)


class _Exchange:
    """One all-gather of a bucket, begun on construction: every rank sends its tensors for the parameters it owns."""

    def __init__(
        self, bucket: Bucket, owners: dict[Tensor, int], own: list[Tensor], shape: torch.Size | None = None
    ) -> None:
        world_size = runtime.world_size()
        counts = [0] * world_size
        self._places: list[tuple[Tensor, int, int]] = []  # parameter, its owner, which of the owner's it is
        for param in bucket:
            owner = owners[param]
            self._places.append((param, owner, counts[owner]))
            counts[owner] += 1
        shape = shape or bucket[0].shape
        self._slots = max(counts)  # all ranks send equally much; what is over is never read
        self._sent = bucket[0].new_empty((self._slots, *shape))
        if own:
            torch._foreach_copy_(list(self._sent[: len(own)].unbind()), own)
        self._received = bucket[0].new_empty((world_size * self._slots, *shape))
        self._work = _all_gather(self._received, self._sent, async_op=True)

    def wait(self) -> list[tuple[Tensor, int, Tensor]]:
        """Wait for the others; return (parameter, its owner, the tensor that the owner sent for it)."""
        self._work.wait()
        return [(param, owner, self._received[owner * self._slots + i]) for param, owner, i in self._places]

    def write_back(self) -> None:
        """Wait for the others, then copy the parameters that they own."""
        updates = [(param, value) for param, owner, value in self.wait() if owner != runtime.rank()]
        if updates:
            torch._foreach_copy_([param for param, _ in updates], [value for _, value in updates])
