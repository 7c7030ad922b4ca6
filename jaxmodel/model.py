"""A model is a few pure functions: the contract, and the ways to make one. Read this first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import jax

from jaxmodel import weights
from jaxmodel.config import is_config, register, to_dict
from jaxmodel.errors import InputError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxmodel.sharding import Partitioning, Rules

Batch = Mapping[str, Any]  # named arrays
Params = Any
State = Any
Key = jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
    """What `apply` returns, always the same three things; `out["logits"]` reads a value.

    Attributes:
      values: named arrays: `logits`, `hidden`, `embedding`, `prediction`.
      state: what changed: batch statistics, a cache; {} for most models.
      losses: float32[B] each, one number a sequence, already scaled (router losses).
    """

    values: dict[str, jax.Array]
    state: State = dataclasses.field(default_factory=dict)
    losses: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> jax.Array:
        if name not in self.values:
            raise KeyError(f"this model gives no {name!r}; it gives {', '.join(self.values)}")
        return self.values[name]


class Apply(Protocol):
    """(params, batch, state, key, train) -> Outputs. Same inputs, same outputs: no hidden state anywhere."""

    def __call__(
        self, params: Params, batch: Batch, state: State = None, *, key: Key = None, train: bool = False
    ) -> Outputs: ...


class Start(Protocol):
    """A fresh state: batch statistics, or (given both sizes) an empty cache; {} for most models."""

    def __call__(self, batch_size: int | None = None, length: int | None = None) -> State: ...


class Model(NamedTuple):
    """A model as pure functions.

    Attributes:
      init: key -> params.
      apply: (params, batch, state=None, *, key=None, train=False) -> Outputs.
      start: (batch_size=None, length=None) -> state.
      layout: the layout of every weight, a tree prefix of params.
      config: the frozen dataclass it was built from; `config.build(partitioning)` builds it again.
    """

    init: Callable[[jax.Array], Params]
    apply: Apply
    start: Start
    layout: Any
    config: Any


def no_state(batch_size: int | None = None, length: int | None = None) -> State:
    """The `start` of a model without state."""
    del batch_size, length
    return {}


def sharded(model: Model, mesh: Mesh, rules: Rules | None = None) -> Model:
    """The model bound to a mesh: its params are initialised in place and its activations are constrained.

    Args:
      model: built from a config with `build`; of any other weights are placed by their layouts, and batches split.
      mesh: from `sharding.make_mesh`.
      rules: logical dims to mesh axes; `sharding.RULES` by default.

    Raises:
      InputError: the mesh does not divide a dim of a weight (named).
    """
    from jaxmodel.sharding import RULES, Partitioning

    partitioning = Partitioning(mesh, RULES if rules is None else rules)
    by_code = model._replace(apply=partitioning.splitting(model.apply))
    built = by_code if opaque(model.config) is not None else model.config.build(partitioning)
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    partitioning.check(built.layout, shapes)
    place = partitioning.shardings(built.layout, shapes)

    return built._replace(init=jax.jit(built.init, out_shardings=place))


@register
@dataclasses.dataclass(frozen=True)
class Chain:
    """The config of `chain`: configs by name, in order."""

    parts: tuple[tuple[str, Any], ...]

    def build(self, partitioning: Partitioning | None = None) -> Model:
        """The chained model."""
        return _chain({name: part.build(partitioning) for name, part in self.parts})


@register
@dataclasses.dataclass(frozen=True)
class Frozen:
    """The config of `frozen`."""

    base: Any
    select: str = "*"

    def build(self, partitioning: Partitioning | None = None) -> Model:
        """The frozen model."""
        return frozen(self.base.build(partitioning), self.select)


@register
@dataclasses.dataclass(frozen=True)
class Trained:
    """The config of `trained`."""

    base: Any
    select: str = "*"

    def build(self, partitioning: Partitioning | None = None) -> Model:
        """The model with weights that train beside adapters."""
        return trained(self.base.build(partitioning), self.select)


def chain(*models: Model, **named: Model) -> Model:
    """Models one after the other: what one gives joins the batch that the next one sees.

    Params and state are dicts by name ("0", "1", … where none is given). The values of all are returned, a later
    model's winning where two share a name, and every loss under "name/loss". A batch of `hidden` alone
    (a head-only call, see the transformer) goes to the last one.
    """
    parts = {str(i): model for i, model in enumerate(models)} | named
    if not parts:
        raise ValueError("chain needs at least one model")
    return _chain(parts)


def _chain(parts: dict[str, Model]) -> Model:
    def apply(params: Params, batch: Batch, state: State = None, *, key: Key = None, train: bool = False) -> Outputs:
        values: dict[str, jax.Array] = {}
        losses: dict[str, jax.Array] = {}
        changed = {}
        if set(batch) == {"hidden"}:
            *_, last = parts
            return parts[last].apply(params[last], batch)
        for i, (name, model) in enumerate(parts.items()):
            mine = None if key is None else jax.random.fold_in(key, i)
            before = None if state is None else state.get(name)
            out = model.apply(params[name], {**batch, **values}, before, key=mine, train=train)
            values |= out.values
            losses |= {f"{name}/{loss}": value for loss, value in out.losses.items()}
            if out.state:
                changed[name] = out.state
        return Outputs(values, changed, losses)

    layout = {name: model.layout for name, model in parts.items()}
    config = Chain(tuple((name, model.config) for name, model in parts.items()))
    return Model(init_of(parts), apply, start_of(parts), layout, config)


def init_of(parts: Mapping[str, Model]) -> Callable[[jax.Array], Params]:
    """The `init` of a model whose params are those of its parts by name."""

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, len(parts))
        return {name: model.init(k) for (name, model), k in zip(parts.items(), keys, strict=True)}

    return init


def start_of(parts: Mapping[str, Model]) -> Start:
    """The `start` of a model whose state is that of its parts by name, as far as they have one."""

    def start(batch_size: int | None = None, length: int | None = None) -> State:
        states = {name: model.start(batch_size, length) for name, model in parts.items()}
        return {name: state for name, state in states.items() if state}

    return start


def frozen(model: Model, select: str = "*") -> Model:
    """The same model with weights that do not train, and so meet no decay and have no optimizer state.

    Its own state (batch statistics) still follows the data in training; `apply(…, train=False)` holds that too.
    `select` is a glob over paths ("stack/*"): what it does not match trains as before. InputError if it matches none.
    """
    return _marked(model, weights.frozen, select, Frozen(model.config, select))


def trained(model: Model, select: str = "*") -> Model:
    """The same model with plain weights that train beside adapters, as a new head does: `trained(model, "head/*")`.

    Without it, adapters (`lora`) keep every plain weight still. In a chain it is said of a part:
    `chain(body=body, head=trained(head))`. Without adapters all that it changes is what `frozen` said. `select` is a
    glob over paths; InputError if it matches none.
    """
    return _marked(model, weights.trained, select, Trained(model.config, select))


def _marked(model: Model, mark: Callable[[str], str], select: str, config: Any) -> Model:
    selected = weights.matching(model.layout, select)

    def marked(path: Any, text: str) -> str:
        return mark(text) if weights.path_name(path) in selected else text

    return model._replace(layout=jax.tree_util.tree_map_with_path(marked, model.layout), config=config)


@dataclasses.dataclass(frozen=True)
class Opaque:
    """The config of a model made from code alone: nothing but its name can be written down."""

    name: str


def opaque(config: Any) -> str | None:
    """The name of a part that was made from code: then the whole config cannot be written down."""
    if isinstance(config, Opaque):
        return config.name
    parts = config if isinstance(config, tuple) else vars(config).values() if is_config(config) else ()
    return next((found for part in parts if (found := opaque(part))), None)


def written(config: Any) -> dict[str, Any]:
    """A model's config as `config.to_dict` gives it, or {"opaque": name} of what was made from code."""
    name = opaque(config)
    return to_dict(config) if name is None else {"opaque": name}


