"""A tiny random model of transformers, and ours read from the directory it writes: what both give must agree.

A case is a line of data. `check` holds it to everything that a family promises, and notes what it measured under
.cache/oracles, from which `python -m tests.oracles.table` makes the table of docs/models.md.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from jaxmodel.generate import generate, prepared
from jaxmodel.interop import tensors
from jaxmodel.interop.huggingface import directory
from jaxmodel.loading import Loaded, load
from jaxmodel.model import Params, State
from tests.golden import families

transformers.logging.set_verbosity_error()
RECORD = "GOLDENS" in os.environ  # of the first case of each family that has none
MEASURED = Path(__file__).parents[2] / ".cache" / "oracles"
CLOSE = 1e-5  # of the largest value, in float32
PAD = 0
STATISTICS = {  # of batch norm: as they may be, of random numbers
    "running_mean": lambda x: 0.1 * x,
    "running_var": lambda x: 0.5 + x.abs(),
    "num_batches_tracked": lambda x: 3 + x.abs(),
}
GIVEN = {  # what theirs gives -> our name
    **{"logits": "logits", "last_hidden_state": "hidden", "pooler_output": "embedding"},
    **{"logits_per_image": "logits", "image_embeds": "image_embedding", "text_embeds": "text_embedding"},
}
# A third of the families, of every kind of computation; the golden values of all others are compared every day, too.
DAILY = {
    *("gpt2", "llama", "qwen3", "gemma3_text", "bert", "modernbert", "vit", "resnet", "qwen3_moe", "gpt_oss", "t5"),
    *("deepseek_v3", "whisper", "clip", "wav2vec2", "mamba2", "qwen3_5_text", "falcon_h1"),
}
NEW = 32  # tokens that greedy generation must give alike


class Case(NamedTuple):
    """One config of one architecture.

    Attributes:
      name: of the variant: "grouped, tied".
      family: the `model_type` of its config.
      architecture: transformers' class.
      options: of the config, laid over the sizes of the family in its test file.
      dtype: that its weights are saved in.
      padded: whether rows of different lengths are tried too.
      lengths: of those, real tokens each.
      generates: whether 32 greedy tokens are compared.
      gradients: whether those of every weight are.
      trains: whether they, values and batch statistics are in training, too.
      close: largest difference over largest value.
    """

    name: str
    family: str
    architecture: str
    options: Mapping[str, Any]
    dtype: str = "float32"
    padded: bool = True
    lengths: tuple[int, ...] = (11, 8, 5)
    generates: bool = False
    gradients: bool = False
    trains: bool = False
    close: float = CLOSE

    @property
    def id(self) -> str:
        return f"{self.architecture}: {self.name}".replace("[", "(").replace("]", ")")


def rows(cases: Sequence[Case]) -> list[Any]:
    """For parametrize: the first case of each daily family in every run, the others where whole tables run."""
    seen: set[str] = set()
    found = []
    for case in cases:
        daily = (RECORD or case.family in DAILY) and case.family not in seen
        marks = [] if daily else [pytest.mark.slow]
        seen.add(case.family)
        found.append(pytest.param(case, id=case.id, marks=marks))
    return found


def check(case: Case, batch: Mapping[str, np.ndarray], folder: Path) -> None:
    """All that a family promises of one case.

    Args:
      case: which.
      batch: by our names; `tokens`, `images`, … as numpy arrays.
      folder: to write in.
    """
    theirs = made(case)
    theirs.to(getattr(torch, case.dtype)).save_pretrained(folder / "a")
    if case.dtype != "float32":  # read again: buffers that were cast with the weights keep their error
        theirs, _ = reloaded(case, folder / "a")
    loaded = load(folder / "a", dtype=None if case.dtype == "float32" else "float32")
    error, padded = compared(case, theirs, loaded, batch), batch
    read = next((name for name in ("tokens", "audio") if name in batch), None)
    if case.padded and read:
        mask = np.arange(batch[read].shape[1]) < np.array(case.lengths)[:, None]
        padded = {**batch, "mask": mask, read: np.where(mask, batch[read], PAD).astype(batch[read].dtype)}
        if "decoder_tokens" in batch:  # of other lengths than the sources
            width = batch["decoder_tokens"].shape[1]
            real = np.arange(width) < width - np.arange(len(mask))[:, None]
            padded |= {"decoder_mask": real, "decoder_tokens": np.where(real, batch["decoder_tokens"], PAD)}
        error = max(error, compared(case, theirs, loaded, padded))
    told(case, error=error)
    if RECORD and case.dtype == "float32" and not (families.FOLDER / f"{case.family}.npz").exists():
        recorded(case, folder, padded)
    round_trip(case, theirs, batch, folder)
    told(case, round_trip=True)
    if case.generates:
        generated(case, theirs, loaded, padded if "decoder_tokens" in batch else batch)
        told(case, generation=NEW)
    if case.gradients:
        told(
            case, gradient_error=gradients(case, theirs, loaded, batch, folder)
        )  # the last: it overwrites their weights
    if case.trains:
        theirs, _ = reloaded(case, folder / "a")
        told(case, training_error=gradients(case, theirs, loaded, batch, folder, train=True))


@functools.lru_cache(maxsize=4)
def _config(family: str, options: str) -> Any:
    return transformers.AutoConfig.for_model(family, **json.loads(options))


def made(case: Case) -> Any:
    """Their model, every number of it random: norms and biases too, which begin as ones and zeros."""
    torch.manual_seed(0)
    config = _config(case.family, json.dumps(dict(case.options)))
    config._attn_implementation = "eager"
    model = getattr(transformers, case.architecture)(config).eval()
    if case.options.get("tie_word_embeddings") is False:
        untied(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in model.named_buffers():  # what is saved beside them: statistics, a bias of routers
            if (kind := name.rpartition(".")[2]) in STATISTICS:
                buffer.copy_(STATISTICS[kind](torch.randn(buffer.shape)))
            elif name in model.state_dict() and buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer) * 0.1)
    return model


def untied(model: Any) -> None:
    """T5's head is the embedding table when made, whatever its config says; read from a file with both it is not."""
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.clone())
        model.all_tied_weights_keys.pop("lm_head.weight")


