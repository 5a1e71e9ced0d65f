"""Laws of the chunked loss: the same numbers as the plain form, for every chunking, mode and dtype."""

import pytest
import torch
import torch.nn.functional as F

from nanochat_pl.model.loss import chunk_tokens_for, chunked_cross_entropy

N, C, V, SOFTCAP = 37, 16, 50, 15.0


def plain(hidden, weight, targets, vocab_size=V, reduction="mean"):
    logits = hidden.float() @ weight[:vocab_size].T
    logits = SOFTCAP * torch.tanh(logits / SOFTCAP)
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction=reduction)


def make(dtype=torch.float32, rows=V):
    generator = torch.Generator().manual_seed(0)
    hidden = (3 * torch.randn(N, C, generator=generator)).to(dtype).requires_grad_()
    weight = (2 * torch.randn(rows, C, generator=generator)).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    targets[::5] = -1
    return hidden, weight, targets


def chunked(hidden, weight, targets, reduction="mean", chunk_tokens=8, vocab_size=V):
    return chunked_cross_entropy(
        hidden,
        weight,
        targets,
        vocab_size=vocab_size,
        softcap=SOFTCAP,
        reduction=reduction,
        chunk_tokens=chunk_tokens,
    )


def gradients(loss, *tensors):
    upstream = torch.linspace(-1, 2, loss.numel()).view_as(loss) if loss.dim() else torch.tensor(1.7)
    return torch.autograd.grad(loss, tensors, upstream)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("chunk_tokens", [1, 8, 37, 64])
def test_chunked_equals_plain(reduction, chunk_tokens):
    hidden, weight, targets = make()
    ours = chunked(hidden, weight, targets, reduction, chunk_tokens)
    theirs = plain(hidden, weight, targets, reduction=reduction)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(gradients(ours, hidden, weight), gradients(theirs, hidden, weight), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_gradient_is_the_derivative(reduction):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 4, generator=generator).requires_grad_()
    weight = torch.randn(9, 4, generator=generator).requires_grad_()
    targets = torch.tensor([0, 3, -1, 8, 1, 1])
    loss = chunked(hidden, weight, targets, reduction, chunk_tokens=4, vocab_size=8 + 1).sum()
    for tensor, grad in zip((hidden, weight), torch.autograd.grad(loss, (hidden, weight)), strict=True):
        step = torch.randn(tensor.shape, generator=generator) * 1e-2
        with torch.no_grad():
            sides = []
            for sign in (1, -1):
                moved = [tensor + sign * step if other is tensor else other for other in (hidden, weight)]
                sides.append(chunked(*moved, targets, reduction, chunk_tokens=4, vocab_size=9).sum())
        assert (grad * step).sum().item() == pytest.approx((sides[0] - sides[1]).item() / 2, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_padded_rows_take_no_part(reduction):
    hidden, weight, targets = make(rows=V + 14)
    ours, theirs = (f(hidden, weight, targets, reduction=reduction) for f in (chunked, plain))
    torch.testing.assert_close(ours, theirs)
    grad = gradients(ours, weight)[0]
    torch.testing.assert_close(grad, gradients(theirs, weight)[0], atol=1e-5, rtol=1e-4)
    assert not grad[V:].any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_batch_without_targets_has_loss_zero_and_no_gradient(reduction):
    hidden, weight, _ = make()
    loss = chunked(hidden, weight, torch.full((N,), -1), reduction)
    assert not loss.any()
    assert not any(grad.any() for grad in gradients(loss, hidden, weight))


def test_masked_tokens_get_no_gradient():
    hidden, weight, targets = make()
    (grad,) = gradients(chunked(hidden, weight, targets), hidden)
    assert grad[targets < 0].eq(0).all()
    assert grad[targets >= 0].ne(0).any(dim=1).all()


def test_reduction_none_keeps_the_shape_of_the_targets():
    hidden, weight, targets = make()
    loss = chunked(hidden[:36].view(4, 9, C), weight, targets[:36].view(4, 9), "none")
    assert loss.shape == (4, 9)
    torch.testing.assert_close(loss.flatten(), chunked(hidden[:36], weight, targets[:36], "none"))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_bf16_is_accumulated_in_fp32(reduction):
    hidden, weight, targets = make(torch.bfloat16)
    exact = weight.detach().bfloat16().float().requires_grad_()
    ours, theirs = chunked(hidden, weight, targets, reduction), plain(hidden, exact, targets, reduction=reduction)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=3e-2, rtol=1e-2)  # products are rounded to bf16, losses are not
    ours_hidden, ours_weight = gradients(ours, hidden, weight)
    theirs_hidden, theirs_weight = gradients(theirs, hidden, exact)
    assert (ours_hidden.dtype, ours_weight.dtype) == (torch.bfloat16, torch.float32)
    assert F.cosine_similarity(ours_weight.flatten(), theirs_weight.flatten(), dim=0) > 0.9995
    assert F.cosine_similarity(ours_hidden.float().flatten(), theirs_hidden.float().flatten(), dim=0) > 0.9995