def from_function(
    init: Callable[[jax.Array], Params],
    apply: Callable[..., Any],
    start: Start | None = None,
    *,
    layout: Any = None,
    name: str = "function",
) -> Model:
    """A model from two plain functions, or three where it keeps a state, draws random numbers or has own losses.

    Args:
      init: key -> params, any tree of arrays.
      apply: (params, batch) -> named values, or one array, which is called `prediction`; with a `start`,
        (params, batch, state, *, key, train) -> Outputs.
      start: as in `Model`; `no_state` for an `apply` that wants key or train alone.
      layout: a tree prefix of params; without one, matrices are read as `in -> out` and all else has no arrow.
      name: for messages.

    Quantized, adapted or observed weights reach `apply` as plain arrays: it multiplies with `@`, not with ours.
    """

    def full(params: Params, batch: Batch, state: State = None, *, key: Key = None, train: bool = False) -> Outputs:
        plain = weights.densify(params, layout)
        if start is None:
            return Outputs(_named(apply(plain, batch)))
        return apply(plain, batch, require_state(state, shapes, apply), key=key, train=train)

    shapes = {} if start is None else jax.eval_shape(start)
    layout = _guessed(jax.eval_shape(init, jax.random.key(0))) if layout is None else layout
    return Model(init, full, start or no_state, layout, Opaque(name))


def _named(values: Mapping[str, jax.Array] | jax.Array) -> dict[str, jax.Array]:
    return dict(values) if isinstance(values, Mapping) else {"prediction": values}


def _guessed(params: Params) -> Any:
    """Layouts for foreign params: a matrix contracts its first dim; other arrays just have dims."""

    def one(array: Any) -> str:
        return "in -> out" if array.ndim == 2 else " ".join(f"dim{i}" for i in range(array.ndim))

    return jax.tree.map(one, params)


