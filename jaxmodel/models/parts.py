"""The parts of a transformer, as frozen dataclasses: no jax here, so that `--help` is quick."""

import math
from typing import Any

from jaxmodel.config import Config, field

_COMMON = ("relu", "leaky_relu", "elu", "gelu", "gelu_tanh", "quick_gelu", "silu", "mish")
UNGATED = (*_COMMON, "tanh", "sigmoid", "softplus", "relu_squared")
GATED = ("swiglu", "geglu", "geglu_exact", "quick_geglu")  # those with a gate, that is, a third matrix
ACTIVATIONS = (*UNGATED, *GATED)
NONE_TOO = ("none", *UNGATED)
HALVES = ("attention", "recurrence", "hybrid", "cross", "mlp")
QK_NORMS = ("none", "head", "all", "layer")
PLACEMENTS = ("pre", "post", "output", "both", "parallel", "shared")
POOLS = ("first", "mean", "last", "token", "highest", "slot", "attention", "max", "first_mean")
SHARING = ("none", "keep", "reuse")
SCALINGS = ("none", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional")


class Rope(Config):
    """How rotary positions are made to reach further than they were trained, and which part of a head they turn.

    Scaling is linear (arXiv:2306.15595), dynamic NTK, llama3 (arXiv:2407.21783), yarn (arXiv:2309.00071), longrope
    (arXiv:2402.13753) or proportional: the quickest `fraction` of a whole head's pairs are turned (Gemma 4).
    """

    fraction: float = field(1.0, help="part of a head that is turned", low=0.0, high=1.0)
    interleaved: bool = field(False, help="pairs are neighbours (0, 1), not halves (0, head_dim / 2)")
    scaling: str = field("none", help="how they are made to; proportional turns the quickest pairs", choices=SCALINGS)
    factor: float = field(1.0, help="how much further than trained", low=0.0)
    original_length: int | None = field(None, help="tokens it was trained for", low=1)
    low_frequency: float = field(1.0, help="llama3: turns within original_length below which all is stretched")
    high_frequency: float = field(4.0, help="llama3: turns above which nothing is")
    beta_fast: float = field(32.0, help="yarn: turns above which nothing is stretched")
    beta_slow: float = field(1.0, help="yarn: turns below which all is")
    truncate: bool = field(True, help="yarn: the bounds fall on whole frequencies")
    attention_factor: float | None = field(None, help="yarn, longrope: scale of sines and cosines (default: by factor)")
    short_factors: tuple[float, ...] = field((), help="longrope: stretch of each frequency up to original_length")
    long_factors: tuple[float, ...] = field((), help="longrope: the same beyond it")


class Latent(Config):
    """Keys and values that come from one narrow vector a token, which is what a cache keeps (arXiv:2405.04434).

    The last `rope_dim` of a head's `head_dim` are turned, their key being one for all heads; the others are not.
    """

    kv_rank: int = field(help="width of the vector that keys and values come from", low=1)
    rope_dim: int = field(help="width of the turned part of a head", low=2)
    value_dim: int = field(help="width of a value's head", low=1)
    q_rank: int | None = field(None, help="width of the vector that queries come from (default: the token's)", low=1)


class Relative(Config):
    """A learned bias on scores by distance, in buckets that widen with it; all layers share it (arXiv:1910.10683)."""

    buckets: int = field(32, help="of distances; half of them each way where attention looks both ways", low=4)
    max_distance: int = field(128, help="tokens from which on all are alike", low=2)


class Attention(Config):
    """Multi-head attention; fewer key/value heads make it grouped-query attention (arXiv:2305.13245).

    Queries and keys may have an RMS norm of each head or of all together, or a layer norm of each head, each of which
    has a scale of its own. A block that reuses keys and values has those of the last one before it that keeps them and
    has the same window (arXiv:2405.12981).
    """

    num_heads: int = field(help="query heads", low=1)
    num_kv_heads: int | None = field(None, help="key/value heads (default: num_heads)", low=1)
    head_dim: int | None = field(None, help="width of a head (default: embed_dim / num_heads)", low=1)
    causal: bool = field(True, help="a token sees only itself and earlier ones")
    window: int | None = field(None, help="sliding window: sees this many tokens, itself included", low=1)
    rotary: bool = field(False, help="rotary positions (arXiv:2104.09864)")
    rope_theta: float = field(10000.0, help="base wavelength of the rotary positions", low=1.0)
    rope: Rope = field(Rope(), help="how far rotary positions reach")
    qk_norm: str = field("none", help="norm of queries, keys: RMS by head or of all, or layer norm", choices=QK_NORMS)
    qk_norm_epsilon: float = field(1e-6, help="added to their variance", low=0.0)
    keys_as_values: bool = field(False, help="values are the keys before norm and positions (Gemma 4)")
    value_norm: bool = field(False, help="RMS norm of each head's values, without a scale (Gemma 4)")
    sharing: str = field("none", help="keys, values: keep them for later blocks, or reuse those kept", choices=SHARING)
    relative: Relative | None = field(None, help="a learned bias on scores by distance")
    scale: float | None = field(None, help="of the scores (default: 1 / sqrt(head_dim))", low=0.0)
    key_scale: float | None = field(None, help="of the keys (Falcon-H1)", low=0.0)
    output_scale: float | None = field(None, help="of what attention gives (Falcon-H1)", low=0.0)
    softcap: float | None = field(None, help="cap * tanh(score / cap) on attention scores", low=1e-6)
    sinks: bool = field(False, help="a learned score a head that only takes weight away (arXiv:2309.17453)")
    gate: bool = field(False, help="scale what heads give by a sigmoid of the token, value by value (arXiv:2505.06708)")
    latent: Latent | None = field(None, help="keys and values from a narrow vector (multi-head latent attention)")
    bias: bool = field(False, help="biases on query, key, value and gate, or on the narrow vectors these come from")
    key_bias: bool | None = field(None, help="bias on key (default: as bias)")
    output_bias: bool = field(False, help="bias on the output projection")

    def sizes(self, dim: int) -> tuple[int, int, int]:
        """Query heads, key/value heads and the width of one, for vectors of `dim`."""
        return self.num_heads, self.num_kv_heads or self.num_heads, self.head_dim or dim // self.num_heads

    def products(self, dim: int, length: int) -> int:
        """Multiply-adds for one token of a sequence of `length`, `dim` wide."""
        (_, groups, width), seen, latent = self.sizes(dim), min(length, self.window or length), self.latent
        heads, groups = self.num_heads * width, groups * width * (self.sharing != "reuse")
        if latent is None:
            return dim * ((2 + self.gate) * heads + 2 * groups) + 2 * heads * seen
        narrow, values = latent.q_rank or 0, self.num_heads * latent.value_dim
        total = dim * (narrow + latent.kv_rank + latent.rope_dim + values) + (narrow or dim) * heads
        return total + latent.kv_rank * (heads - self.num_heads * latent.rope_dim + values) + seen * (heads + values)


class Recurrence(Config):
    """A linear recurrence over a matrix of state a head, behind a short causal convolution, with a gate.

    A token writes its value (`ssd`: Mamba-2, arXiv:2405.21060), or what of it the state does not give for its key
    (`delta`: gated DeltaNet, arXiv:2412.06464). `scales` are of what gate, value, key, query and step are projected to.
    """

    num_heads: int = field(help="heads of values, gates and state", low=1)
    head_dim: int = field(help="width of a head's values", low=1)
    state_dim: int = field(128, help="width of queries and keys; a head's state has state_dim x head_dim", low=1)
    num_groups: int | None = field(None, help="heads of queries and keys (default: num_heads)", low=1)
    kind: str = field("ssd", help="a token writes its value, or what the state lacks of it", choices=("ssd", "delta"))
    kernel: int = field(4, help="tokens that the convolution sees, the token's own included", low=2)
    chunk: int = field(64, help="tokens computed at once in training and reading", low=2)
    skip: bool = field(False, help="add values times a learned number of their head (D)")
    norm: str = field("group", help="RMS norm beside the gate, of a group or a head", choices=("group", "head", "none"))
    norm_first: bool = field(False, help="the norm comes before the gate")
    bias: bool = field(False, help="biases on all projections")
    conv_bias: bool = field(False, help="bias on the convolution")
    scales: tuple[float, ...] = field((), help="of gate, value, key, query and step (Falcon-H1; default: 1)", low=0.0)
    output_scale: float | None = field(None, help="of what the recurrence gives (Falcon-H1)", low=0.0)
    step_min: float = field(0.0, help="least time step; a token fades the state by the step it takes", low=0.0)
    step_max: float | None = field(None, help="greatest time step", low=0.0)

    @property
    def groups(self) -> int:
        """Heads of queries and keys."""
        return self.num_groups or self.num_heads

    def products(self, dim: int, length: int) -> int:
        """Multiply-adds for one token; the state is written and read, by the delta rule twice."""
        delta, heads, groups = self.kind == "delta", self.num_heads * self.head_dim, 2 * self.groups * self.state_dim
        inputs = groups + 3 * heads + (1 + delta) * self.num_heads
        return dim * inputs + self.kernel * (groups + heads) + (2 + delta) * heads * self.state_dim


class MLP(Config):
    """The feed-forward half of a block; swiglu and geglu have a gate (arXiv:2002.05202)."""

    dim: int = field(help="hidden width", low=1)
    activation: str = field("gelu_tanh", help="non-linearity", choices=ACTIVATIONS)
    bias: bool = field(False, help="biases on both projections")
    gate_scale: float | None = field(None, help="of the gate before its non-linearity (Falcon-H1)", low=0.0)
    output_scale: float | None = field(None, help="of what the MLP gives (Falcon-H1)", low=0.0)

    def products(self, dim: int, length: int) -> int:
        """Multiply-adds for one token."""
        return (3 if self.activation in GATED else 2) * dim * self.dim


class MoE(Config):
    """Mixture of experts in place of the MLP; losses, and room for tokens, are those of one sequence at a time.

    Where experts have a `capacity_factor` (arXiv:2101.03961), later tokens pass by a full one, except in generation.
    """

    num_experts: int = field(help="experts in a layer", low=2)
    dim: int = field(help="hidden width of one expert", low=1)
    experts_per_token: int = field(2, help="experts a token is sent to", low=1)
    activation: str = field("swiglu", help="non-linearity of an expert", choices=ACTIVATIONS)
    bias: bool = field(False, help="biases on the router and on the experts' projections")
    limit: float | None = field(None, help="clamp of the gate from above, of what it multiplies both ways", low=0.0)
    up_offset: float = field(0.0, help="added to what the gate multiplies (gpt-oss: 1)")
    scores: str = field("softmax", help="probabilities of all together, or of each", choices=("softmax", "sigmoid"))
    selection_bias: bool = field(False, help="a number an expert, added in the choice alone (arXiv:2408.15664)")
    num_groups: int = field(1, help="groups of experts (arXiv:2412.19437)", low=1)
    group_best: int = field(2, help="experts of a group, its best, whose sum is its score", low=1)
    groups_per_token: int = field(1, help="groups that a token's experts are chosen from", low=1)
    normalize: bool = field(True, help="rescale the chosen experts' probabilities to sum to one")
    scale: float = field(1.0, help="of the chosen experts' probabilities, after that", low=0.0)
    shared_dim: int | None = field(None, help="hidden width of an expert of every token (arXiv:2401.06066)", low=1)
    shared_gate: bool = field(False, help="scale what it gives by a sigmoid of the token")
    apart: bool = field(False, help="router and experts have norms of their own, and each expert a scale (Gemma 4)")
    capacity_factor: float | None = field(None, help="room of an expert, in even shares; none: all", low=0.0)
    balance_loss: float = field(0.01, help="coefficient of the load-balancing loss (arXiv:2101.03961)", low=0.0)
    z_loss: float = field(0.001, help="coefficient of the router z-loss (arXiv:2202.08906)", low=0.0)

    def products(self, dim: int, length: int) -> int:
        """Multiply-adds for one token, without the router's."""
        hidden = self.experts_per_token * self.dim + (self.shared_dim or 0)
        return (3 if self.activation in GATED else 2) * dim * hidden


class Norm(Config):
    """Layer norm or RMS norm, and where each half of a block has it.

    `pre`: x + f(norm(x)). `post`: norm(x + f(x)). `output`: x + norm(f(x)). `both`: x + norm(f(norm(x))). `parallel`:
    x + attention(norm(x)) + mlp(norm(x)), by two norms; `shared`: the same by one (arXiv:2204.02311).
    """

    kind: str = field("rms", help="layer norm or RMS norm", choices=("layer", "rms"))
    epsilon: float = field(1e-5, help="added to the variance", low=0.0)
    bias: bool = field(False, help="the norm has a bias")
    attention: bool = field(True, help="before attention, too (the first block of ModernBERT has none there)")
    offset: float = field(0.0, help="added to the scale, which is stored without it (Gemma: 1)")
    placement: str = field("pre", help="where the halves of a block have it", choices=PLACEMENTS)


class Stem(Config):
    """How tokens become vectors, beside their table; positions and norm are for images too."""

    scale: float | None = field(None, help="of the embeddings (Gemma: sqrt(embed_dim))", low=0.0)
    positions: str = field("none", help="a vector for each, added to the embedding", choices=("none", "learned"))
    position_offset: int = field(0, help="rows of the table of positions before that of the first", low=0)
    slots: bool = field(False, help="the position of a token is its slot, and padding has one (SigLIP, which reads it)")
    image_token: int | None = field(None, help="id in whose places the batch's vectors of images stand", low=0)
    num_types: int = field(0, help="kinds of segments, each with a vector (BERT); 0: none", low=0)
    norm: bool = field(False, help="normalise the embeddings before the first block")
    embed_dim: int | None = field(None, help="width of the tables, if another (arXiv:1909.11942)", low=1)


class PerLayer(Config):
    """A narrow vector of each token for each layer, which scales what a last half of its block gives (Gemma 4)."""

    dim: int = field(help="width of a vector", low=1)
    vocab_size: int = field(help="tokens in the vocabulary of their table", low=1)

    def products(self, dim: int, layers: int) -> int:
        """Multiply-adds for one token in so many layers, `dim` wide."""
        return 3 * layers * self.dim * dim


class Images(Config):
    """Images as sequences of patches, each a vector (arXiv:2010.11929)."""

    size: int = field(help="height and width in pixels", low=1)
    patch: int = field(help="height and width of a patch in pixels; what is left behind the last is not read", low=1)
    channels: int = field(3, help="channels of a pixel", low=1)
    class_token: bool = field(True, help="a learned vector before the patches")
    mask_token: bool = field(False, help="a learned vector in place of masked patches (arXiv:2106.08254)")
    bias: bool = field(True, help="bias on the projection of patches")

    @property
    def length(self) -> int:
        """Tokens an image becomes."""
        return (self.size // self.patch) ** 2 + self.class_token

    def products(self, dim: int) -> int:
        """Multiply-adds for one token of this width."""
        return self.patch**2 * self.channels * dim


class ConvStem(Config):
    """The first convolution of a network of images."""

    width: int | None = field(None, help="channels it gives (default: those of the first stage)", low=1)
    size: int = field(3, help="height and width of its windows", low=1)
    stride: int = field(1, help="pixels from one window to the next; as many as its size: windows side by side", low=1)
    pool: bool = field(False, help="then the maximum of every second 3 x 3 window")


class Spectrogram(Config):
    """Sound as a sequence: log-mel frames through two convolutions over time, the second every other frame.

    Each sees three frames and has a GELU (Whisper, arXiv:2212.04356).
    """

    samples: int = field(480_000, help="that shorter audio is filled up to, with silence", low=1)
    bands: int = field(80, help="mel bands of a frame", low=1)

    @property
    def length(self) -> int:
        """Tokens that audio becomes."""
        return -(-(self.samples // 160) // 2)  # frames are 160 samples apart

    def products(self, dim: int) -> int:
        """Multiply-adds for one token of this width."""
        return 3 * (2 * self.bands + dim) * dim


class Waveform(Config):
    """Samples of sound through convolutions, each of which shortens them, to frames (wav2vec 2.0, arXiv:2006.11477)."""

    dims: tuple[int, ...] = field((512,) * 7, help="channels that each convolution gives", low=1)
    kernels: tuple[int, ...] = field((10, 3, 3, 3, 3, 2, 2), help="what each sees at once", low=1)
    strides: tuple[int, ...] = field((5, 2, 2, 2, 2, 2, 2), help="how far each goes on", low=1)
    norm: str = field("group", help="of channels over time, first alone; or of layers", choices=("group", "layer"))
    bias: bool = field(False, help="biases on the convolutions")
    activation: str = field("gelu", help="non-linearity after each convolution", choices=UNGATED)
    position_kernel: int = field(128, help="frames that the convolution sees which gives positions", low=1)
    position_groups: int = field(16, help="groups of channels that it keeps apart", low=1)
    mask_fraction: float = field(0.05, help="frames hidden in training; 0: none", low=0.0, high=1.0)
    mask_length: int = field(10, help="frames in a row that are hidden together", low=1)

    def frames(self, samples: Any) -> Any:
        """Frames that so many samples become; an int, or an array of them."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def products(self, dim: int) -> int:
        """Multiply-adds for one token of this width."""
        channels = (1, *self.dims)
        total = self.dims[-1] * dim + self.position_kernel * dim * dim // self.position_groups
        for i, kernel in enumerate(self.kernels):
            total += kernel * channels[i] * channels[i + 1] * math.prod(self.strides[i + 1 :])
        return total

    def samples(self, frames: int) -> int:
        """The fewest samples that become so many frames."""
        for kernel, stride in reversed(list(zip(self.kernels, self.strides, strict=True))):
            frames = (frames - 1) * stride + kernel
        return frames


class Pool(Config):
    """One vector a sequence, the value `embedding`, which then is what the head reads.

    It is the `first` token, the `mean`, or the `last` token; the first that is `token`, or that of the `highest` id
    (arXiv:2103.00020); the last `slot`, padding or not; what a learned vector attends to, and an MLP of that
    (`attention`, arXiv:2303.15343); the `max` of each number; or the first token and the mean of the others side by
    side, [B, 2 D] (`first_mean`). What is said of it here is done in this order: pooled, normalised, a dense layer, a
    projection, length 1.
    """

    kind: str = field("first", help="which token, or what of all of them", choices=POOLS)
    token: int | None = field(None, help="id that pooling by `token` looks for; the first token without it", low=0)
    norm: bool = field(False, help="the final norm is of the pooled vector, and hidden has none (CLIP's images)")
    activation: str = field("none", help="non-linearity after a dense layer; none: no such layer", choices=NONE_TOO)
    dim: int | None = field(None, help="width of a projection (default: none, as wide as the blocks)", low=1)
    bias: bool = field(False, help="bias on the projection")
    normalize: bool = field(False, help="bring the embedding to length 1")
    spare: bool = field(False, help="hold a dense layer that nothing reads, as encoders of sentences do")


class Head(Config):
    """From hidden, or the pooled embedding, to logits."""

    outputs: int | None = field(None, help="logits (default: one for each token of the vocabulary)", low=1)
    activation: str = field("none", help="non-linearity after a dense layer, before the logits", choices=NONE_TOO)
    dim: int | None = field(None, help="width of that layer (default: embed_dim, or without non-linearity none)", low=1)
    dense_bias: bool = field(True, help="bias on that dense layer")
    norm: bool = field(True, help="a norm after that non-linearity")
    bias: bool = field(False, help="bias on the logits")
    scale: float | None = field(None, help="of the logits", low=0.0)
    softcap: float | None = field(None, help="cap * tanh(logit / cap) on the logits", low=1e-6)


class Execution(Config):
    """How a model runs, not what it computes: two executions share every parameter."""

    dtype: str = field("float32", help="compute dtype", choices=("float32", "bfloat16"))
    scan: bool = field(True, help="scan over the layers (quick to compile) or unroll them (quicker on CPU)")
    remat: bool = field(False, help="recompute each block in the backward pass instead of storing it")
    query_pieces: int = field(4, help="pieces of causal training attention, each of the keys up to its end", low=1)
