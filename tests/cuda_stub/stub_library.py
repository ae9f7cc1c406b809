"""Build the CUDA runtime whose kernels do nothing (`runtime.cpp`), against the headers in torch's own wheels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE, SITE = Path(__file__).parent, Path(sysconfig.get_paths()["purelib"])
FAMILIES = re.compile(r"(cuda|cublas|cudnn|cusparse|cusolver|curand|cufft|cufile|nccl|nvJitLink|cu)[A-Z]\w*|nvrtc\w+")
"""Functions of CUDA's libraries."""
KERNELS = re.compile(
    r"cublas\w*([gG]emm|gemv|axpy|copy|dot|scal|nrm2|asum|trsm)\w*|cublasLtMatmul"
    r"|cudnn(Convolution|BatchNormalization|Pooling)\w*(Forward|Backward)\w*"
)
"""Functions of cuBLAS and cuDNN that start a kernel."""


def why_not() -> str | None:
    """Return why the library cannot be built here, or None."""
    import torch

    if sys.platform != "linux" or torch.version.cuda is None:
        return "torch without CUDA"
    if shutil.which("g++") is None or shutil.which("nm") is None:
        return "no g++ and nm"
    return None if headers() else "no CUDA headers beside torch"


def headers() -> list[Path]:
    """Return the folders with CUDA's headers, in the wheels of its runtime and of Triton; none if one is missing."""
    names = "nvidia/*/include/cuda_runtime_api.h", "triton/backends/nvidia/include/crt/host_defines.h"
    found = [sorted(SITE.glob(name))[:1] for name in names]
    return [path.parents[path.parts[::-1].index("include") - 1] for (path,) in found] if all(found) else []


def build(folder: Path) -> dict[str, str]:
    """Build the library in a folder; return the environment of a process that uses it."""
    import torch

    torch_libraries = Path(torch.__file__).parent / "lib"
    needed = set().union(*map(undefined, sorted(torch_libraries.glob("lib*cuda*.so"))))
    for source in SITE.glob("triton/backends/nvidia/*.c"):  # built by Triton when its first kernel starts
        needed |= set(re.findall(r"\bcu[A-Z]\w+", source.read_text()))
    runtime = HERE / "runtime.cpp"
    version = torch.backends.cudnn.version() or 90000
    lines = [
        "#include <stddef.h>\n#define weak __attribute__((weak))  // a function of runtime.cpp comes first\n",
        f"int cuda_stub_launch(void);\nsize_t cudnnGetVersion(void) {{ return {version}; }}\n",
    ]
    for name in sorted(needed - {"cudnnGetVersion"}):
        value = "cuda_stub_launch()" if KERNELS.fullmatch(name) else "0"
        lines.append(f"weak int {name}(void) {{ return {value}; }}\n")
    (folder / "others.c").write_text("".join(lines))
    library = folder / "libcuda.so.1"
    includes = [f"-I{path}" for path in headers()]
    options = ["-O1", "-fPIC", "-w", *includes]
    subprocess.run(["gcc", *options, "-c", "others.c", "-o", "others.o"], cwd=folder, check=True)
    subprocess.run(
        ["g++", "-std=c++17", *options, "-shared", runtime, "others.o", "-o", library], cwd=folder, check=True
    )
    for name in ("libcuda.so", "libcudart_stub.so"):
        (folder / name).symlink_to(library)
    return os.environ | {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCH_CUDNN_V8_API_DISABLED": "1",  # it plans with cuDNN's engines, which query the device
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # for deterministic products
        "OMP_NUM_THREADS": "1",
    }


def undefined(library: Path) -> set[str]:
    """Return the functions of CUDA's libraries that a library of torch calls."""
    out = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1].partition("@")[0] for line in out.splitlines()}
    return {name for name in names if FAMILIES.fullmatch(name)}
