"""The program a decoding process runs: which code, found in which folders, in which environment.

What a way of decoding needs stands in its program, so a child that decodes exactly imports nothing
beside Pillow and numpy, and a missing package is told before any child is started. A layer above
may hand in a part of the program (`ChildPart`).
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL

from capfilt.config import Decoding
from capfilt.errors import MissingDependencyError
from capfilt.io.decode_wire import ImageLimits

_PROGRAM = """
import sys
sys.path += sys.argv[2:]
draw = None
{{part}}
from capfilt.io.decode_child import main
from capfilt.io.squares import OVERSIZE, SquareMaker
{imports}
main(sys.argv[1], SquareMaker({parts}), draw)
"""
_SIMD = "from capfilt.io.simd_resize import SimdResize"
_PROGRAMS: dict[Decoding, str] = {
    "exact": _PROGRAM.format(imports="", parts=""),
    "scaled": _PROGRAM.format(imports="", parts="oversize=OVERSIZE"),
    "fast": _PROGRAM.format(imports=_SIMD, parts="resize=SimdResize()"),
    "fast_scaled": _PROGRAM.format(imports=_SIMD, parts="resize=SimdResize(), oversize=OVERSIZE"),
}
_PACKAGES: dict[Decoding, tuple[str, ...]] = {
    "exact": (),
    "scaled": (),
    "fast": ("cykooz_resizer",),
    "fast_scaled": ("cykooz_resizer",),
}
"""Beside those capfilt cannot be installed without."""
_PART = """
from types import ModuleType
package = sys.modules["{package}"] = ModuleType("{package}")
package.__path__ = [folder + "/{package}" for folder in sys.argv[2:]]
from {module} import {name} as draw
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildPart:
    """A function that children call: with an order and an image's size, for what to do to it."""

    module: str  # where it is
    name: str
    package: str
    """What the module needs modules of. They are imported one by one: the package's own `__init__`,
    which may import much more, is not run."""


def check_decoding(decoding: Decoding, *, asked_by: str) -> None:
    """Refuse a way of decoding that this machine lacks a package for.

    Args:
        decoding: the recipe's.
        asked_by: its field, for the message.

    Raises:
        MissingDependencyError: names the command that installs it.
    """
    missing = [name for name in _PACKAGES[decoding] if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"{asked_by} is {decoding!r}: {missing[0]} is not installed; "
            "run: pip install 'capfilt[fast-decode]'"
        )


def child_command(
    limits: ImageLimits, decoding: Decoding, part: ChildPart | None = None
) -> list[str]:
    """Run the child with this process's Pillow, numpy and capfilt, and nothing else.

    -I and -S keep out the working directory, PYTHONPATH and the user's site; the folders come
    after the standard library, so a stray `struct.py` beside them cannot get in its way.

    Args:
        limits: what an image may ask of the child.
        decoding: how it makes squares; `check_decoding` has passed.
        part: code of another layer that it runs.
    """
    names = _PACKAGES[decoding] if part is None else (*_PACKAGES[decoding], part.package)
    program = _PROGRAMS[decoding].format(part="" if part is None else _PART.format(**asdict(part)))
    origins = [find_spec(name) for name in names]
    files = [origin.origin for origin in origins if origin is not None]
    packages = [Path(file).parent for file in (PIL.__file__, np.__file__, *files) if file]
    packages.append(Path(__file__).parents[1])
    folders = dict.fromkeys(str(package.absolute().parent) for package in packages)
    options = ["-I", "-S", "-B", "-c", program, json.dumps(asdict(limits))]
    return [sys.executable, *options, *folders]


def child_environment() -> dict[str, str]:
    """What a child may know of this process's environment: no secrets."""
    # The loader's path is what some Pythons need to start. Threads of a linear algebra library
    # would only cost address space.
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
