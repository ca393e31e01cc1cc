"""PEFT itself loads what a job leaves behind, and computes what the server computes.

Needs torch, transformers and peft, which are large; so it stands apart from `tests/run`:
    pip install torch transformers peft && python tests/clients/peft/check.py target/release/tandem
"""
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ["TANDEM_BINARY"] = str(pathlib.Path(sys.argv[1]).resolve())
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LlavaForConditionalGeneration  # noqa: E402

import seeing  # noqa: E402
import server  # noqa: E402
import test_crash as jobs  # noqa: E402
from test_data_formats import upload  # noqa: E402

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


def told(url, model, picture):
    """The served answer to a picture: prompt, answer, and what each token of it was worth."""
    body = {"model": model, "messages": [seeing.asked(picture)], "temperature": 0, "max_tokens": 8, "logprobs": True,
            "return_token_ids": True}
    status, answer = server.request(url + "/v1/chat/completions", body)
    assert status == 200, answer
    choice = answer["choices"][0]
    logprobs = [token["logprob"] for token in choice["logprobs"]["content"]]
    return answer["prompt_token_ids"], choice["token_ids"][: len(logprobs)], logprobs


def torch_told(model, picture, prompt, answer):
    pixels = torch.tensor(picture).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        scores = torch.log_softmax(model(input_ids=ids, pixel_values=pixels).logits[0].float(), -1)
    first = len(prompt)
    return [scores[first + i - 1, token].item() for i, token in enumerate(answer)]


def check_pictures(folder):
    """A projector trained beside LoRA: PEFT reads it, and what PEFT writes is served alike."""
    llava = seeing.write_model(folder / "llava")
    load = lambda: LlavaForConditionalGeneration.from_pretrained(llava, dtype=torch.float32).eval()
    picture, _ = next(seeing.cases(1, 5))
    options = ["--model", f"llava={llava}", "--kv-cache-dtype", "f32"]
    with server.running(*options) as running:
        _, file = upload(running.url, list(seeing.lines(48, 1)))
        job = {"model": "llava", "training_file": file["id"], "hyperparameters": {"max_steps": STEPS, "learning_rate": 1e-3},
               "lora": {"r": 8, "modules_to_save": ["multi_modal_projector"]}}
        status, job = server.request(running.url + "/v1/fine_tuning/jobs", job)
        assert status == 200, job
        name = jobs.finished(running.url, job["id"])["fine_tuned_model"]
        asked = {model: told(running.url, model, picture) for model in ("llava", name)}
        prompt, answer, base = asked["llava"]
        gap = farthest(torch_told(load(), picture, prompt, answer), base)
        print(f"llava: log-probabilities differ by {gap:.1e} at most")
        assert gap < TOLERANCE, gap
        prompt, answer, served = asked[name]
        adapters = [config.parent for config in running.data.rglob("adapter_config.json")]
        models = [PeftModel.from_pretrained(load(), adapter).eval() for adapter in adapters]
        gaps = [farthest(torch_told(model, picture, prompt, answer), served) for model in models]
        check_merged(llava, adapters[gaps.index(min(gaps))], folder / "merged", (picture, prompt, answer, served))
    print(f"{name}: log-probabilities differ by {min(gaps):.1e} at most")
    assert min(gaps) < TOLERANCE, gaps
    best = models[gaps.index(min(gaps))]
    assert [key for key in best.state_dict() if "multi_modal_projector.modules_to_save" in key], "PEFT replaced the projector"
    best.save_pretrained(folder / "again")
    with server.running(*options, "--adapter", f"again={folder / 'again'}") as running:
        again = told(running.url, "again", picture)
    gap = farthest(again[2], served)
    print(f"again, as PEFT wrote it: log-probabilities differ by {gap:.1e} at most")
    assert again[:2] == (prompt, answer) and gap < 1e-6, (again, gap)


def check_merged(llava, adapter, out, told):
    """transformers loads what `tandem convert` writes, all of it, and says what the adapter said."""
    command = [server.BINARY, "convert", llava, "--adapter", adapter, "--out", out, "--type", "f32"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    model, loading = LlavaForConditionalGeneration.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert not any(loading.values()) and model.dtype == torch.float32, loading
    picture, prompt, answer, served = told
    gap = farthest(torch_told(model.eval(), picture, prompt, answer), served)
    print(f"merged by `tandem convert`: log-probabilities differ by {gap:.1e} at most")
    assert gap < TOLERANCE, gap


def main():
    with tempfile.TemporaryDirectory() as folder:
        check_pictures(pathlib.Path(folder))
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
