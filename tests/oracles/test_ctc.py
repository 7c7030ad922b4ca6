"""The CTC loss beside torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxmodel.model import from_function
from jaxmodel.options import Task
from jaxmodel.tasks import ctc


def test_loss_and_gradient_are_torchs():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 23, 11)).astype(np.float32) * 2
    lengths, counts = np.array([23, 20, 9, 15]), np.array([6, 3, 5, 1])
    targets = np.where(np.arange(6) < counts[:, None], rng.integers(1, 11, (4, 6)), 0).astype(np.int32)
    targets[0, 1] = targets[0, 0]
    model = from_function(
        lambda key: {"logits": jnp.asarray(logits)}, lambda params, batch: {**params, "lengths": jnp.asarray(lengths)}
    )
    loss = ctc(model, Task(name="ctc"))
    params = model.init(jax.random.key(0))
    found, gradient = jax.value_and_grad(lambda params: loss(params, {"targets": targets}, {}, None, True).sum)(params)
    theirs = torch.tensor(logits, requires_grad=True)
    logs = theirs.log_softmax(-1).transpose(0, 1)
    expected = torch.nn.functional.ctc_loss(
        logs, torch.tensor(targets), torch.tensor(lengths), torch.tensor(counts), blank=0, reduction="sum"
    )
    expected.backward()
    assert abs(float(found) - expected.item()) < 1e-5 * expected.item()
    assert theirs.grad is not None
    np.testing.assert_allclose(gradient["logits"], theirs.grad, rtol=0, atol=1e-5)
