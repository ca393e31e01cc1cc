"""The kernels for GPUs, compiled without one; and what a machine without one is told."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

BINARY = os.environ["TANDEM_BINARY"]
# The compiler is a package of this environment.
LIBRARIES = sys.prefix
ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]


def tandem(*arguments, **environment):
    env = {**os.environ, "TANDEM_CUDA_LIBRARIES": LIBRARIES, **environment}
    return subprocess.run([BINARY, *arguments], capture_output=True, text=True, env=env)


def has_gpu():
    return pathlib.Path("/dev/nvidia0").exists()


def test_every_kernel_compiles_for_every_architecture():
    done = tandem("doctor", "--json", "--compile-kernels", ",".join(ARCHITECTURES))
    assert done.returncode == 0, done.stderr
    modules = {name: set() for name in ARCHITECTURES}
    for compiled in json.loads(done.stdout):
        assert compiled["bytes"] > 1000, compiled
        modules[compiled["architecture"]].add(compiled["module"])
    # Those for tensor cores begin with sm_80.
    counts = {name: len(found) for name, found in modules.items()}
    assert counts == {name: 19 if name == "sm_75" else 25 for name in ARCHITECTURES}, modules


def test_a_missing_compiler_is_named():
    with tempfile.TemporaryDirectory() as folder:
        done = tandem("doctor", "--compile-kernels", "sm_90", "--cuda-libraries", folder)
    assert done.returncode == 1 and "holds no libnvrtc" in done.stderr, done.stderr


def test_without_a_gpu_auto_takes_the_cpu_and_says_why():
    if has_gpu():
        return
    done = tandem("doctor", "--json", "--threads", "1")
    found = json.loads(done.stdout)["cuda"]
    assert found["gpus"] == [] and "NVIDIA driver" in found["unusable"], found


def test_a_gpu_that_is_not_there_is_refused_in_one_sentence():
    with tempfile.TemporaryDirectory() as folder:
        done = tandem("serve", "--device", "cuda:63", "--data", folder, "--listen", "127.0.0.1:0")
    assert done.returncode == 78, (done.returncode, done.stderr)
    assert "`--device` names a GPU that cannot be used" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
