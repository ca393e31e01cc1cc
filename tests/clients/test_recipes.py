"""Every recipe is run on a small slice of data in its own form."""
import json
import pathlib
import subprocess
import tempfile

import seeing
import server

TURNS = ["Say a number.", "Seven.", "Another one.", "Eight."]
SLICES = {
    "alpaca": [{"instruction": "Add the numbers.", "input": f"{n} and 1", "output": str(n + 1)} for n in range(9)],
    "guanaco-qlora": [{"text": f"### Human: Count to {n}.### Assistant: 1, 2, {n}"} for n in range(9)],
    "llava-lora": list(seeing.lines(9, 3)),
    "mpt-instruct": [
        {"messages": [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(TURNS)]}
    ] * 9,
    "mpt-storywriter": [{"text": f"Chapter {n}. Once upon a time there was a number, and it was {n}. " * 9} for n in range(9)],
}


def tandem(*args):
    done = subprocess.run([server.BINARY, *map(str, args)], capture_output=True, text=True, timeout=120)
    assert "panicked" not in done.stderr, done.stderr
    return done


def test_every_recipe_on_a_small_slice():
    recipes = json.loads(tandem("recipes", "--json").stdout)
    assert {recipe["name"] for recipe in recipes} == set(SLICES)
    for recipe in recipes:
        with tempfile.TemporaryDirectory() as folder:
            folder, name = pathlib.Path(folder), recipe["name"]
            (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in SLICES[name]))
            quantize = recipe["settings"].get("quantization")
            template = recipe["template"] and f",template={recipe['template']}"
            base = f"llava={seeing.write_model(folder / 'llava')}" if name == "llava-lora" else "demo"
            model = base + (f",quantize={quantize}" if quantize else "") + (template or "")
            done = tandem(
                "train", folder / "data.jsonl", "--model", model, "--recipe", name, "--out", folder / "adapter",
                "--max-steps", 2, "--batch-size", 2, "--set", "hyperparameters.max_seq_length=128",
            )
            assert done.returncode == 0, (name, done)
            config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
            assert config["r"] == recipe["settings"].get("lora", {}).get("r", 16), (name, config)


def test_a_recipe_that_does_not_fit_says_why():
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder, "data.jsonl")
        data.write_text(json.dumps(SLICES["guanaco-qlora"][0]) + "\n")
        for recipe, words in [("guanaco-qlora", "quantize=nf4"), ("mpt-storywriter", "max_seq_length"), ("soup", "alpaca")]:
            done = tandem("train", data, "--recipe", recipe, "--out", pathlib.Path(folder, "adapter"))
            assert done.returncode != 0 and words in done.stderr, (recipe, done)
        assert tandem("recipes", "soup").returncode == 2
        assert "template=alpaca" in tandem("recipes", "alpaca").stdout
