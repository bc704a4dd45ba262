"""The same random weights in everyone's format. They are kept in the data folder; what is there is not made again."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from . import processes
from .figures import OURS
from .processes import Failed

HERE = Path(__file__).resolve().parent
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
    # Whether kaito reads that file too, instead of what it makes of the checkpoint.
    same_file: bool = False

    @property
    def packs(self):
        """Whether the first start of kaito makes a file of its own."""
        return self.name != "bf16" and not self.same_file


PRECISIONS = {precision.name: precision for precision in (
    Precision("bf16", ("--dtype", "bf16"), "BF16", 16),
    Precision("int8", ("--quantize", "int8"), "Q8_0", 8.5),
    Precision("int4", ("--quantize", "int4"), "Q4_0", 4.5),
    Precision("Q8_0", (), "Q8_0", 8.5, same_file=True),
    Precision("Q4_0", (), "Q4_0", 4.5, same_file=True),
    Precision("Q4_K_M", (), "Q4_K_M", 4.9, same_file=True),
)}
# Those that are measured unless others are named.
DEFAULT = tuple(name for name, precision in PRECISIONS.items() if not precision.same_file)


class Weights:
    """One shape's weights: a checkpoint that kaito and transformers read, and GGUF files for llama.cpp."""

    def __init__(self, data, shape):
        self.shape = shape
        self.folder = data / shape.name
        self.checkpoint = self.folder / "checkpoint"
        self.made = []

    def gguf(self, precision):
        return self.folder / f"{precision.gguf}.gguf"

    def quantized_cache(self, precision, engine):
        return self.folder / f"{engine}-{precision.name}"

    def lacking(self, precisions, builds=(OURS,), with_gguf=True):
        """Bytes that will be written, at its highest, by `make` and by the first starts of builds of ours."""
        sizes = {self.checkpoint: 16}
        if with_gguf and not all(self.gguf(precision).exists() for precision in precisions):
            sizes[self.gguf(PRECISIONS["bf16"])] = 16
            sizes |= {self.gguf(precision): precision.bits for precision in precisions}
        for precision in precisions:
            if precision.packs:
                sizes |= {self.quantized_cache(precision, build): precision.bits for build in builds}
        return int(sum(self.shape.parameters * bits / 8 for path, bits in sizes.items() if not path.exists()))

    def make(self, precisions, builds, release, llama, say):
        """Makes what is lacking for these precisions: `llama` is llama.cpp as it was built, or None if it has no part in this."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lacking, free = self.lacking(precisions, builds, llama is not None), shutil.disk_usage(self.folder).free
        if lacking > free:
            raise Failed(f"{self.folder}: {lacking / 1e9:.0f} GB will be written, but {free / 1e9:.0f} GB are free; "
                         "choose another folder with --data, or fewer precisions with --only")
        self._make_checkpoint(release, say)
        if llama is not None:
            self._make_gguf(precisions, llama, say)

    def _make_gguf(self, precisions, llama, say):
        bf16 = self.gguf(PRECISIONS["bf16"])
        wanted = [self.gguf(precision) for precision in precisions]
        missing = [precision for precision in precisions if not self.gguf(precision).exists()]
        if missing and not bf16.exists():
            say(f"writing {bf16}")
            self._whole(bf16, lambda path: to_gguf(llama, self.checkpoint, path))
        for precision in missing:
            if precision.name == "bf16":
                continue
            target = self.gguf(precision)
            say(f"writing {target}")
            self._whole(target, lambda path, kind=precision.gguf: processes.run(
                [llama.binaries / "llama-quantize", bf16, path, kind, str(processes.CORES)], HOUR, None))
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


def to_gguf(llama, checkpoint, target, kind="bf16"):
    processes.run([llama.python, HERE / "to_gguf.py", checkpoint, target, "--dtype", kind], HOUR, None,
                  {"PYTHONPATH": str(llama.source / "gguf-py")})


def warm(path, chunk=16 << 20):
    """Reads files once, so that a start finds them in the page cache. Returns their size."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    buffer, total = memoryview(bytearray(chunk)), 0
    for file in files:
        with open(file, "rb", buffering=0) as data:
            while count := data.readinto(buffer):
                total += count
    return total