def reloaded(case: Case, folder: Path) -> tuple[Any, dict[str, Any]]:
    """(their model from a directory, in float32; what it says of the tensors there)."""
    reader = getattr(transformers, case.architecture)
    how = {"output_loading_info": True, "attn_implementation": "eager", "dtype": torch.float32}
    model, info = reader.from_pretrained(folder, **how)
    return model.eval(), info


def theirs_of(model: Any, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What theirs gives, by our names."""
    with torch.no_grad():
        out = model(**inputs(batch))
    found: dict[str, Any] = {}
    for name, ours in GIVEN.items():
        if getattr(out, name, None) is not None:
            found[ours] = getattr(out, name)
    if "logits" not in found:  # of a tower alone, whose name for what is projected says which
        found = {"embedding" if name.endswith("_embedding") else name: each for name, each in found.items()}
    if type(model).__name__.endswith("ForPreTraining") and out.logits.ndim == 2:
        found["logits"] = out.logits[..., None]  # of one logit a token theirs drops the axis
    if found.get("hidden", torch.empty(0)).ndim == 4:  # a feature map, whose channels are last with us
        found["hidden"] = found["hidden"].permute(0, 2, 3, 1)
        found["embedding"] = found["embedding"].flatten(1)
    if getattr(out, "encoder_last_hidden_state", None) is not None:
        found["encoder_hidden"] = out.encoder_last_hidden_state
    return {name: value.float().numpy() for name, value in found.items()}


def inputs(batch: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """A batch of ours as their arguments."""
    names = {
        "tokens": "input_ids",
        "mask": "attention_mask",
        "types": "token_type_ids",
        "images": "pixel_values",
        "masked": "bool_masked_pos",
        "audio": "input_values",
        "frames": "input_features",
        "decoder_tokens": "decoder_input_ids",
        "decoder_mask": "decoder_attention_mask",
    }
    found = {names.get(name, name): torch.as_tensor(value) for name, value in batch.items()}
    for name, value in found.items():
        if not value.is_floating_point():
            found[name] = value.long()
    if "input_features" in found:
        found["input_features"] = found["input_features"].mT
    if "pixel_values" in found:
        # Contiguous: of channels that lie last, torch's backward pass in training writes where it must not.
        found["pixel_values"] = found["pixel_values"].permute(0, 3, 1, 2).contiguous()
    return found


def ours_of(loaded: Loaded, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ours gives."""
    apply = jax.jit(lambda params, state, batch: loaded.model.apply(params, batch, state).values)
    found = apply(loaded.params, loaded.model_state, dict(batch))
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


def compared(case: Case, theirs: Any, loaded: Loaded, batch: Mapping[str, np.ndarray]) -> float:
    """The largest difference over the largest value, at worst over what both give; it must be close."""
    expected, found = theirs_of(theirs, batch), ours_of(loaded, batch)
    assert expected, f"{case.id}: transformers gives nothing that is compared"
    worst = 0.0
    for name, value in expected.items():
        ours = found[name]
        assert ours.shape == value.shape, (case.id, name, ours.shape, value.shape)
        mask = batch.get("decoder_mask" if "decoder_mask" in batch and name != "encoder_hidden" else "mask")
        if mask is not None and value.ndim == 3:  # what stands where there is no token means nothing
            if "audio" in batch:  # a mask of samples
                lengths = torch.as_tensor(mask).long()
                mask = theirs._get_feature_vector_attention_mask(value.shape[1], lengths).numpy()
            ours, value = ours[mask], value[mask]
        error = float(np.max(np.abs(ours - value)) / np.max(np.abs(value)))
        assert error < case.close, (case.id, name, error)
        worst = max(worst, error)
    return worst


def round_trip(case: Case, theirs: Any, batch: Mapping[str, np.ndarray], folder: Path) -> None:
    """Written again: the same names, types and bytes, and the same config; and anew, as transformers reads it."""
    loaded = load(folder / "a")
    directory.write(folder / "b", loaded.model, loaded.params, info=loaded.info, state=loaded.model_state)
    directory.write(folder / "c", loaded.model, loaded.params, state=loaded.model_state, family=case.family)
    first, *others = (safetensors.numpy.load_file(folder / each / "model.safetensors") for each in "abc")
    for other in others:
        assert set(first) == set(other), (case.id, set(first) ^ set(other))
        for name, tensor in first.items():
            assert tensor.dtype == other[name].dtype and tensor.tobytes() == other[name].tobytes(), (case.id, name)
    said = [json.loads((folder / each / "config.json").read_text()) for each in "ab"]
    assert said[0] == said[1], case.id
    anew = folder / "c" / "config.json"
    anew.write_text(json.dumps({"pad_token_id": PAD, **json.loads(anew.read_text())}))  # no tokenizer said so
    again, info = reloaded(case, folder / "c")
    assert not any(info.get(kind) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), (case.id, info)
    expected, found = theirs_of(theirs, batch), theirs_of(again, batch)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6 * np.max(np.abs(value)), err_msg=case.id)


