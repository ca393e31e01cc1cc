"""A small LLaVA and what it is to learn: the demo model behind a random tower, and pictures of coloured shapes."""
import base64
import json
import pathlib
import struct
import zlib

import numpy
from safetensors.numpy import save_file

DEMO = pathlib.Path(__file__).resolve().parents[2] / "src" / "demo" / "model"
SIDE, PATCH, WIDTH, LAYERS = 48, 12, 256, 1

COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 80, 230), "yellow": (230, 210, 40)}
# The demo knows words for toys, and none for geometry.
THINGS = ["ball", "box", "hat"]
PLACES = {"left": 0, "right": 1}

# The demo's own form of a conversation, with a place for pictures.
TEMPLATE = """{%- for m in messages -%}{{ '<|im_start|>' + m['role'] + '\\n' }}
{%- if m['content'] is string -%}{{ m['content'] }}{%- else -%}
{%- for part in m['content'] -%}{{ '<image>' if part['type'] == 'image' else part['text'] }}{%- endfor -%}{%- endif -%}
{{ '<|im_end|>\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""


def demo_tensors():
    """The demo model's weights, which are bf16, as float32."""
    data = (DEMO / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, end = (8 + length + at for at in entry["data_offsets"])
        assert entry["dtype"] == "BF16", entry
        bits = numpy.frombuffer(data[start:end], "<u2").astype(numpy.uint32) << 16
        yield name, bits.view(numpy.float32).reshape(entry["shape"])


def tower(dice):
    """Random, and so that every patch is still to be told from the others behind it."""
    normal = lambda *shape, scale=1.0: (dice.normal(size=shape) * scale).astype(numpy.float32)
    ones, zeros = lambda n: numpy.ones(n, numpy.float32), lambda n: numpy.zeros(n, numpy.float32)
    tokens = (SIDE // PATCH) ** 2 + 1
    yield "embeddings.class_embedding", normal(WIDTH)
    yield "embeddings.patch_embedding.weight", normal(WIDTH, 3, PATCH, PATCH, scale=(3 * PATCH * PATCH) ** -0.5)
    yield "embeddings.position_embedding.weight", normal(tokens, WIDTH, scale=0.3)
    for norm in ["pre_layrnorm", "post_layernorm"]:
        yield f"{norm}.weight", ones(WIDTH)
        yield f"{norm}.bias", zeros(WIDTH)
    for layer in range(LAYERS):
        path = f"encoder.layers.{layer}"
        linears = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in ["q", "k", "v", "out"]}
        linears |= {"mlp.fc1": (2 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 2 * WIDTH)}
        for name, (out, width) in linears.items():
            # What attention adds is less than what goes past it, or one patch could not be told from another.
            share = 0.3 if name == "self_attn.out_proj" else 1
            yield f"{path}.{name}.weight", normal(out, width, scale=share * width**-0.5)
            yield f"{path}.{name}.bias", zeros(out)
        for norm in ["layer_norm1", "layer_norm2"]:
            yield f"{path}.{norm}.weight", ones(WIDTH)
            yield f"{path}.{norm}.bias", zeros(WIDTH)


def write_model(folder):
    """A model folder of the LLaVA family. Nothing in it has ever seen a picture."""
    folder.mkdir(parents=True)
    dice = numpy.random.default_rng(7)
    tensors = {}
    for name, values in demo_tensors():
        tensors[f"model.language_model.{name.removeprefix('model.')}"] = values
    table = tensors["model.language_model.embed_tokens.weight"]
    vocabulary, hidden = table.shape
    tensors["model.language_model.embed_tokens.weight"] = numpy.vstack([table, numpy.zeros((8, hidden), numpy.float32)])
    tensors |= {f"model.vision_tower.vision_model.{name}": values for name, values in tower(dice)}
    for name, width, size in [("linear_1", WIDTH, 1.0), ("linear_2", hidden, 2 * float(table.std()))]:
        path = f"model.multi_modal_projector.{name}"
        tensors[f"{path}.weight"] = (dice.normal(size=(hidden, width)) * size * width**-0.5).astype(numpy.float32)
        tensors[f"{path}.bias"] = numpy.zeros(hidden, numpy.float32)
    save_file(tensors, folder / "model.safetensors")

    text = json.loads((DEMO / "config.json").read_text()) | {"vocab_size": vocabulary + 8, "torch_dtype": "float32"}
    config = {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "torch_dtype": "float32",
        "image_token_index": vocabulary, "image_seq_length": (SIDE // PATCH) ** 2, "projector_hidden_act": "gelu",
        "vision_feature_layer": -1, "vision_feature_select_strategy": "default", "tie_word_embeddings": True,
        "text_config": text,
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "image_size": SIDE,
            "patch_size": PATCH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "projection_dim": WIDTH,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    preprocessor = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, **half}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))

    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"].append({"id": vocabulary, "content": "<image>", **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text((DEMO / "tokenizer_config.json").read_text())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def png(pixels):
    """An RGB array as a PNG."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def url(pixels):
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def draw(colour, thing, place, dice):
    """One rendering: size, height, shade and background are drawn by lot."""
    size = dice.uniform(7.5, 11)
    x = SIDE * (0.27 if place == "left" else 0.73) + dice.uniform(-1.5, 1.5)
    y = dice.uniform(14, SIDE - 14)
    down, across = numpy.mgrid[0:SIDE, 0:SIDE]
    dx, dy = across + 0.5 - x, down + 0.5 - y
    inside = {
        "ball": dx**2 + dy**2 < size**2,
        "box": (abs(dx) < size) & (abs(dy) < size),
        "hat": (dy < size) & (dy > 2 * abs(dx) - size),
    }[thing]
    shade = numpy.array(COLOURS[colour]) * dice.uniform(0.75, 1.1)
    pixels = numpy.full((SIDE, SIDE, 3), dice.uniform(200, 250))
    pixels[inside] = shade
    return pixels.clip(0, 255).astype(numpy.uint8)


QUESTION = "What is this?"


def asked(picture):
    return {"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url(picture)}}, {"type": "text", "text": QUESTION}]}


def cases(count, seed):
    """(picture, its caption), every colour, shape and place as often as the others."""
    dice = numpy.random.default_rng(seed)
    kinds = [(c, t, p) for c in COLOURS for t in THINGS for p in PLACES]
    for number in range(count):
        colour, thing, place = kinds[number % len(kinds)]
        yield draw(colour, thing, place, dice), f"a {colour} {thing} on the {place}"


def lines(count, seed):
    """Training lines: a picture shown, a question, an answer."""
    for picture, caption in cases(count, seed):
        yield {"messages": [asked(picture), {"role": "assistant", "content": caption}]}
