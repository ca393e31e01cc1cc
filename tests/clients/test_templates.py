"""Chat templates that come with a model, over HTTP: a hostile one costs its own answer and nothing else."""
import pathlib
import shutil
import tempfile

import server
from test_command_line import refused

DEMO = pathlib.Path(__file__).resolve().parents[2] / "src" / "demo" / "model"

# Harmless until it is told otherwise.
HOSTILE = """{%- if messages[-1].content == 'go' -%}{%- set ns = namespace(v=[1]) -%}
{%- for a in range(STEPS) %}{% set ns.v = NEXT %}{% endfor -%}{{ ns.v | tojson }}{%- endif -%}
{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor -%}
{{ '<|im_start|>assistant\\n' }}"""
DEEP = HOSTILE.replace("STEPS", "90000").replace("NEXT", "[ns.v]")
DOUBLED = HOSTILE.replace("STEPS", "60").replace("NEXT", "ns.v + ns.v")


def model(folder, name, template):
    copy = pathlib.Path(folder, name)
    shutil.copytree(DEMO, copy)
    (copy / "chat_template.jinja").write_text(template)
    return ["--model", f"{name}={copy}"]


def chat(url, name, content):
    body = {"model": name, "messages": [{"role": "user", "content": content}], "max_tokens": 2, "temperature": 0}
    return server.request(url + "/v1/chat/completions", body)


def test_a_hostile_template_costs_its_own_answer_only():
    with tempfile.TemporaryDirectory() as folder:
        models = model(folder, "deep", DEEP) + model(folder, "doubled", DOUBLED)
        with server.running(*models) as running:
            for name in ["deep", "doubled"]:
                status, before = chat(running.url, name, "Hello")
                assert status == 200, before
                status, answer = chat(running.url, name, "go")
                assert status == 400 and "chat template" in answer["error"]["message"], answer
                status, after = chat(running.url, name, "Hello")
                assert status == 200 and after["choices"] == before["choices"], after
            assert chat(running.url, "deep", "What is your name?")[0] == 200


def test_a_template_that_is_hostile_at_once_is_refused_at_start():
    with tempfile.TemporaryDirectory() as folder:
        models = model(folder, "deep", DEEP.replace("messages[-1].content == 'go'", "true"))
        refused(78, "the model `deep` cannot be used: the chat template", "serve", *models, "--data", folder + "/data", "--listen", "127.0.0.1:0")