def test_many_small_gradients_are_not_lost_in_bf16():
    hidden = torch.ones(4096, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, requires_grad=True)
    loss = chunked(hidden, weight, torch.zeros(4096, dtype=torch.int64), "sum", chunk_tokens=8, vocab_size=2)
    torch.testing.assert_close(gradients(loss, weight)[0] / 1.7, torch.tensor([[-2048.0], [2048.0]]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_gradients_the_loss_is_the_same(mode, reduction):
    hidden, weight, targets = make()
    with mode():
        loss = chunked(hidden, weight, targets, reduction)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, chunked(hidden, weight, targets, reduction).detach())


def test_frozen_parts_get_no_gradient():
    hidden, weight, targets = make()
    full = gradients(chunked(hidden, weight, targets), hidden, weight)
    torch.testing.assert_close(gradients(chunked(hidden, weight.detach(), targets), hidden)[0], full[0])
    torch.testing.assert_close(gradients(chunked(hidden.detach(), weight, targets), weight)[0], full[1])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_double_backward_is_refused(reduction):
    hidden, weight, targets = make()
    loss = chunked(hidden, weight, targets, reduction).sum()
    with pytest.raises(RuntimeError, match="differentiated only once"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_backward_twice_gives_the_same_gradient():
    hidden, weight, targets = make()
    loss = chunked(hidden, weight, targets)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, (hidden, weight)), strict=True):
        assert torch.equal(a, b)


def test_extreme_logits_stay_finite():
    hidden, weight, targets = make()
    loss = chunked(hidden * 1e6, weight, targets)
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in gradients(loss, hidden, weight))


@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")  # Dynamo does it
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_one_compiled_graph_gives_the_same(reduction, dtype):
    torch.compiler.reset()
    hidden, weight, targets = make(dtype, rows=V + 14)
    ours = torch.compile(chunked, backend="aot_eager", fullgraph=True, dynamic=False)(
        hidden, weight, targets, reduction
    )
    theirs = chunked(hidden, weight, targets, reduction)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(gradients(ours, hidden, weight), gradients(theirs, hidden, weight), strict=True):
        torch.testing.assert_close(a, b)


def test_unknown_reductions_are_refused():
    with pytest.raises(ValueError, match=r"reduction='max'"):
        chunked(*make(), reduction="max")


def test_the_logits_of_the_batch_never_exist_at_once():
    """The largest tensor any operation makes is one chunk's logits."""
    tokens, vocab, chunk = 1024, 2048, 64
    hidden = torch.randn(tokens, C, requires_grad=True)
    weight = torch.randn(vocab, C, requires_grad=True)
    targets = torch.randint(vocab, (tokens,), generator=torch.Generator().manual_seed(0))
    with LargestTensor() as seen:
        for reduction in ("mean", "none"):
            chunked(hidden, weight, targets, reduction, chunk, vocab).sum().backward()
    assert seen.numel == chunk * vocab


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_chunks_shrink_as_the_vocabulary_grows():
    sizes = [chunk_tokens_for(vocab, "cpu") for vocab in (384, 8192, 65536, 10**7)]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size & (size - 1) == 0 for size in sizes)
