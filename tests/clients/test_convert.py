"""`tandem convert`: what it writes is read by other tools, and served here to the same tokens."""
import json
import pathlib
import shutil
import subprocess
import tempfile
import urllib.request

import gguf
import numpy
import safetensors.numpy
import server


def convert(*args, code=0):
    done = subprocess.run([server.BINARY, "convert", *map(str, args)], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, (args, done.returncode, done.stdout, done.stderr)
    assert "panicked" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def greedy(model, *options, name="it"):
    with server.running("--model", f"it={model}", *options) as running:
        body = {"model": name, "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}
        request = urllib.request.Request(
            running.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request))["choices"][0]["text"]


def test_gguf_and_safetensors_hold_the_same_weights():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        said = convert("demo", "--out", folder / "plain.gguf", "--type", "f32")
        assert "top-1 agreement 100.0 %" in said, said
        convert(folder / "plain.gguf", "--out", folder / "folder", "--type", "f32")
        convert(folder / "folder", "--out", folder / "small.gguf", "--type", "q8_0")

        tensors = safetensors.numpy.load_file(folder / "folder" / "model.safetensors")
        plain = {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "plain.gguf").tensors}
        small = {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "small.gguf").tensors}
        table = tensors["model.embed_tokens.weight"]
        assert numpy.array_equal(plain["token_embd.weight"].data, table)
        eight_bits = gguf.quants.dequantize(small["token_embd.weight"].data, small["token_embd.weight"].tensor_type)
        assert numpy.abs(eight_bits - table).max() < numpy.abs(table).max() / 120

        fields = gguf.GGUFReader(folder / "plain.gguf").fields
        architecture = fields["general.architecture"].contents()
        assert architecture == "llama" and fields["llama.block_count"].contents() > 0
        assert len(fields["tokenizer.ggml.tokens"].data) == table.shape[0]

        texts = {greedy("demo"), greedy(folder / "plain.gguf"), greedy(folder / "folder")}
        assert len(texts) == 1 and texts != {""}, texts


def random_adapter(folder, tensors):
    """A PEFT adapter of random numbers for q and v, the rank of v its own."""
    folder.mkdir()
    random, matrices = numpy.random.default_rng(5), {}
    for name, weight in tensors.items():
        module = name.removesuffix(".weight")
        if module.endswith(("q_proj", "v_proj")):
            r = 4 if module.endswith("q_proj") else 3
            for matrix, shape in [("lora_A", (r, weight.shape[1])), ("lora_B", (weight.shape[0], r))]:
                values = random.standard_normal(shape).astype(numpy.float32) * 0.3
                matrices[f"base_model.model.{module}.{matrix}.weight"] = values
    safetensors.numpy.save_file(matrices, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "rank_pattern": {"v_proj": 3}}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj", "v_proj"]}))
    return matrices


def test_adapters_go_to_gguf_and_back():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        convert("demo", "--out", folder / "base", "--type", "f32")
        matrices = random_adapter(folder / "peft", safetensors.numpy.load_file(folder / "base" / "model.safetensors"))
        convert("demo", "--adapter", folder / "peft", "--adapter-only", "--out", folder / "adapter.gguf")
        convert("demo", "--adapter", folder / "adapter.gguf", "--adapter-only", "--out", folder / "back")

        reader = gguf.GGUFReader(folder / "adapter.gguf")
        said = {key: reader.fields[key].contents() for key in ["general.type", "adapter.type", "adapter.lora.alpha"]}
        assert said == {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}, said
        names = {tensor.name for tensor in reader.tensors}
        assert "blk.0.attn_q.weight.lora_a" in names and "blk.0.attn_v.weight.lora_b" in names, names
        back = safetensors.numpy.load_file(folder / "back" / "adapter_model.safetensors")
        assert all(numpy.array_equal(back[name], values) for name, values in matrices.items())

        convert("demo", "--adapter", folder / "adapter.gguf", "--out", folder / "merged.gguf", "--type", "f32")
        texts = {greedy("demo", "--adapter", f"a={folder / kind}", name="a") for kind in ["peft", "adapter.gguf", "back"]}
        assert texts == {greedy(folder / "merged.gguf")} and texts != {greedy("demo")}, texts
        assert "general.type" in convert("demo", "--adapter", folder / "merged.gguf", "--out", folder / "x", code=78)


