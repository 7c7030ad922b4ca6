"""The real consumer of a Hugging Face directory: a process of its own in which transformers and torch run it.

Run as a script, `python transformers_consumer.py DIR PROBE.npz OUTPUT.npz`; it imports nothing of jaxmodel. Its last
line is a JSON object: the versions that ran, or what is `missing`.
"""

import json
import os
import sys
from typing import Any

GIVEN = {  # what theirs gives -> our name
    **{"logits": "logits", "last_hidden_state": "hidden"},
    **{"image_embeds": "image_embedding", "text_embeds": "text_embedding"},
}


def run(directory, probe, output):
    """Load with the class that config.json names, run one row at a time, write what comes out; the versions."""
    import numpy as np
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
        architecture = json.load(file)["architectures"][0]
    reader = getattr(transformers, architecture)
    model, info = reader.from_pretrained(
        directory, output_loading_info=True, attn_implementation="eager", dtype=torch.float32, local_files_only=True
    )
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if wrong:
        raise SystemExit(f"{architecture} does not fit the tensors: {wrong}")
    batch = {name: torch.as_tensor(value) for name, value in np.load(probe).items()}
    found = {}
    with torch.no_grad():
        for i in range(len(next(iter(batch.values())))):
            # A row alone has no padding, of which not every architecture hears.
            out = model.eval()(**{name: value[i : i + 1] for name, value in batch.items()})
            for theirs, ours in GIVEN.items():
                value = getattr(out, theirs, None)
                if value is not None:
                    found.setdefault(ours, []).append(value.numpy())
    arrays: Any = {name: np.concatenate(rows) for name, rows in found.items()}
    np.savez(output, **arrays)
    return {"architecture": architecture, "transformers": transformers.__version__, "torch": torch.__version__}


def main(arguments):
    """Run, and tell."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]  # not our neighbours
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
    else:
        print(json.dumps(run(*arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
