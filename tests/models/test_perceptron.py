"""The perceptron by its formula, and models whose sizes the data tell."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import config
from jaxmodel.errors import InputError
from jaxmodel.models.parts import UNGATED
from jaxmodel.models.plain import ConvNet, Perceptron
from jaxmodel.models.presets import PRESETS
from jaxmodel.nn.activations import ACTIVATIONS
from tests.contract import batch_of, relative

TABLE = {"inputs": ("features", "categories"), "num_features": 4, "categories": (3, 12), "num_outputs": 2}
NUMBERS = {"inputs": ("features",), "num_features": 4, "categories": (), "num_outputs": 1}
IMAGES = {"inputs": ("images",), "channels": 1, "num_outputs": 10}
TEXT = {"inputs": ("tokens",), "vocab_size": 300, "length": 64}


def rows(facts, size=5):
    rng = np.random.default_rng(1)
    arrays = {
        "features": rng.normal(size=(size, facts["num_features"])).astype(np.float32),
        "categories": np.stack([rng.integers(0, n, size) for n in facts["categories"] or (1,)], 1).astype(np.int32),
    }
    return {name: arrays[name] for name in facts["inputs"]}


def by_formula(config, params, batch, statistics=None):
    """float64 logits and last hidden layer, in numpy."""
    params = jax.tree.map(lambda array: np.asarray(array, np.float64), params)
    parts = [batch["features"].astype(np.float64)] if config.num_features else []
    parts += [params[f"category{i}"][batch["categories"][:, i]] for i in range(len(config.categories))]
    x = np.concatenate(parts, axis=1)
    for i in range(len(config.hidden)):
        x = x @ params[f"hidden{i}"] + params[f"hidden{i}_bias"]
        norm = params.get(f"hidden{i}_norm")
        if config.norm == "layer":
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + config.epsilon)
        if config.norm == "batch":
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + config.epsilon)
        if norm is not None:
            x = x * norm["scale"] + norm["bias"]
        x = np.maximum(x, 0)
    return x @ params["outputs"] + params["outputs_bias"], x


def nudged(params):
    """Biases and norms away from zeros and ones, where they could be left out unseen."""
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda array: array + 0.1 * rng.normal(size=array.shape).astype(np.float32), params)


@pytest.mark.parametrize("facts", [TABLE, NUMBERS, {**TABLE, "inputs": ("categories",), "num_features": 0}])
@pytest.mark.parametrize(
    "overrides", [{}, {"hidden": ()}, {"hidden": (6, 5), "norm": "layer"}, {"norm": "batch", "category_dim": 3}]
)
def test_formula(facts, overrides):
    model = config.replace(PRESETS["mlp"], overrides).fitted(facts).build()
    params, batch = nudged(jax.jit(model.init)(jax.random.key(0))), rows(facts)
    out = jax.jit(functools.partial(model.apply, train=True))(params, batch, model.start())
    logits, hidden = by_formula(model.config, params, batch)
    assert set(model.config.inputs) == set(facts["inputs"])
    assert relative(out["logits"], logits) < 1e-5 and relative(out["embedding"], hidden) < 1e-5
    assert out["logits"].dtype == out["embedding"].dtype == jnp.float32


@pytest.mark.parametrize("name", UNGATED)
def test_activations(name):
    model = Perceptron(2, (), 1, hidden=(3,), activation=name).build()
    params, x = model.init(jax.random.key(0)), np.array([[0.5, -1.0]], np.float32)
    hidden = ACTIVATIONS[name][0](x @ params["hidden0"] + params["hidden0_bias"])
    assert relative(model.apply(params, {"features": x})["embedding"], hidden) < 1e-6


def test_the_seed_story_has_its_size():
    model = PRESETS["mlp"].fitted({**NUMBERS, "num_features": 10}).build()
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert {name: array.shape for name, array in params.items()} == {
        "hidden0": (10, 64), "hidden0_bias": (64,), "outputs": (64, 1), "outputs_bias": (1,)}  # fmt: skip
    assert model.start() == {}


def test_embeddings_start_at_unit_length_and_the_unknown_at_zero():
    params = Perceptron(0, (2000, 3), 1).build().init(jax.random.key(0))
    assert params["category0"].shape == (2000, 50) and params["category1"].shape == (3, 2)
    lengths = np.linalg.norm(params["category0"], axis=1)
    assert lengths[0] == 0 and abs(lengths[1:].mean() - 1) < 0.02 and lengths[1:].std() < 0.2


def test_the_compute_dtype_is_that_of_the_execution():
    settings = {"hidden": (16, 16), "norm": "layer"}
    full, half = (
        config.replace(PRESETS["mlp"], {**settings, "execution.dtype": dtype}).fitted(TABLE).build()
        for dtype in ("float32", "bfloat16")
    )
    params, batch = full.init(jax.random.key(0)), rows(TABLE)
    one, other = full.apply(params, batch)["logits"], half.apply(params, batch)["logits"]
    assert other.dtype == jnp.float32 and 1e-4 < relative(other, one) < 3e-2


# Sizes by the data


def test_sizes_that_are_left_open_come_from_the_data():
    assert Perceptron().fitted(TABLE) == Perceptron(4, (3, 12), 2)
    assert Perceptron(num_features=4, hidden=(5,)).fitted(TABLE) == Perceptron(4, (3, 12), 2, hidden=(5,))
    assert PRESETS["resnet-tiny"].fitted(IMAGES) == ConvNet(10, 1, widths=(32, 64, 128))
    assert PRESETS["tiny"].fitted(TEXT) is not None and PRESETS["tiny"].fitted(TEXT) == PRESETS["tiny"]
    for unfitted in (Perceptron(), ConvNet()):
        unfitted.check()  # flags are checked before any data is read
        assert config.from_dict(config.to_dict(unfitted)) == unfitted


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Perceptron().build(), "model.num_features is not known: set it, or let the data tell"),
        (lambda: Perceptron(3, ()).build(), "model.num_outputs is not known"),
        (lambda: ConvNet(channels=1).build(), "model.num_classes is not known"),
        (lambda: Perceptron(5).fitted(TABLE), "--model.num_features=5, and the data have 4: leave --model.num_fea"),
        (lambda: ConvNet(3).fitted(IMAGES), "--model.num_classes=3, and the data have 10"),
        (lambda: Perceptron().fitted(IMAGES), "data are images, and --model reads features and categories: choose one"),
        (lambda: PRESETS["tiny"].fitted(TABLE), "data are features, and --model reads tokens: .* as in --model=mlp"),
        (lambda: ConvNet().fitted(TEXT), "the data are tokens, and --model reads images: .* as in --model=tiny"),
        (lambda: Perceptron().fitted(IMAGES), "as in --model=resnet-tiny"),
        (lambda: PRESETS["tiny"].fitted({**TEXT, "length": 999}), "--data.length=999 is longer than --model.max_len"),
        (lambda: PRESETS["tiny"].fitted({**TEXT, "vocab_size": 9999}), "the tokenizer has 9999 tokens, --model.vocab"),
        (lambda: Perceptron(0, ()).check(), "model.num_features=0 and no model.categories: the model would read"),
        (lambda: Perceptron(dropout=1.0).check(), "must be a number from 0 to 0.99"),
        (lambda: Perceptron(hidden=(0,)).check(), "model.hidden=0: must be a whole number of at least 1"),
        (lambda: Perceptron(activation="swiglu").check(), "model.activation=swiglu: must be one of relu"),
        (lambda: Perceptron(norm="rms").check(), "model.norm=rms"),
    ],
)
def test_words_of_the_errors(make, words):
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize("missing", ["features", "categories"])
def test_a_batch_without_what_is_read_is_refused(missing):
    model, batch = Perceptron(32, (5, 12), 10).build(), batch_of("perceptron", rows=2)
    del batch[missing]
    with pytest.raises(InputError, match=f"{missing} is missing"):
        jax.eval_shape(model.apply, jax.eval_shape(model.init, jax.random.key(0)), batch)