def from_linen(module: Any, *args: str, example: Batch, layout: Any = None) -> Model:
    """A model from a Flax Linen module.

    Args:
      module: called as `module(*[batch[a] for a in args])`; a `train` argument is passed if it takes one.
      *args: names of the batch's entries that the module takes, in order.
      example: a batch of the right ranks and dtypes, for initialisation.
      layout: as in `from_function`. Collections other than `params` become the state.
    """
    import inspect

    takes_train = "train" in inspect.signature(module.__call__).parameters

    def variables(key: jax.Array) -> dict[str, Any]:
        flag = {"train": False} if takes_train else {}
        return dict(module.init({"params": key}, *(example[a] for a in args), **flag))

    def apply(params: Params, batch: Batch, state: State = None, *, key: Key = None, train: bool = False) -> Outputs:
        kept = require_state(state, shapes, module)
        flag = {"train": train} if takes_train else {}
        rngs = {} if key is None else {"dropout": key}
        mutable = list(shapes) if train and shapes else False
        plain = weights.densify(params, layout)
        out = module.apply({"params": plain, **kept}, *(batch[a] for a in args), rngs=rngs, mutable=mutable, **flag)
        values, changed = out if mutable else (out, kept)
        return Outputs(_named(values), dict(changed))

    def start(batch_size: int | None = None, length: int | None = None) -> State:
        del batch_size, length
        return {k: v for k, v in variables(jax.random.key(0)).items() if k != "params"} if shapes else {}

    shapes = {k: v for k, v in jax.eval_shape(variables, jax.random.key(0)).items() if k != "params"}
    if layout is None:
        layout = _guessed(jax.eval_shape(lambda key: variables(key)["params"], jax.random.key(0)))
    return Model(lambda key: variables(key)["params"], apply, start, layout, Opaque(type(module).__name__))


def from_nnx(make: Callable[[Any], Any], *args: str, layout: Any = None) -> Model:
    """A model from a Flax NNX module.

    Args:
      make: `flax.nnx.Rngs -> module`; it is called again to initialise, so it must not hold arrays of its own.
      *args: names of the batch's entries that the module takes, in order.
      layout: as in `from_function`. Variables other than `nnx.Param` become the state; random streams are made
        anew from `key` at every call.
    """
    from flax import nnx

    def split(key: jax.Array) -> Any:
        return nnx.split(make(nnx.Rngs(key)), nnx.Param, nnx.RngState, ...)

    shapes = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    parts: Any = nnx.split(shapes, nnx.Param, nnx.RngState, ...)
    definition, param_shapes, random, other_shapes = parts
    stateful = nnx.to_pure_dict(other_shapes)

    def filled(shapes: Any, values: Any) -> Any:
        state = jax.tree.map(lambda leaf: leaf, shapes)  # a copy: replacing writes into it
        nnx.replace_by_pure_dict(state, values)
        return state

    def apply(params: Params, batch: Batch, state: State = None, *, key: Key = None, train: bool = False) -> Outputs:
        kept = require_state(state, stateful, make)
        if train and key is None and jax.tree.leaves(random):
            raise InputError("this module draws random numbers in training: apply(…, key=key, train=True)")
        rngs = split(jax.random.key(0) if key is None else key)[2]
        module = nnx.merge(
            definition, filled(param_shapes, weights.densify(params, layout)), rngs, filled(other_shapes, kept)
        )
        module.train() if train else module.eval()
        values = module(*(batch[a] for a in args))
        return Outputs(_named(values), nnx.to_pure_dict(cast(Any, nnx.split(module, nnx.Param, nnx.RngState, ...))[3]))

    def start(batch_size: int | None = None, length: int | None = None) -> State:
        del batch_size, length
        return nnx.to_pure_dict(split(jax.random.key(0))[3]) if stateful else {}

    if layout is None:
        layout = _guessed(nnx.to_pure_dict(param_shapes))
    name = getattr(make, "__name__", "nnx")
    return Model(lambda key: nnx.to_pure_dict(split(key)[1]), apply, start, layout, Opaque(name))


def require_state(state: State, needed: Any, owner: Any) -> State:
    """`state`, or {} where none is needed; InputError when a model that keeps statistics gets none."""
    if jax.tree.leaves(needed) and not state:
        raise InputError(f"{getattr(owner, '__name__', type(owner).__name__)} keeps state: pass state=model.start()")
    return state or {}


def count(model: Model) -> int:
    """How many parameters a model has, from shapes alone.

    >>> from jaxmodel.models.presets import PRESETS
    >>> count(PRESETS["gpt2"].build())
    124439808
    """
    return weights.num_params(jax.eval_shape(model.init, jax.random.key(0)), model.layout)
