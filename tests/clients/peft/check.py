"""PEFT itself loads what a job leaves behind, and computes what the server computes.

Needs torch, transformers and peft, which are large; so it stands apart from `tests/run`:
    pip install torch transformers peft && python tests/clients/peft/check.py target/release/tandem
"""
import os
import pathlib
import sys

os.environ["TANDEM_BINARY"] = str(pathlib.Path(sys.argv[1]).resolve())
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

import server  # noqa: E402
import test_crash as jobs  # noqa: E402

BASE = pathlib.Path(__file__).resolve().parents[3] / "src" / "demo" / "model"
TOLERANCE = 2e-4
STEPS = 24


def torch_logprobs(model, ids):
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)
    return [scores[i - 1, ids[i]].item() for i in range(1, len(ids))]


def served_logprobs(url, name, ids):
    body = {"model": name, "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}
    status, answer = server.request(url + "/v1/completions", body)
    assert status == 200, answer
    return answer["choices"][0]["logprobs"]["token_logprobs"][1:]


def farthest(ours, theirs):
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def load_base():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


def main():
    ids = AutoTokenizer.from_pretrained(BASE)("Once upon a time there was a little cat named Anna.")["input_ids"]
    # Keys and values in bf16, as by default, differ from torch's f32 by more than the adapter may.
    with server.running("--kv-cache-dtype", "f32") as running:
        name = jobs.finished(running.url, jobs.create_job(running.url, STEPS))["fine_tuned_model"]
        base, served = (served_logprobs(running.url, model, ids) for model in ("demo", name))
        gap = farthest(torch_logprobs(load_base(), ids), base)
        print(f"demo: log-probabilities differ by {gap:.1e} at most")
        assert gap < TOLERANCE, gap
        # Every checkpoint is a folder of its own and so is the result; one of them is what is served.
        gaps = []
        for config in running.data.rglob("adapter_config.json"):
            model = PeftModel.from_pretrained(load_base(), config.parent).eval()
            gaps.append(farthest(torch_logprobs(model, ids), served))
    gaps.sort()
    print(f"{name}: log-probabilities differ by {gaps[0]:.1e} at most, an earlier checkpoint's by {gaps[-1]:.1e}")
    assert gaps[0] < TOLERANCE < gaps[-1], gaps


if __name__ == "__main__":
    main()
