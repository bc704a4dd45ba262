"""What the comparison needs before it can begin: the programs, and the same random weights in everyone's format.

Programs are kept in the user's cache folder, weights in the data folder; what is there is not made again.
"""

import hashlib
import json
import os
import shutil
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import processes
from .processes import Failed

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
# The release whose source package is built.
LLAMA_CPP = "0.3.36"
TOOLS = ("llama-bench", "llama-batched-bench", "llama-server", "llama-quantize")
REQUIREMENTS = ROOT / "tests" / "parity" / "requirements.txt"
# Positions that the checkpoints allow, so that long contexts can be measured; no speed depends on it.
POSITIONS = 32768

HOUR = 3600.0


@dataclass(frozen=True)
class Shape:
    name: str
    parameters: int
    vocabulary: int
    hidden: int

    @property
    def embedding(self):
        """Parameters of the embedding, of which a token reads one row."""
        return self.vocabulary * self.hidden


SHAPES = {shape.name: shape for shape in (
    Shape("tinyllama-1.1b", 1_100_048_384, 32000, 2048),
    Shape("llama-2-7b", 6_738_415_616, 32000, 4096),
)}


@dataclass(frozen=True)
class Precision:
    name: str
    # Flags of kaito.
    ours: tuple
    # The GGUF file, and bits a weight in it.
    gguf: str
    bits: float


PRECISIONS = {precision.name: precision for precision in (
    Precision("bf16", ("--dtype", "bf16"), "BF16", 16),
    Precision("int8", ("--quantize", "int8"), "Q8_0", 8.5),
    Precision("int4", ("--quantize", "int4"), "Q4_0", 4.5),
)}


def cache_folder():
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "kaito"


def python_environment(say):
    """Python with torch, transformers and numpy: what the parity fixtures are made with."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:8]
    folder = cache_folder() / f"transformers-{digest}"
    python = folder / "bin" / "python"
    done = folder / "complete"
    if not done.exists():
        say(f"installing transformers into {folder} (some 3 GB are downloaded)")
        processes.run([sys.executable, "-m", "venv", "--clear", folder], HOUR, None)
        processes.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir",
                       "--no-deps", "--requirement", REQUIREMENTS], HOUR, None)
        processes.run([python, "-c", "import torch, transformers, numpy"], 600, None)
        done.touch()
    return python


def llama_cpp(python, say):
    """The folder of llama.cpp's source and the one of its programs, from the llama-cpp-python source package."""
    folder = cache_folder() / f"llama.cpp-{LLAMA_CPP}"
    source, binaries = folder / "source", folder / "build" / "bin"
    if not (source / "CMakeLists.txt").exists():
        say(f"downloading llama-cpp-python {LLAMA_CPP} for its copy of llama.cpp")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as download:
            processes.run([python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                           "--no-binary", "llama-cpp-python", "--dest", download, f"llama-cpp-python=={LLAMA_CPP}"],
                          HOUR, None)
            [archive] = Path(download).glob("*.tar.gz")
            with tarfile.open(archive) as package:
                package.extractall(download, filter="data")
            [unpacked] = Path(download).glob("*/vendor/llama.cpp")
            unpacked.rename(source)
    # The programs are linked last, so that one which is there is whole.
    if not all((binaries / tool).exists() for tool in TOOLS):
        say(f"building llama.cpp in {folder} (10 to 30 minutes on two cores)")
        off = ["-DBUILD_SHARED_LIBS", "-DLLAMA_OPENSSL", "-DLLAMA_BUILD_TESTS", "-DLLAMA_BUILD_EXAMPLES",
               "-DLLAMA_BUILD_UI", "-DLLAMA_USE_PREBUILT_UI", "-DGGML_CCACHE"]
        processes.run(["cmake", "-S", source, "-B", folder / "build", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
                       *(option + "=OFF" for option in off)], 600, None)
        processes.run(["cmake", "--build", folder / "build", "--parallel", str(processes.CORES), "--target", *TOOLS],
                      2 * HOUR, None)
    return source, binaries


