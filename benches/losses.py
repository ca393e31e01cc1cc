"""What quantisation and the choice of modules cost in loss, on the demo model: losses.py BINARY [SEEDS].

The lines teach a way of speaking in which several words are drawn at random, so that the loss ends well above zero and
its differences are the model's. The data is the same for every base and every seed; the seed draws the adapter and the
order of the lines.
"""
import json
import os
import pathlib
import random
import statistics
import sys
import time

os.environ["TANDEM_BINARY"] = sys.argv[1]
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "clients"))
import server
from test_trajectories import upload

SEEDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
THINGS = "ball cat hat dog cup key map fish book box bird coat ship lamp ring drum".split()
PLACES = ["in the hold", "below the deck", "on the mast", "by the anchor", "under the sail", "in the harbour"]
ENDS = ["matey", "me hearty", "captain", "old friend", "me lad"]
CONFIGURATIONS = [("f32", "all-linear"), ("f32", ["q_proj", "v_proj"]), ("nf4", "all-linear"), ("fp4", "all-linear")]


def lines(count, seed):
    dice = random.Random(seed)
    for _ in range(count):
        thing = dice.choice(THINGS)
        answer = f"Arr, the {thing} be {dice.choice(PLACES)} with {dice.randint(2, 9)} coins, {dice.choice(ENDS)}!"
        yield json.dumps({"messages": [{"role": "user", "content": f"Where is the {thing}?"},
                                       {"role": "assistant", "content": answer}]})


def losses(url, files, targets, seed):
    """The validation's loss before the first step and after the last."""
    body = {"model": "demo", "training_file": files[0], "validation_file": files[1], "seed": seed,
            "hyperparameters": {"n_epochs": 2, "batch_size": 8}, "lora": {"r": 8, "target_modules": targets}}
    status, job = server.request(url + "/v1/fine_tuning/jobs", body)
    assert status == 200, job
    while job["status"] != "succeeded":
        assert job["status"] not in ("failed", "cancelled"), job
        time.sleep(0.1)
        _, job = server.request(f"{url}/v1/fine_tuning/jobs/{job['id']}")
    _, events = server.request(f"{url}/v1/fine_tuning/jobs/{job['id']}/events?limit=100")
    steps = [event["data"] for event in events["data"] if event["type"] == "metrics"]
    found = {step["step"]: step["valid_loss"] for step in steps if "valid_loss" in step}
    return found.get(0), found[max(found)]


def main():
    for base, targets in CONFIGURATIONS:
        options = [] if base == "f32" else ["--model", f"demo,quantize={base}"]
        with server.running(*options) as running:
            files = [upload(running.url, "\n".join(lines(count, seed))) for count, seed in [(600, 1), (400, 2)]]
            found = [losses(running.url, files, targets, seed) for seed in range(1, SEEDS + 1)]
        before, after = found[0][0], [last for _, last in found]
        told = ", ".join(f"{loss:.4f}" for loss in after)
        print(f"{base} {targets}: {before} before; {statistics.mean(after):.4f} in the mean of {told}", flush=True)


main()
