"""`tandem convert`: what it writes is read by other tools, and served here to the same tokens."""
import json
import pathlib
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


def greedy(model):
    with server.running("--model", f"it={model}") as running:
        body = {"model": "it", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}
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


def test_what_cannot_be_converted_is_said():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        assert "exists already" in convert("demo", "--out", folder, code=2)
        assert "--type" in convert("demo", "--out", folder / "x", "--type", "q4_0", code=2)
        assert "cannot read the adapter" in convert("demo", "--out", folder / "x", "--adapter", folder, code=78)
        assert list(folder.iterdir()) == []


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
