"""PEFT itself loads what a job leaves behind, and computes what the server computes.

Needs torch, transformers and peft, which are large; so it stands apart from `tests/run`:
    pip install torch transformers peft && python tests/clients/peft/check.py target/release/tandem
"""
import os
import pathlib
import sys
import tempfile

os.environ["TANDEM_BINARY"] = str(pathlib.Path(sys.argv[1]).resolve())
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

import server  # noqa: E402
import test_crash as jobs  # noqa: E402

BASE = pathlib.Path(__file__).resolve().parents[3] / "src" / "demo" / "model"


def torch_logprobs(model, ids):
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)
    return [scores[i - 1, ids[i]].item() for i in range(1, len(ids))]


def served_logprobs(url, name, ids):
    body = {"model": name, "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}
    status, answer = server.request(url + "/v1/completions", body)
    assert status == 200, answer
    return answer["choices"][0]["logprobs"]["token_logprobs"][1:]


def main():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    ids = tokenizer("Once upon a time there was a little cat named Anna.")["input_ids"]
    with tempfile.TemporaryDirectory() as folder:
        running = server.Server(pathlib.Path(folder) / "data").wait_until_ready()
        job = jobs.create_job(running.url)
        name = jobs.finished(running.url, job)["fine_tuned_model"]
        pairs = [("base", torch_logprobs(base, ids), served_logprobs(running.url, "demo", ids))]
        step = jobs.job_of(running.url, job)["hyperparameters"]
        print("trained", name, step)
        served = served_logprobs(running.url, name, ids)
        folders = sorted(path.parent for path in running.data.rglob("adapter_config.json"))
        # Every checkpoint is a folder; the final adapter is among them, and only one may agree.
        gaps = {}
        for path in folders:
            model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), path)
            found = torch_logprobs(model.eval(), ids)
            gaps[path.name] = max(abs(a - b) for a, b in zip(found, served))
        running.kill()
    for label, ours, theirs in pairs:
        gap = max(abs(a - b) for a, b in zip(ours, theirs))
        print(f"{label}: largest difference of a log-probability {gap:.2e}")
        assert gap < 2e-4, (ours, theirs)
    print("adapters:", {name: f"{gap:.2e}" for name, gap in gaps.items()})
    assert min(gaps.values()) < 2e-4, gaps


if __name__ == "__main__":
    main()
