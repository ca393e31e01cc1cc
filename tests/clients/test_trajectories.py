"""Training trajectories that PEFT and torch took, taken again as jobs over HTTP: the loss and the gradient norm of
every step's event and the final weights, each within the tolerance its case states."""
import array
import json
import pathlib
import shutil
import struct
import tempfile
import time
import uuid

import server

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
KINDS = {"F32": "f", "F64": "d", "I64": "q"}


def tensors(path):
    """{name: (shape, flat values)} of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        values = array.array(KINDS[tensor["dtype"]], data[8 + length + begin : 8 + length + end])
        found[name] = tensor["shape"], values
    return found


def lines(case):
    """The case's batches, row by row without their padding, as lines of a pre-tokenised file."""
    batches = tensors(case / "batches.safetensors")
    (width, ids), labels = (batches["input_ids"][0][-1], batches["input_ids"][1]), batches["labels"][1]
    mask = batches["attention_mask"][1]
    for start in range(0, len(ids), width):
        real = [at for at in range(start, start + width) if mask[at]]
        yield json.dumps({"input_ids": [ids[at] for at in real], "labels": [labels[at] for at in real]})


def with_tokenizer(folder, model):
    """The golden models are weights alone; a tokenizer of one word per token id stands in for text."""
    copy = folder / "model"
    shutil.copytree(model, copy)
    size = json.loads((copy / "config.json").read_text())["vocab_size"]
    words = {"type": "WordLevel", "vocab": {f"t{at}": at for at in range(size)}, "unk_token": "t0"}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                 "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None, "model": words}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    return copy


def hyperparameters(settings):
    return {
        "n_epochs": 1, "shuffle": False, "micro_batch_size": settings["batch"],
        "gradient_accumulation_steps": settings["accum"], "lr_scheduler": "cosine",
        "warmup_steps": settings["warmup"], "learning_rate": settings["lr"], "optimizer": "adamw",
        "adam_beta1": settings["betas"][0], "adam_beta2": settings["betas"][1], "adam_epsilon": settings["eps"],
        "weight_decay": settings["weight_decay"], "max_grad_norm": settings["clip"],
        "loss_normalization": {"token": "window", "micro": "micro_batch"}[settings["norm"]],
    }


def upload(url, content):
    border = uuid.uuid4().hex
    body = (
        f'--{border}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n'
        f"{content}\r\n--{border}--\r\n"
    ).encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={border}"}
    status, file = server.request(url + "/v1/files", body, headers=headers)
    assert status == 200, file
    return file["id"]


def trained(url, body):
    """The ended job, and the data of its steps' events in order."""
    status, job = server.request(url + "/v1/fine_tuning/jobs", body)
    assert status == 200, job
    end = time.monotonic() + 120
    while job["status"] != "succeeded":
        assert job["status"] not in ("failed", "cancelled") and time.monotonic() < end, job
        time.sleep(0.05)
        _, job = server.request(f"{url}/v1/fine_tuning/jobs/{job['id']}")
    _, events = server.request(f"{url}/v1/fine_tuning/jobs/{job['id']}/events?limit=100")
    steps = [event["data"] for event in events["data"] if event["type"] == "metrics"]
    return job, sorted(steps, key=lambda step: step["step"])


def check(case):
    told = json.loads((case / "case.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        model = with_tokenizer(pathlib.Path(folder), (case / told["base"]).resolve())
        with server.running("--model", f"base={model}", "--adapter", f"initial={case / 'initial'}") as running:
            file = upload(running.url, "\n".join(lines(case)))
            _, steps = trained(running.url, {
                "model": "base", "training_file": file, "lora": {"init_adapter": "initial"},
                "method": {"type": "supervised",
                           "supervised": {"hyperparameters": hyperparameters(told["settings"])}}})
            assert len(steps) == len(told["steps"])
            for found, expected in zip(steps, told["steps"]):
                assert found["step"] == expected["step"]
                assert abs(found["train_loss"] - expected["loss"]) <= told["loss_atol"], (found, expected)
                off = abs(found["grad_norm"] / expected["grad_norm"] - 1)
                assert off <= told["grad_norm_rtol"], (found, expected)
                assert abs(found["learning_rate"] - expected["lr"]) <= 1e-9, (found, expected)
            check_weights(running.data, case, told["final_weight_atol"])


def check_weights(data, case, tolerance):
    """One of the adapters in the data folder is the case's final one."""
    expected = tensors(case / "final" / "adapter_model.safetensors")
    worst = []
    for path in data.rglob("adapter_model.safetensors"):
        found = tensors(path)
        assert found.keys() == expected.keys()
        pairs = ((x, y) for name in expected for x, y in zip(found[name][1], expected[name][1], strict=True))
        worst.append(max(abs(x - y) for x, y in pairs))
    assert worst and min(worst) <= tolerance, (worst, tolerance)


def test_jobs_follow_the_trajectories_of_peft():
    cases = sorted(path.parent for path in (GOLDEN / "train").glob("*/case.json"))
    assert cases
    for case in cases:
        check(case)