def kaito(say):
    """The folder of our release build, built from this checkout."""
    say("building kaito")
    os.chdir(ROOT)
    processes.run(["cargo", "build", "--release", "--quiet", "-p", "kaito", "-p", "random-checkpoint", "--bins"],
                  HOUR, None)
    answer = processes.run(["cargo", "metadata", "--no-deps", "--format-version", "1"], 120, None)
    return Path(json.loads(answer.output)["target_directory"]) / "release"


class Weights:
    """One shape's weights: a checkpoint that kaito and transformers read, and GGUF files for llama.cpp."""

    def __init__(self, data, shape):
        self.shape = shape
        self.folder = data / shape.name
        self.checkpoint = self.folder / "checkpoint"
        self.made = []

    def gguf(self, precision):
        return self.folder / f"{precision.gguf}.gguf"

    def quantized_cache(self, precision):
        return self.folder / f"kaito-{precision.name}"

    def lacking(self, precisions):
        """Bytes that `make` will write, at its highest."""
        sizes = {self.checkpoint: 16, self.gguf(PRECISIONS["bf16"]): 16}
        for precision in precisions:
            sizes[self.gguf(precision)] = precision.bits
            if precision.name != "bf16":
                sizes[self.quantized_cache(precision)] = precision.bits
        if all(self.gguf(precision).exists() for precision in precisions):
            del sizes[self.gguf(PRECISIONS["bf16"])]
        return int(sum(self.shape.parameters * bits / 8 for path, bits in sizes.items() if not path.exists()))

    def make(self, precisions, release, source, binaries, python, say):
        """Makes what is lacking for these precisions."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lacking, free = self.lacking(precisions), shutil.disk_usage(self.folder).free
        if lacking > free:
            raise Failed(f"{self.folder}: {lacking / 1e9:.0f} GB will be written, but {free / 1e9:.0f} GB are free; "
                         "choose another folder with --data, or fewer precisions with --only")
        self._make_checkpoint(release, say)
        bf16 = self.gguf(PRECISIONS["bf16"])
        wanted = [self.gguf(precision) for precision in precisions]
        missing = [precision for precision in precisions if not self.gguf(precision).exists()]
        if missing and not bf16.exists():
            say(f"writing {bf16}")
            self._whole(bf16, lambda path: to_gguf(python, source, self.checkpoint, path))
        for precision in missing:
            if precision.name == "bf16":
                continue
            target = self.gguf(precision)
            say(f"writing {target}")
            self._whole(target, lambda path, kind=precision.gguf: processes.run(
                [binaries / "llama-quantize", bf16, path, kind, str(processes.CORES)], HOUR, None))
        if bf16 in self.made and bf16 not in wanted:
            bf16.unlink()
            self.made.remove(bf16)

    def _make_checkpoint(self, release, say):
        if self.checkpoint.exists():
            return
        say(f"writing {self.checkpoint}")
        self._whole(self.checkpoint, lambda path: random_checkpoint(release, self.shape.name, path))

    def _whole(self, path, write):
        """A file or folder that is under its name only when it is whole."""
        partial = path.with_name(path.name + ".partial")
        remove(partial)
        write(partial)
        partial.rename(path)
        self.made.append(path)

    def remove_made(self):
        """Removes what this run wrote; what was there before stays."""
        for path in self.made:
            remove(path)


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def random_checkpoint(release, preset, folder, *flags):
    processes.run([release / "random-checkpoint", preset, "--dtype", "bf16", "--out", folder, *flags],
                  HOUR, None)
    config = folder / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["max_position_embeddings"] = POSITIONS
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def to_gguf(python, source, checkpoint, target, kind="bf16"):
    processes.run([python, HERE / "to_gguf.py", checkpoint, target, "--dtype", kind], HOUR, None,
                  {"PYTHONPATH": str(source / "gguf-py")})


def warm(path, chunk=16 << 20):
    """Reads files once, so that a start finds them in the page cache. Returns their size."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    buffer, total = memoryview(bytearray(chunk)), 0
    for file in files:
        with open(file, "rb", buffering=0) as data:
            while count := data.readinto(buffer):
                total += count
    return total