def test_a_llava_keeps_its_eyes():
    source = pathlib.Path(__file__).resolve().parents[1] / "golden" / "llava" / "clip_default" / "model"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        convert(source, "--out", folder / "same", "--type", "f32")
        convert(folder / "same", "--out", folder / "small")

        read = lambda folder: safetensors.numpy.load_file(folder / "model.safetensors")
        today = lambda name: name.replace("vision_tower.vision_model.", "vision_tower.")
        before, after = read(source), {today(name): values for name, values in read(folder / "same").items()}
        # The blocks behind the one whose output is taken are kept too.
        assert before.keys() == after.keys() and "vision_tower.encoder.layers.2.mlp.fc1.weight" in after, after.keys()
        assert all(numpy.array_equal(after[name], values) for name, values in before.items())
        config = json.loads((folder / "small" / "config.json").read_text())
        assert {part["dtype"] for part in [config, config["text_config"], config["vision_config"]]} == {"bfloat16"}
        for file in ["preprocessor_config.json", "generation_config.json"]:
            assert (folder / "small" / file).read_bytes() == (source / file).read_bytes()


def test_the_eyes_of_a_llava_have_a_file_of_their_own():
    source = pathlib.Path(__file__).resolve().parents[1] / "golden" / "llava" / "clip_default" / "model"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        assert "top-1 agreement 100.0 %" in convert(source, "--out", folder / "l.gguf", "--type", "f32")
        eyes, decoder = (gguf.GGUFReader(folder / name) for name in ["mmproj-l.gguf", "l.gguf"])
        assert decoder.fields["general.architecture"].contents() == "llama"
        told = {key: field.contents() for key, field in eyes.fields.items()}
        assert (told["general.architecture"], told["clip.projector_type"]) == ("clip", "mlp"), told
        assert (told["clip.vision.block_count"], told["clip.vision.patch_size"]) == (3, 8), told
        assert "clip.vision.feature_layer" not in told and not told["clip.use_gelu"], told

        before = safetensors.numpy.load_file(source / "model.safetensors")
        after = {tensor.name: tensor.data for tensor in eyes.tensors}
        for name, stored in {
            "v.class_embd": "vision_tower.embeddings.class_embedding",
            "v.patch_embd.weight": "vision_tower.embeddings.patch_embedding.weight",
            "v.blk.2.ffn_down.weight": "vision_tower.encoder.layers.2.mlp.fc2.weight",
            "v.blk.0.attn_out.bias": "vision_tower.encoder.layers.0.self_attn.out_proj.bias",
            "mm.2.weight": "multi_modal_projector.linear_2.weight",
        }.items():
            assert numpy.array_equal(after[name], before[stored]), name
        # Readers would apply it.
        assert not any("post_ln" in name for name in after), after.keys()
        assert "exists already" in convert(source, "--out", folder / "l.gguf", code=2)
        (folder / "l.gguf").unlink()
        refused = convert(source, "--out", folder / "l.gguf", code=2)
        assert "mmproj-l.gguf exists already" in refused and len(list(folder.iterdir())) == 1, refused


def test_what_cannot_be_converted_is_said():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        assert "exists already" in convert("demo", "--out", folder, code=2)
        assert "`SOURCE` is" in convert(folder / "none", "--out", folder / "x", code=2)
        assert "--type" in convert("demo", "--out", folder / "x", "--type", "q4_0", code=2)
        assert "cannot read the adapter" in convert("demo", "--out", folder / "x", "--adapter", folder, code=78)
        assert list(folder.iterdir()) == []


def test_a_model_without_a_tokenizer_stays_one():
    source = pathlib.Path(__file__).parents[1] / "golden" / "models" / "llama_gqa" / "model"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        convert(source, "--out", folder / "bare.gguf", "--type", "f32")
        convert(folder / "bare.gguf", "--out", folder / "back")
        assert (folder / "back" / "model.safetensors").is_file()


def test_a_model_that_gives_no_numbers_is_not_converted():
    source = pathlib.Path(__file__).parents[1] / "golden" / "models" / "mpt_alibi" / "model"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        shutil.copytree(source, folder / "model")
        config = json.loads((folder / "model" / "config.json").read_text())
        config["logit_scale"] = 3e38
        (folder / "model" / "config.json").write_text(json.dumps(config))
        assert "no numbers" in convert(folder / "model", "--out", folder / "x", code=78)
        assert not (folder / "x").exists()


def test_a_broken_gguf_file_is_exit_code_78():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        convert("demo", "--out", folder / "whole.gguf", "--type", "q8_0")
        bytes = (folder / "whole.gguf").read_bytes()
        (folder / "broken.gguf").write_bytes(bytes[: len(bytes) // 2])
        done = subprocess.run(
            [server.BINARY, "serve", "--model", folder / "broken.gguf", "--data", folder / "data", "--listen", "127.0.0.1:0"],
            capture_output=True, text=True, timeout=60,
        )
        assert done.returncode == 78 and "broken.gguf" in done.stderr, (done.returncode, done.stderr)
        assert "panicked" not in done.stderr, done.stderr