def gradients(
    case: Case, theirs: Any, loaded: Loaded, batch: Mapping[str, np.ndarray], folder: Path, train: bool = False
) -> float:
    """Of a weighted sum of the logits, by every weight: by the names on disk, relative to the largest of a tensor.

    In training values and batch statistics are compared, too, as closely as values are.
    """
    expected = theirs_of(theirs, batch)["logits"]
    weight = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
    given = theirs.train(train)(**inputs(batch))
    out = given.logits.reshape(expected.shape) if hasattr(given, "logits") else given.logits_per_image
    (out * torch.as_tensor(weight)).sum().backward()

    def loss(params: Params) -> tuple[jax.Array, Any]:
        found = loaded.model.apply(params, dict(batch), loaded.model_state, train=train)
        return jnp.sum(found["logits"] * weight), found

    found, ours = jax.jit(jax.grad(loss, has_aux=True))(loaded.params)
    error = np.max(np.abs(ours["logits"] - out.detach().numpy())) / np.max(np.abs(out.detach().numpy()))
    assert error < case.close, (case.id, train, error)
    return near(case, theirs, loaded, found, folder / str(train), ours.state if train else loaded.model_state)


def near(case: Case, theirs: Any, loaded: Loaded, found: Params, folder: Path, state: State = None) -> float:
    """How far our gradients are from theirs, of which `backward` was called, and batch statistics, at worst."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            assert parameter.grad is not None, case.id
            parameter.copy_(parameter.grad)
    their_folder, our_folder = (folder / f"{whose}_gradients" for whose in ("their", "our"))
    theirs.save_pretrained(their_folder)
    directory.write(our_folder, loaded.model, found, info=loaded.info, state=state)
    left, right = (tensors.open_weights(each) for each in (their_folder, our_folder))
    assert set(left) == set(right)
    known = [name for name in left if name.rpartition(".")[2] not in STATISTICS]
    whole = max(float(np.max(np.abs(left[name].view()))) for name in known)
    worst = 0.0
    for name in left:
        a, b = np.asarray(left[name].view()), np.asarray(right[name].view())
        # A gradient that is nothing but rounding (of a key's bias) is held to the largest of the model.
        scale = max(float(np.max(np.abs(a))), 1e-3 * whole if name in known else 0.0)
        error = float(np.max(np.abs(a - b))) / scale
        assert error < (1e-4 if name in known else case.close), (case.id, folder.name, name, error)
        worst = max(worst, error)
    return worst


def generated(case: Case, theirs: Any, loaded: Loaded, batch: Mapping[str, np.ndarray]) -> None:
    """Greedy tokens, each the same; of sources of different lengths where there is a decoder beside."""
    theirs.generation_config.eos_token_id = None  # or it would end
    theirs.generation_config.forced_eos_token_id = None
    how = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": PAD}
    params = prepared(loaded.model, loaded.params)
    given = {name: value for name, value in batch.items() if not name.startswith("decoder")}
    begin = None
    if "decoder_tokens" in batch:
        begin = [theirs.config.decoder_start_token_id, int(batch["decoder_tokens"][0, 0])]
    skipped = len(begin) if begin else batch["tokens"].shape[1]
    if begin is not None:
        how["decoder_input_ids"] = torch.tensor([begin] * len(batch["decoder_tokens"]))
    if "tokens" in given:
        given.setdefault("mask", np.ones(given["tokens"].shape, bool))
    greedy = transformers.GenerationMixin.generate  # Whisper's own does more
    expected = greedy(theirs, **inputs(given), **how)[:, skipped:].tolist()
    found = generate(loaded.model, params, given, max_new_tokens=NEW, begin=begin)
    assert found == expected, (case.id, found, expected)


def recorded(case: Case, folder: Path, batch: Mapping[str, np.ndarray]) -> None:
    """Keep what theirs gives in tests/golden/families, for machines without transformers."""
    with safetensors.safe_open(folder / "a" / "model.safetensors", "numpy") as found:
        kept = {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118
    tensors = {name: (str(each.dtype), each.shape) for name, each in kept.items()}
    config = json.loads((folder / "a" / "config.json").read_text())
    families.write_directory(folder / "golden", families.Golden(config, tensors, batch, {}))
    theirs, _ = reloaded(case, folder / "golden")
    families.save(case.family, families.Golden(config, tensors, batch, theirs_of(theirs, batch)))


def told(case: Case, **facts: Any) -> None:
    """Add to what is known of a case."""
    MEASURED.mkdir(parents=True, exist_ok=True)
    path = MEASURED / f"{case.id.replace('/', '-')}.json"
    known = json.loads(path.read_text()) if path.exists() and "error" not in facts else {}
    known |= {"family": case.family, "architecture": case.architecture, "name": case.name, **facts}
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(known))
    temporary.replace(path)


def text(vocab_size: int, rows: int = 3, length: int = 11, low: int = 3) -> dict[str, np.ndarray]:
    """Random tokens, none of them below `low`, which pad, begin and end."""
    return {"tokens": np.random.default_rng(0).integers(low, vocab_size, (rows, length)).astype(np.int32)}


def pair(vocab_size: int, rows: int = 3, length: int = 11, target: int = 7) -> dict[str, np.ndarray]:
    """Random sources and targets."""
    source, written = (text(vocab_size, rows, each)["tokens"] for each in (length, target))
    return {"tokens": source, "decoder_tokens": written[:, ::-1].copy()}


def pictures(size: int, channels: int = 3, rows: int = 2) -> dict[str, np.ndarray]:
    """Random images."""
    return {"images": np.random.default_rng(0).normal(size=(rows, size, size, channels)).astype(np.float32)}
