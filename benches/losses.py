"""What quantisation and the choice of modules cost in loss, on the demo model: losses.py BINARY [SEEDS].

First the base alone: its loss on texts that the exact model wrote, before anything is trained. Then fine-tuning on lines
that teach a way of speaking in which several words are drawn at random, so that the loss ends well above zero and its
differences are the model's. The data is the same for every base and every seed; the seed draws the adapter and the order
of the lines.
"""
import json
import os
import pathlib
import random
import statistics
import sys
import urllib.request

os.environ["TANDEM_BINARY"] = sys.argv[1]
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "clients"))
import server
from test_trajectories import upload

SEEDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
OPENINGS = ["Once upon a time", "The cat", "One day", "Tom and Anna", "In the garden", "The sun"]
THINGS = "ball cat hat dog cup key map fish book box bird coat ship lamp ring drum".split()
PLACES = ["in the hold", "below the deck", "on the mast", "by the anchor", "under the sail", "in the harbour"]
ENDS = ["matey", "me hearty", "captain", "old friend", "me lad"]
LINEAR = "all-linear"
CONFIGURATIONS = [("f32", LINEAR), ("f32", ["q_proj", "v_proj"]), ("nf4", LINEAR), ("fp4", LINEAR)]


def written(url, count):
    """Texts of the model itself."""
    for seed in range(count):
        body = {"model": "demo", "prompt": OPENINGS[seed % len(OPENINGS)], "max_tokens": 80, "temperature": 1, "seed": seed}
        status, answer = server.request(url + "/v1/completions", body)
        assert status == 200, answer
        yield json.dumps({"text": body["prompt"] + answer["choices"][0]["text"]})


def lines(count, seed):
    dice = random.Random(seed)
    for _ in range(count):
        thing = dice.choice(THINGS)
        answer = f"Arr, the {thing} be {dice.choice(PLACES)} with {dice.randint(2, 9)} coins, {dice.choice(ENDS)}!"
        yield json.dumps({"messages": [{"role": "user", "content": f"Where is the {thing}?"},
                                       {"role": "assistant", "content": answer}]})


def losses(url, files, targets, seed, **hyperparameters):
    """The validation's loss before the first step and after the last."""
    body = {"model": "demo", "training_file": files[0], "validation_file": files[1], "seed": seed,
            "hyperparameters": {"batch_size": 8, **hyperparameters}, "lora": {"r": 8, "target_modules": targets}}
    status, job = server.request(url + "/v1/fine_tuning/jobs", body)
    assert status == 200, job
    found = {}
    with urllib.request.urlopen(f"{url}/v1/fine_tuning/jobs/{job['id']}/events?stream=true") as stream:
        for line in stream:
            event = json.loads(line[6:]) if line.startswith(b"data: {") else {}
            data = event.get("data") or {}
            if "valid_loss" in data:
                found[data["step"]] = data["valid_loss"]
    return found[0], found[max(found)]


def main():
    texts = None
    for base, targets in CONFIGURATIONS:
        options = [] if base == "f32" else ["--model", f"demo,quantize={base}"]
        with server.running(*options) as running:
            texts = texts or list(written(running.url, 400))
            files = [upload(running.url, "\n".join(lines(count, seed))) for count, seed in [(600, 1), (400, 2)]]
            own = [upload(running.url, "\n".join(part)) for part in (texts[:8], texts)]
            alone = losses(running.url, own, targets, 1, max_steps=1)[0]
            after = [losses(running.url, files, targets, seed, n_epochs=2)[1] for seed in range(1, SEEDS + 1)]
        told = ", ".join(f"{loss:.4f}" for loss in after)
        print(f"{base} {targets}: base {alone:.4f}; trained {statistics.mean(after):.4f}, the mean of {told}", flush=True)


main()
