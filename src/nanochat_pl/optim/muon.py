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
from nanochat_pl.optim.config import NS_DTYPES

__all__ = ["Muon", "assign_owners", "choose_ns_dtype", "newton_schulz"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""p(s) = a s + b s^3 + c s^5, applied to every singular value (Keller Jordan).

It rises steeply at zero rather than converges: after five iterations singular values lie between about 0.7 and 1.2.
"""

NORM_EPS = 1e-7
"""Added to the norm, so that a zero gradient (a layer that starts at zero) gives a zero update and no NaN."""

MAX_BATCH_ELEMENTS = 2**26
"""The most elements in a batch of matrices of one shape (256 MiB of float32), which bounds the temporaries; the largest
matrices of a depth-20 model still go ten at a time."""

Bucket = list[Tensor]

# torch 2.13 gave it a new name and warns of the old one.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@functools.cache  # asking a CPU means reading a file
def choose_ns_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve `optim.ns_dtype` on `device`: auto is bfloat16 where the device is fast at it, else float32.

    The answer depends on the device alone, so that ranks with equal devices compute alike. On a CPU with AVX512-bf16 or
    AMX bfloat16 is about three times faster (`benchmarks/bench_muon.py`); on others it is emulated and slower.

    Raises:
        ValueError: If the name is not one of auto, float32, bfloat16.
    """
    if name not in NS_DTYPES:
        raise ValueError(f"ns_dtype={name!r} is unknown; set optim.ns_dtype to auto, float32 or bfloat16")
    return runtime.pick_compute_dtype(name, device)


def newton_schulz(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Orthogonalize each matrix of a batch approximately.

    Args:
        matrices: `(..., M, N)`, floating point; left as it is.
        steps: Iterations; 5 is the usual number.
        dtype: Arithmetic of the iterations. The norm before them is taken in the dtype of `matrices`.

    Returns:
        `(..., M, N)` in `dtype`, singular values near 1 (a zero matrix stays zero).
    """
    a, b, c = COEFFICIENTS
    rows, cols = matrices.shape[-2:]
    # The Frobenius norm bounds the largest singular value: after the division all lie in [0, 1], where p is tame.
    norm = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    x = (matrices / (norm + NORM_EPS)).to(dtype).reshape(-1, rows, cols)
    if rows > cols:  # X X^T of the wide form is the smaller square
        x = x.mT
    rounded = _rounding(dtype, x.device)
    x = x.float() if rounded else x
    for _ in range(steps):
        gram = _round(x @ x.mT, rounded)
        poly = _round(torch.baddbmm(gram, gram, gram, beta=b, alpha=c), rounded)  # b A + c A^2
        x = _round(torch.baddbmm(x, poly, x, beta=a), rounded)  # a X + (b A + c A^2) X
    if rows > cols:
        x = x.mT
    return x.to(dtype).reshape(matrices.shape)


@functools.cache
def _rounding(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether bfloat16 arithmetic is imitated by rounding the results of float32 products.

    A CPU without bfloat16 in hardware would emulate it a hundred times slower; hardware, too, adds up in float32 and
    rounds once.
    """
    return dtype == torch.bfloat16 and device.type == "cpu" and not runtime.has_fast_bf16(device)


def _round(x: Tensor, rounded: bool) -> Tensor:
    return x.bfloat16().float() if rounded else x


class Muon(torch.optim.Optimizer):
    """Move weight matrices by orthogonalized momentum.

    For each matrix W with gradient G: `buf += (1 - momentum) (G - buf)`; the direction is `buf`, with Nesterov
    `G + momentum (buf - G)`; `W -= lr * sqrt(max(1, rows / cols)) * orthogonalize(direction)`.

    `torch.optim.Muon` (2.13) follows the same rule and keeps the same state, one `momentum_buffer` a parameter. It is
    not used because there every rank updates every matrix, one after the other, and always in bfloat16, norm included,
    which a CPU without bfloat16 in hardware has to emulate.

    With a process group every rank must call `step`, `consolidate_state_dict` and `load_state_dict` alike. A matrix
    without a gradient on its owner stays as it is. `ns_dtype` is `auto`, `float32` or `bfloat16`.

    Raises:
        ValueError: If a parameter is not a matrix or is sharded itself (a DTensor).
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
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "ns_dtype": ns_dtype}
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
            choose_ns_dtype(group["ns_dtype"], param.device)  # an unknown name fails now, not at the first step

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # nanochat's states lack it
            group.setdefault("ns_dtype", self.defaults["ns_dtype"])

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
        gathered: dict[Tensor, Tensor] = {}
        for _, bucket in self._buckets():
            own = [self._momentum(p) for p in bucket if owners[p] == rank]
            for param, _, momentum in _Exchange(bucket, owners, own).wait():
                gathered[param] = momentum.to("cpu", copy=True)
        self._consolidated = {i: {"momentum_buffer": gathered[p]} for i, p in enumerate(self._parameters())}

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
        dtype = choose_ns_dtype(group["ns_dtype"], params[0].device)
        updates = newton_schulz(torch.stack(list(directions)), group["ns_steps"], dtype).to(params[0].dtype)
        # 3) The step. A tall matrix gets a longer one, so that each output moves by about as much as in a square one.
        rows, cols = params[0].shape
        torch._foreach_add_(params, list(updates.unbind()), alpha=-group["lr"] * max(1, rows / cols) ** 0.5)

    def _momentum(self, param: Tensor) -> Tensor:
        """Return the momentum of a parameter that this rank owns; it begins at zero."""
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param, memory_format=torch.contiguous_format)
        return state["momentum_buffer"]

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

    def __init__(self, bucket: Bucket, owners: dict[Tensor, int], own: list[Tensor]) -> None:
        world_size = runtime.world_size()
        counts = [0] * world_size
        self._places: list[tuple[Tensor, int, int]] = []  # parameter, its owner, which of the owner's it is
        for param in bucket:
            owner = owners[param]
            self._places.append((param, owner, counts[owner]))
            counts[owner] += 1
        shape, self._slots = bucket[0].shape, max(counts)  # all ranks send the same size; unused slots are never read
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
