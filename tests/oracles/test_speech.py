"""Models that read samples of sound: wav2vec2, hubert."""

import numpy as np
import pytest

from tests.oracles.harness import Case, check, rows

SIZES = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"conv_dim": [12, 14, 16], "conv_kernel": [10, 3, 2], "conv_stride": [5, 2, 2], "vocab_size": 19},
    **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0},
}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
MASKED = {"mask_time_prob": 0.05}


def cases(family: str, name: str) -> list[Case]:
    def case(title: str, architecture: str, options: dict, **more) -> Case:
        lengths = (400, 291, 90)
        return Case(title, family, f"{name}{architecture}", {**SIZES, **options}, lengths=lengths, **more)

    return [
        case("norm after residuals", "ForCTC", {}, gradients=True),
        case("norm before, layer norms, biases, hidden frames", "ForCTC", {**STABLE, **MASKED}),
        case("norm before, gradients", "ForCTC", STABLE, gradients=True),
        case("biases, odd window, relu", "ForCTC", {"conv_bias": True, "num_conv_pos_embeddings": 5,
             "feat_extract_activation": "relu", "hidden_act": "gelu_new"}),
        case("layer norms and norm after residuals", "Model", {"feat_extract_norm": "layer", **MASKED}),
        case("bfloat16", "Model", {**STABLE, **MASKED}, dtype="bfloat16"),
        case("classes", "ForSequenceClassification", {"num_labels": 5, "classifier_proj_size": 24}),
        case("classes, norm before", "ForSequenceClassification", {**STABLE, "num_labels": 5}),
    ]  # fmt: skip


CASES = [*cases("wav2vec2", "Wav2Vec2"), *cases("hubert", "Hubert")]


@pytest.mark.parametrize("case", rows(CASES))
def test_sound(case, tmp_path):
    audio = np.random.default_rng(0).normal(size=(3, 400)).astype(np.float32)
    check(case, {"audio": audio}, tmp_path)
